-- park: put running jobs back with their tokens, at their first place (Q6).
-- ARGV: now, how ('parked', 'preempted', or 'failed': the engine could not go on, a strike without progress), reason,
--       then pairs: id, fence
-- Reply: for each pair 'parked', also when repeated; 'fenced', 'cancelled' or 'expired'
-- A fault may quarantine.
if held_up and ARGV[2] == 'failed' then return not_yet() end
local now, replies = clock(ARGV[1]), {}
for i = 4, #ARGV, 2 do
  local id, fence = ARGV[i], ARGV[i + 1]
  replies[#replies + 1] = park_lease(id, load_run(id), fence, ARGV[2], ARGV[3], now)
end
flush(now)
return replies
