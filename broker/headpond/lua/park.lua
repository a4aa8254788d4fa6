-- park: put running jobs back with their tokens, at their first place (Q6).
-- ARGV: now, strike ('1' or '0'), then pairs: id, fence
-- Reply: for each pair 'parked', also when repeated; 'fenced', 'cancelled' or 'expired'
local now, replies = clock(ARGV[1]), {}
for i = 3, #ARGV, 2 do
  local id, fence = ARGV[i], ARGV[i + 1]
  local r = load_run(id)
  local no = refusal(r, fence)
  if not no then
    r[PARKED] = fence
    take_back(id, r, now, ARGV[2] == '1')
    replies[#replies + 1] = 'parked'
  elseif r and fence ~= '' and r[PARKED] == fence then replies[#replies + 1] = 'parked'
  else replies[#replies + 1] = no end
end
return replies
