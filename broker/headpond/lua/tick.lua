-- tick: what time alone brings about (Q8). ARGV: now. Reply: ms until there is more to do, -1 without.
local now = clock(ARGV[1])
sweep(now)
flush(now)
return next_due(now)
