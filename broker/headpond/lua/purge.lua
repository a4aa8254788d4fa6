-- purge: remove jobs for good, whatever their state. A worker that runs one is fenced, and stops.
-- ARGV: now, then ids (at most 100; none only notes `purged`)
-- Reply: {state of the queue, journal id of the last change ('' without storage), for each id 1 if it was there, else 0}
-- Keeps: may be repeated. With storage each id is dropped there too, also one that Redis does not know any more; `purged`
-- of meta says up to where, so that the persister removes what older segments and snapshots hold.
local now, there = clock(ARGV[1]), {}
-- While a restore puts jobs back, one that is removed could come back.
if state_of[2] == 'restoring' or state_of[2] == 'reconciling' then return { state_of[2], '' } end

local function leave_queue(id, r)
  if r[STATE] == 'running' then
    release(id, r)
    notify(r[WORKER])
  elseif r[STATE] == 'queued' then
    unqueue(id, r)
    refund(id, r)
  elseif r[STATE] == 'delayed' then call('ZREM', delayed, id) end
  forget_strike(id, r)
  -- As if it had never been: its session tells nobody of it.
  if r[SESSION] ~= '' then leave_session(id, r, now, true) end
end

-- A row that cannot be read does not say where its job waits.
local function leave_all(id)
  for _, lane in ipairs({ 'any', unpack(call('SMEMBERS', lanes)) }) do
    for _, band in ipairs(BANDS) do call('ZREM', ready_key(lane, band), id) end
  end
  for _, key in ipairs({ delayed, leases, preempts }) do call('ZREM', key, id) end
  call('ZREM', waits, 's:' .. id)
end

for i = 2, #ARGV do
  local id, r = ARGV[i], load_run(ARGV[i])
  there[#there + 1] = call('HEXISTS', run, id) + call('HEXISTS', data, id) > 0 and 1 or 0
  if r then leave_queue(id, r) else leave_all(id) end
  call('ZREM', deadlines, id)
  drop_job(id)
  write_journal('drop', id, now)
end
flush(now)
local last = ''
local seq = storage and call('HGET', meta, 'journal_seq')
if seq then
  last = int(inc) .. '-' .. seq
  call('HSET', meta, 'purged', last)
end
return { state_of[2], last, unpack(there) }
