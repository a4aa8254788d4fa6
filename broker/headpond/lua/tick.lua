-- tick: what time alone brings about (Q8). ARGV: now. Reply: ms until there is more to do, -1 without.
local now = clock(ARGV[1])
local due = sweep_if_due(now)
flush(now)
return due
