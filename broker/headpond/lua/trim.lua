-- trim: the persister has committed the journal up to an entry (S1, Q10).
-- ARGV: now, inc that the persister read under, last committed '<inc>-<seq>', then ids of jobs whose end was committed
-- Reply: 'ok', or 'stale' if the server has gone back in time since (nothing is trimmed then)
-- Keeps: entries leave only after their commit; a committed result is durable, and only now may expire. Who waits for
-- storage hears of the commit, and of no other entry than a committed one.
local KEPT_COMMITS = 16      -- the latest entry of `commits` is what counts; a few more are there for people
if int(inc) ~= ARGV[2] then return 'stale' end
local now = clock(ARGV[1])
local high, low = string.match(ARGV[3], '^(%d+)-(%d+)$')
call('HDEL', meta, 'storage_away')
call('XTRIM', journal, 'MINID', high .. '-' .. int(tonumber(low) + 1))
for i = 4, #ARGV do
  local r = load_run(ARGV[i])
  if r and r[ENDED] > 0 then
    r[DURABLE] = 1
    save_run(ARGV[i], r)
    call('ZADD', ended, 'NX', now + kept_ms(ARGV[i]), ARGV[i])
  end
end
local commits = prefix .. 'commits'
local told = call('XREVRANGE', commits, '+', '-', 'COUNT', 1)[1]
local told_high, told_low = string.match(told and told[1] or '0-0', '^(%d+)-(%d+)$')
high, low, told_high, told_low = tonumber(high), tonumber(low), tonumber(told_high), tonumber(told_low)
if high > told_high or (high == told_high and low > told_low) then
  call('XADD', commits, 'MAXLEN', '~', KEPT_COMMITS, ARGV[3], 't', int(now))
end
return 'ok'
