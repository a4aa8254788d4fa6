-- finish: end a job that its worker ran to the end (Q10).
-- ARGV: now, id, fence, final offset, state ('finished' or 'failed'), result document, reason, ms from the lease to its
--       first token (-1 without one); where it made a turn of a session (Q14) also: id of the commit, its document,
--       the head that the worker saw, parent ('' for none), version, commits from the first one on, policy of the
--       session from now on, then ids of the skipped jobs that the turn tells of
-- Reply: {'done', offset} also when repeated by the same fence; {'gap', offset}: tokens are missing, append them
-- first; {'fenced' | 'cancelled' | 'expired', offset}
-- WAITS while storage is put in.
-- Keeps: result, last event, acknowledgement, commit and journal entries are written at once. The head moves only from
-- where the worker saw it: else the job goes back into the queue, and the reply is 'fenced'.
if held_up then return not_yet() end
local now, id = clock(ARGV[1]), ARGV[2]
local r = load_run(id)
local turn
if ARGV[9] and r and r[SESSION] ~= '' then
  turn = { id = ARGV[9], document = ARGV[10], head = ARGV[11], parent = ARGV[12], version = ARGV[13],
    count = tonumber(ARGV[14]), policy = ARGV[15], told = { unpack(ARGV, 16) } }
end
local status = finish_lease(id, r, ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7], now, tonumber(ARGV[8]), turn)
flush(now)
return { status, r and r[OFFSET] or 0 }
