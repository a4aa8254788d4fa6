-- refuse: a version did not load. Nobody goes for it any more until the alias is moved to it anew.
-- ARGV: now, who, version, reason
-- Reply: 'ok', also where the queue knows no alias
local now, who = clock(ARGV[1]), ARGV[2]
if not copy.seq then return 'ok' end
refuse_version(ARGV[3], ARGV[4], now)
if copy.turn == who then end_turn() end
return 'ok'
