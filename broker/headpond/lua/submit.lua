-- submit: enqueue jobs, each at most once (Q4).
-- ARGV: now, max_queued (0: no bound), a msgpack array of, for each job (at most 1000): id, data entry, digest,
--       tenant, band, pinned version ('' for none), cost in tokens, delay_ms (0: now), deadline_ms from now (0: none)
-- Reply: a msgpack array of, for each job, 'new', 'known' (same request), 'conflict' (another request or tenant) or
--        'full'.
-- Keeps: the id is looked up before the bound, so that a repeat of an accepted submit is never refused.
local now, max_queued, batch = clock(ARGV[1]), tonumber(ARGV[2]), cmsgpack.unpack(ARGV[3])
local replies, fresh, waiting, ids = {}, {}, 0, {}
for i = 1, #batch, 9 do ids[#ids + 1] = batch[i] end
-- Before the first write: Lua cannot unpack many more into one command.
if #ids > 1000 then return redis.error_reply('TOOMANY at most 1000 jobs in one call, not ' .. #ids) end
local there = call('HMGET', data, unpack(ids))
if max_queued > 0 then
  waiting = call('ZCARD', delayed)
  local others = call('SMEMBERS', lanes)
  for _, band in ipairs(BANDS) do
    waiting = waiting + call('ZCARD', ready_key('any', band))
    for _, lane in ipairs(others) do waiting = waiting + call('ZCARD', ready_key(lane, band)) end
  end
end
for n, id in ipairs(ids) do
  local i = n * 9 - 8
  local header = fresh[id]
  if there[n] then header = header_of(there[n]) end
  if header then
    replies[n] = (header[2] == batch[i + 2] and header[3] == batch[i + 3]) and 'known' or 'conflict'
  elseif max_queued > 0 and waiting >= max_queued then
    replies[n] = 'full'
  else
    replies[n] = 'new'
    fresh[id] = { 1, batch[i + 2], batch[i + 3] }
    waiting = waiting + 1
  end
end

local function new_row(band, pinned)
  return { 1, 'queued', '', inc, 0, 0, 0, band, 0, 0, '', 0, 'any', now, 0, 0, 0, '', '', '', '', 0, '', pinned, '' }
end

-- What is new is written with few commands, however many jobs there are.
local bodies, rows, members, new, encoders = {}, {}, {}, {}, {}
for n, id in ipairs(ids) do
  if replies[n] == 'new' then
    local i = n * 9 - 8
    local band, pinned, delay, deadline = batch[i + 4], batch[i + 5], batch[i + 7], batch[i + 8]
    new[#new + 1] = id
    bodies[#bodies + 1], bodies[#bodies + 2] = id, batch[i + 1]
    local usual = pinned == '' and delay == 0 and deadline == 0
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
      if delay > 0 then
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
