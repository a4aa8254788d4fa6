-- finish: end a job that its worker ran to the end (Q10).
-- ARGV: now, id, fence, final offset, state ('finished' or 'failed'), result document, reason, ms from the lease to its
--       first token (-1 without one)
-- Reply: {'done', offset} also when repeated by the same fence; {'gap', offset}: tokens are missing, append them
-- first; {'fenced' | 'cancelled' | 'expired', offset}
-- WAITS while storage is put in.
-- Keeps: result, last event, acknowledgement and journal entry are written at once.
if held_up then return not_yet() end
local now, id = clock(ARGV[1]), ARGV[2]
local r = load_run(id)
local status = finish_lease(id, r, ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7], now, tonumber(ARGV[8]))
flush(now)
return { status, r and r[OFFSET] or 0 }
