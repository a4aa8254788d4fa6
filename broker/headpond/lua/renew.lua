-- renew: prolong leases, tell a worker what became of its jobs, and take back what it no longer names (Q8).
-- ARGV: now, boot, last claim seq received, worker row ('' leaves it), version ('' unless all slots are taken),
--       then pairs: id, fence
-- Reply: for each pair 'ok', 'preempt' (ok, and park it for a more urgent job), 'fenced', 'cancelled' or 'expired'
-- Keeps: a lease that this worker does not name, of a claim whose reply it has, is returned without a strike; a
-- lease of a later claim is left alone, its reply may be on the way.
local now, boot, last_seq = clock(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local held = prefix .. 'held:' .. boot
if ARGV[4] ~= '' then call('HSET', workers, boot, ARGV[4]) end
call('HSET', workers, boot .. ':seen', int(now))
forgive(boot, now)
sweep(now, boot)
call('HDEL', meta, 'graced')
local replies, named = {}, {}
for i = 6, #ARGV, 2 do named[ARGV[i] .. '\n' .. ARGV[i + 1]] = true end
-- First what comes back: an interactive job among it may want the slot of a batch job that is named.
local all = call('HGETALL', held)
for i = 1, #all, 2 do
  local id = all[i]
  local its_seq, fence = string.match(all[i + 1], '^(%d+):(.+)$')
  if not named[id .. '\n' .. fence] and tonumber(its_seq) <= last_seq then
    local r = load_run(id)
    if refusal(r, fence) then call('HDEL', held, id)
    else take_back(id, r, now, 'unnamed', 'its worker no longer named it') end
  end
end
for i = 6, #ARGV, 2 do
  local id, fence = ARGV[i], ARGV[i + 1]
  local r = load_run(id)
  local no = refusal(r, fence)
  if no then replies[#replies + 1] = no
  else
    call('ZADD', leases, now + lease_ms, id)
    replies[#replies + 1] = to_preempt(id, r, ARGV[5], now) and 'preempt' or 'ok'
  end
end
flush(now)
return replies
