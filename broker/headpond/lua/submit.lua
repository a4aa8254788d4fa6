-- submit: enqueue jobs, each at most once (Q4).
-- ARGV: now, max_queued (0: no bound), then for each job: id, data entry, digest, tenant, band,
--       pinned version ('' for none), cost in tokens, delay_ms (0: now), deadline_ms from now (0: none)
-- Reply: for each job 'new', 'known' (same request), 'conflict' (another request or tenant) or 'full'.
-- Keeps: the id is looked up before the bound, so that a repeat of an accepted submit is never refused.
local now, max_queued = clock(ARGV[1]), tonumber(ARGV[2])
local replies, fresh, waiting = {}, {}, 0
if max_queued > 0 then
  waiting = call('ZCARD', delayed)
  for _, band in ipairs(BANDS) do
    waiting = waiting + call('ZCARD', ready_key('any', band))
    for _, lane in ipairs(call('SMEMBERS', lanes)) do waiting = waiting + call('ZCARD', ready_key(lane, band)) end
  end
end
for i = 3, #ARGV, 9 do
  local id, digest, tenant = ARGV[i], ARGV[i + 2], ARGV[i + 3]
  local raw = call('HGET', data, id)
  local header
  if raw then
    local _, first = cmsgpack.unpack_one(raw)
    header = first
  else
    header = fresh[id]
  end
  if header then
    replies[#replies + 1] = (header[2] == digest and header[3] == tenant) and 'known' or 'conflict'
  elseif max_queued > 0 and waiting >= max_queued then
    replies[#replies + 1] = 'full'
  else
    replies[#replies + 1] = 'new'
    fresh[id] = { 1, digest, tenant }
    waiting = waiting + 1
  end
end
local n, new = 0, 0
for i = 3, #ARGV, 9 do
  n = n + 1
  if replies[n] == 'new' then
    local id, band, delay, deadline = ARGV[i], ARGV[i + 4], tonumber(ARGV[i + 7]), tonumber(ARGV[i + 8])
    local r = { 1, 'queued', '', 0, 0, '', inc, 0, 0, 0, 'any', band, 0, now, 0, 0, 0, '', '', '', '', 0, '',
      ARGV[i + 5], '' }
    call('HSET', data, id, ARGV[i + 1])
    if delay > 0 then
      r[STATE], r[LANE] = 'delayed', lane_of(r)
      call('ZADD', delayed, now + delay, id)
      -- Its own lane must hear of it before the next block ends.
      if call('ZRANGE', delayed, 0, 0)[1] == id then wake(r[LANE]) end
    else
      r[TAG] = fair_tag(band, ARGV[i + 3], tonumber(ARGV[i + 6]))
      make_ready(id, r, now)
    end
    if deadline > 0 then
      call('ZADD', deadlines, now + deadline, id)
      if call('ZRANGE', deadlines, 0, 0)[1] == id then wake(r[LANE]) end
    end
    save_run(id, r)
    write_journal('submit', id, now)
    new = new + 1
  end
end
pay()
if new > 0 then call('HINCRBY', meta, 'submitted', new) end
return replies
