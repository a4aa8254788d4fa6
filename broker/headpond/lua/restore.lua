-- restore: put what storage holds into a server that lost it, or forgot it (S3, S8).
-- ARGV: now, inc that the caller read, a msgpack array of, for each item (at most 100): what ('queued': a job that has
--       not ended, 'delayed', an ended state, 'dropped': it was removed; 'turn': a commit, its document for a data entry
--       and its parent for a row; 'session': its row, '' if it was deleted), id, data entry, run row ('' if storage has
--       none), due_ms, deadline_ms (0 for none), tokens, of these those that its stream here has, the token entries of
--       these and of the others ('' for none), result document, last entry of its stream here ('' without one)
-- Reply: a msgpack array of, for each, 'new': it was not here; 'merged': it was, and is now as storage has it;
--        'conflict': another request was here under that id, and is gone; 'kept': it is here as it should be, or runs
--        here; 'dropped'; 'again': its stream has grown since it was read. Or of the one word 'stale': the server went
--        back since, or the queue is open
-- Keeps: an item counts, where its row tells of a change that storage does not have yet. An item that was put in once is not put in again. Storage wins, but for a lease: who holds it has more.
if int(inc) ~= ARGV[2] or not held_up then return cmsgpack.pack({ 'stale' }) end
local now, items = clock(ARGV[1]), cmsgpack.unpack(ARGV[3])
local FIELDS, REASON_BACK = 12, 'restored from storage'
local restored = prefix .. 'restored'
local rolled = tonumber(string.match(call('HGET', meta, 'rolled_to') or '0-0', '^%d+'))
local replies, ids = {}, {}
for i = 1, #items, FIELDS do ids[#ids + 1] = items[i + 1] end
if #ids == 0 then return cmsgpack.pack(replies) end
local before, here = call('HMGET', restored, unpack(ids)), call('HMGET', data, unpack(ids))

-- Out of every place where it stands. The log of its attempts stays.
local function withdraw(id, r)
  if r[STATE] == 'running' then
    release(id, r)
    notify(r[WORKER])
  elseif r[STATE] == 'queued' then unqueue(id, r)
  elseif r[STATE] == 'delayed' then call('ZREM', delayed, id) end
  if r[SESSION] ~= '' then
    call('LREM', session_key(r[SESSION]), 1, id)
    call('ZREM', waiting, id)
    next_turn(r[SESSION], now)
  end
  forget_strike(id, r)
  for _, key in ipairs({ deadlines, ended, dead, streams }) do call('ZREM', key, id) end
  call('HDEL', result, id)
  call('UNLINK', prefix .. 'events:' .. id)
end

-- Tokens of an earlier life are there for who comes, and who is ahead of them hears so.
local function write_stream(id, r, count, common, first, rest)
  raise_gen(r)
  if first ~= '' then
    r[OFFSET] = common
    write_entry(id, r, 't', first)
  end
  write_rewound(id, r, common, REASON_BACK)
  if rest ~= '' then
    r[OFFSET], r[ENTRIES] = count, 0
    write_entry(id, r, 't', rest)
  end
end

local function put_in(id, what, entry, row, due, deadline, count, common, first, rest, document, last)
  local header, r = header_of(entry), decode(row)
  local tagged = r ~= nil
  r = r or { 1, what, '', inc, 0, 0, 0, header[4], 0, 0, '', 0, 'any', now, 0, 0, 0, '', '', '', '', 0, '', header[5],
    '', '', 0 }
  call('HSET', data, id, entry)
  r[STRUCK], r[STATE] = '', what
  if what ~= 'queued' and what ~= 'delayed' then
    if last ~= '' then
      write_stream(id, r, count, common, first, rest)
      write_entry(id, r, 'e', cmsgpack.pack({ 1, 'ended', count, what }))
      if document ~= '' then call('ZADD', streams, now + stream_retention_ms, id) end
    end
    r[DURABLE] = 1
    if r[ENDED] == 0 then r[ENDED] = now end
    if document ~= '' then call('HSET', result, id, document) end
    call('ZADD', ended, now + kept_ms(id), id)
    if what == 'dead' then call('ZADD', dead, r[ENDED], id) end
    save_run(id, r)
    return
  end
  r[FENCE], r[OFFSET], r[ENTRIES], r[ENDED], r[DURABLE], r[REASON] = '', count, 0, 0, 0, ''
  if r[ATTEMPT] > 0 or count > 0 or last ~= '' then write_stream(id, r, count, common, first, rest) end
  if deadline > 0 then call('ZADD', deadlines, deadline, id) end
  if r[SESSION] ~= '' then
    -- Who comes later comes after it.
    if r[PLACE] > tonumber(call('HGET', meta, 'place') or 0) then call('HSET', meta, 'place', r[PLACE]) end
    enlist(id, r, now)
  end
  if what == 'delayed' then
    r[LANE] = lane_of(id, r)
    call('ZADD', delayed, due, id)
  else
    if not tagged then r[TAG] = fair_tag(r[BAND], header[3], header[6]) end
    make_ready(id, r, now)
  end
  save_run(id, r)
end

-- The session's first job that waits goes where its session says.
local function settle_session(name)
  local first = call('LINDEX', session_key(name), 0)
  local r = first and load_run(first)
  if r and r[STATE] == 'queued' then
    unqueue(first, r)
    make_ready(first, r, now)
    save_run(first, r)
  end
end

for n, id in ipairs(ids) do
  local i = n * FIELDS - FIELDS + 1
  local what, entry, last = items[i], items[i + 2], items[i + 11]
  local of_job = what ~= 'turn' and what ~= 'session'
  local r, answer = of_job and load_run(id), of_job and before[n]
  if answer then
    -- A repeat after a lost reply, or a restore that goes on.
  elseif what == 'turn' then
    put_turn(id, items[i + 3], entry)
    answer = 'kept'
  elseif what == 'session' then
    put_session(id, items[i + 3], now)
    settle_session(id)
    answer = 'kept'
  elseif what == 'dropped' then
    -- One that was submitted since is another job.
    if r and r[ATTEMPT] == 0 and r[GEN] > rolled then answer = 'kept'
    else
      if r then
        withdraw(id, r)
        drop_job(id)
      end
      answer = 'dropped'
    end
  elseif not r then
    put_in(id, what, entry, unpack(items, i + 3, i + 11))
    answer = 'new'
  else
    local ours, its = header_of(here[n] or ''), header_of(entry)
    local same = ours[2] == its[2] and ours[3] == its[3]
    local ending = what ~= 'queued' and what ~= 'delayed' and what or nil
    -- Who was accepted by a server without its data, and cancelled there, stays cancelled.
    local over = r[ENDED] > 0 and (r[STATE] == ending or (held_up == 'restoring' and not ending))
    if same and (over or (r[STATE] == 'running' and not ending)) then answer = 'kept'
    elseif (call('XREVRANGE', prefix .. 'events:' .. id, '+', '-', 'COUNT', 1)[1] or { '' })[1] ~= last then
      answer = 'again'
    else
      -- One that ended before the server went back is an earlier job under that id.
      local earlier = r[ENDED] > 0 and held_up == 'reconciling'
      answer = (same or earlier) and 'merged' or 'conflict'
      withdraw(id, r)
      put_in(id, what, entry, unpack(items, i + 3, i + 11))
    end
  end
  -- What was dropped may be submitted anew before all is open.
  if not before[n] and (answer == 'new' or answer == 'merged' or answer == 'conflict') then
    call('HSET', restored, id, answer)
  end
  replies[n] = answer
end
pay()
return cmsgpack.pack(replies)
