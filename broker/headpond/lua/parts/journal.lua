-- S1: ids are <inc>-<seq>, and the entry is written with the change that it tells of.
local function write_journal(kind, id, now)
  if not storage then return end
  local seq = call('HINCRBY', meta, 'journal_seq', 1)
  call('XADD', journal, int(inc) .. '-' .. int(seq), 'k', kind, 'i', id, 't', int(now))
end
