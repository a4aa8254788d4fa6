-- open: the persister has compared this queue with what storage holds (Q2).
-- ARGV: now, step ('claim': take this lineage if there is none yet; 'open'; 'close'), lineage, reason for 'close',
--       highest inc that storage has seen
-- Reply: {lineage of this queue, state}
local lineage = call('HGET', meta, 'lineage')
local state = state_of[2]
if ARGV[2] == 'claim' then
  if not lineage then
    lineage = ARGV[3]
    call('HSET', meta, 'lineage', lineage)
  end
elseif ARGV[2] == 'open' then
  if lineage == ARGV[3] and state ~= 'open' then
    state = 'open'
    -- A counter in Redis alone would go back with it (Q2).
    if inc < tonumber(ARGV[5]) then call('HSET', meta, 'inc', int(tonumber(ARGV[5]) + 1000)) end
    call('HSET', meta, 'state', state)
    call('HDEL', meta, 'closed_reason')
    wake_all()
  end
else
  state = 'closed'
  call('HSET', meta, 'state', state, 'closed_reason', ARGV[4])
end
return { lineage or '', state }
