-- finish: end a job that its worker ran to the end (Q10).
-- ARGV: now, id, fence, final offset, state ('finished' or 'failed'), result document, reason
-- Reply: {'done', offset} also when repeated by the same fence; {'gap', offset}: tokens are missing, append them
-- first; {'fenced' | 'cancelled' | 'expired', offset}
-- Keeps: result, last event, acknowledgement and journal entry are written at once.
local now, id, fence = clock(ARGV[1]), ARGV[2], ARGV[3]
local r = load_run(id)
if r and r[FENCE] == fence and (r[STATE] == 'finished' or r[STATE] == 'failed') then return { 'done', r[OFFSET] } end
local no = refusal(r, fence)
if no then return { no, r and r[OFFSET] or 0 } end
if tonumber(ARGV[4]) ~= r[OFFSET] then return { 'gap', r[OFFSET] } end
if ARGV[6] ~= '' then call('HSET', result, id, ARGV[6]) end
end_job(id, r, ARGV[5], ARGV[7], now)
call('HINCRBY', meta, 'tokens', r[OFFSET])
return { 'done', r[OFFSET] }
