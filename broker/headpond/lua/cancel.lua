-- cancel: end a job that has not ended. A running one ends here; its writer hears of it at its next append (Q10).
-- ARGV: now, id
-- Reply: the state that the job is in now; '' for an unknown job
local now, id = clock(ARGV[1]), ARGV[2]
local r = load_run(id)
if not r then return '' end
if held_up and r[ENDED] == 0 then return not_yet() end
if r[STATE] == 'delayed' or r[STATE] == 'queued' or r[STATE] == 'running' then
  end_job(id, r, 'cancelled', 'cancelled by request', now)
end
flush(now)
return r[STATE]
