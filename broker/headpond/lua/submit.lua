-- submit: enqueue jobs, each at most once (Q4).
-- ARGV: now, max_queued (0: no bound), a msgpack array of, for each job (at most 1000): id, data entry, digest,
--       tenant, band, pinned version ('' for none), cost in tokens, delay_ms (0: now), deadline_ms from now (0: none),
--       session ('' for none; its jobs have no delay)
-- Reply: a msgpack array of, for each job, 'new', 'known' (same request), 'conflict' (another request or tenant),
--        'full'; of a session's job also 'crowded' (too many of them wait), 'moved' (nothing of the session waits, and
--        its head is not the parent that is asked for).
-- Keeps: the id is looked up before the bound, so that a repeat of an accepted submit is never refused.
local MAX_SESSION_JOBS = 1000  -- of one session that have not ended
local now, max_queued, batch = clock(ARGV[1]), tonumber(ARGV[2]), cmsgpack.unpack(ARGV[3])
local replies, fresh, queued, ids, listed = {}, {}, 0, {}, {}
for i = 1, #batch, 10 do ids[#ids + 1] = batch[i] end
-- Before the first write: Lua cannot unpack many more into one command.
if #ids > 1000 then return redis.error_reply('TOOMANY at most 1000 jobs in one call, not ' .. #ids) end
local there = call('HMGET', data, unpack(ids))
if max_queued > 0 then
  queued = call('ZCARD', delayed) + call('ZCARD', waiting)
  local others = call('SMEMBERS', lanes)
  for _, band in ipairs(BANDS) do
    queued = queued + call('ZCARD', ready_key('any', band))
    for _, lane in ipairs(others) do queued = queued + call('ZCARD', ready_key(lane, band)) end
  end
end

-- Why a session does not take one more job; nil if it does.
local function session_refusal(name, raw)
  listed[name] = listed[name] or call('LLEN', session_key(name))
  if listed[name] >= MAX_SESSION_JOBS then return 'crowded' end
  local parent = header_of(raw)[9]
  -- While others of its session wait or run, only its own turn will tell.
  if parent == '' or listed[name] > 0 then return nil end
  local s = read_session(name)
  local head = s and s.head or ''
  if (head == '' and 'root' or head) ~= parent then return 'moved' end
end

for n, id in ipairs(ids) do
  local i = n * 10 - 9
  local header, name = fresh[id], batch[i + 9]
  if there[n] then header = header_of(there[n]) end
  if header then
    replies[n] = (header[2] == batch[i + 2] and header[3] == batch[i + 3]) and 'known' or 'conflict'
  elseif max_queued > 0 and queued >= max_queued then
    replies[n] = 'full'
  else
    replies[n] = name ~= '' and session_refusal(name, batch[i + 1]) or 'new'
  end
  if replies[n] == 'new' then
    if name ~= '' then listed[name] = listed[name] + 1 end
    fresh[id] = { 1, batch[i + 2], batch[i + 3] }
    queued = queued + 1
  end
end

local function new_row(band, pinned)
  return { 1, 'queued', '', inc, 0, 0, 0, band, 0, 0, '', 0, 'any', now, 0, 0, 0, '', '', '', '', 0, '', pinned, '',
    '', 0 }
end

-- What is new is written with few commands, however many jobs there are.
local bodies, rows, members, new, encoders = {}, {}, {}, {}, {}
for n, id in ipairs(ids) do
  if replies[n] == 'new' then
    local i = n * 10 - 9
    local band, pinned, delay, deadline = batch[i + 4], batch[i + 5], batch[i + 7], batch[i + 8]
    local name = batch[i + 9]
    new[#new + 1] = id
    bodies[#bodies + 1], bodies[#bodies + 2] = id, batch[i + 1]
    local usual = pinned == '' and delay == 0 and deadline == 0 and name == ''
    if usual and not (trial and lane_of(id, new_row(band, pinned)) ~= 'any') then
      -- The usual job, in as little as can be: it differs from those of its band in its tag alone.
      local key, tag = ready_key('any', band), fair_tag(band, batch[i + 3], batch[i + 6])
      local list = members[key]
      if not list then
        list = {}
        members[key], encoders[key] = list, encoder_by_tag(new_row(band, pinned))
      end
      list[#list + 1], list[#list + 2] = tag, id
      rows[#rows + 1], rows[#rows + 2] = id, encoders[key](tag)
    else
      local r = new_row(band, pinned)
      if name ~= '' then
        r[SESSION], r[PLACE], r[TAG] = name, call('HINCRBY', meta, 'place', 1), fair_tag(band, batch[i + 3], batch[i + 6])
        call('HSET', data, id, batch[i + 1])
        call('RPUSH', session_key(name), id)
        make_ready(id, r, now)
      elseif delay > 0 then
        r[STATE], r[LANE] = 'delayed', lane_of(id, r)
        call('ZADD', delayed, now + delay, id)
        -- Its own lane must hear of it before the next block ends.
        if call('ZRANGE', delayed, 0, 0)[1] == id then wake(r[LANE]) end
      else
        r[TAG] = fair_tag(band, batch[i + 3], batch[i + 6])
        make_ready(id, r, now)
      end
      if deadline > 0 then
        call('ZADD', deadlines, now + deadline, id)
        if call('ZRANGE', deadlines, 0, 0)[1] == id then wake(r[LANE]) end
      end
      rows[#rows + 1], rows[#rows + 2] = id, encode(r)
    end
  end
end
if #new > 0 then
  call('HSET', data, unpack(bodies))
  call('HSET', run, unpack(rows))
  for key, list in pairs(members) do call('ZADD', key, unpack(list)) end
  if next(members) then wake('any') end
  pay()
  for _, id in ipairs(new) do write_journal('submit', id, now) end
  call('HINCRBY', meta, 'submitted', #new)
end
return cmsgpack.pack(replies)
