-- trim: the persister has committed the journal up to an entry (S1, Q10).
-- ARGV: now, inc that the persister read under, last committed '<inc>-<seq>', then ids of jobs whose end was committed
-- Reply: 'ok', or 'stale' if the server has gone back in time since (nothing is trimmed then)
-- Keeps: entries leave only after their commit; a committed result is durable, and only now may expire.
if int(inc) ~= ARGV[2] then return 'stale' end
local now = clock(ARGV[1])
local high, low = string.match(ARGV[3], '^(%d+)-(%d+)$')
call('XTRIM', journal, 'MINID', high .. '-' .. int(tonumber(low) + 1))
for i = 4, #ARGV do
  local r = load_run(ARGV[i])
  if r and r[ENDED] > 0 then
    r[DURABLE] = 1
    save_run(ARGV[i], r)
    call('ZADD', ended, 'NX', now + kept_ms(ARGV[i]), ARGV[i])
  end
end
return 'ok'
