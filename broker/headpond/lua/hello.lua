-- hello: meet the server, once for each connection and queue (Q2).
-- ARGV: now, run_id, storage ('1' where the deployment has storage, else '')
-- Reply: {inc, state}
-- Keeps: a server that restarted or was replaced may have gone back in time; it gets a higher incarnation, so
-- that stream ids, generations and journal ids never fall below those that were seen before. With storage its open
-- queues wait until the persister has put back what storage has and the server forgot. A new queue with storage is
-- closed until the persister has looked at what storage holds.
local now = clock(ARGV[1])
local known = call('HGET', meta, 'run_id')
local turn_on = ARGV[3] == '1' and not storage
local state = state_of[2]
if not inc then
  inc = now
  state = ARGV[3] == '1' and 'closed' or 'open'
  call('HSET', meta, 'inc', int(inc), 'run_id', ARGV[2], 'state', state)
elseif known ~= ARGV[2] then
  if storage and state ~= 'restoring' then
    -- Of several times that it went back, unlooked at between, the first goes furthest.
    call('HSETNX', meta, 'rolled_to', int(inc) .. '-' .. (call('HGET', meta, 'journal_seq') or '0'))
    if state == 'open' then
      state = 'reconciling'
      call('HSET', meta, 'state', state)
    end
  end
  -- Above every generation that can be in flight, also where the clock stood still: a job's rises with its leases.
  inc = math.max(now, inc + 1000)
  call('HSET', meta, 'inc', int(inc), 'run_id', ARGV[2])
end
if turn_on then
  -- Storage was added to a queue that has jobs: the journal begins with all of them.
  storage = true
  call('HSET', meta, 'storage', '1')
  if call('HLEN', data) == 0 then
    state = 'closed'
    call('HSET', meta, 'state', state)
  end
  for _, id in ipairs(call('HKEYS', data)) do
    local r = load_run(id)
    write_journal('submit', id, now)
    if r and r[ENDED] > 0 then
      call('ZREM', ended, id)
      write_journal('end', id, now)
    end
  end
end
return { int(inc), state }
