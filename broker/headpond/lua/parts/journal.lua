-- S1: ids are <inc>-<seq>, and the entry is written with the change that it tells of.
-- row: of a session, as this very step leaves it. A later one could name commits that the reader does not have yet.
local function write_journal(kind, id, now, row)
  if not storage then return end
  local seq = call('HINCRBY', meta, 'journal_seq', 1)
  local entry = { int(inc) .. '-' .. int(seq), 'k', kind, 'i', id, 't', int(now) }
  if row then entry[8], entry[9] = 'r', row end
  call('XADD', journal, unpack(entry))
end
