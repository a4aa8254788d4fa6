-- dead: what an operator decides on a quarantined job.
-- ARGV: now, step ('forget': it is listed no more, and stays until its retention ends; 'drop': all of it goes now), id
-- Reply: 'ok'; 'gone': there is no such job; 'alive': it is not quarantined; 'uncommitted': with storage, nothing is
-- dropped before its end is committed
-- Keeps: an ended state never changes. Whoever wants to run the request again submits it under a new id.
local id = ARGV[3]
local r = load_run(id)
if not r then return 'gone' end
if r[STATE] ~= 'dead' then return 'alive' end
if ARGV[2] == 'forget' then
  call('ZREM', dead, id)
  return 'ok'
end
if held_up then return not_yet() end
if storage and r[DURABLE] == 0 then return 'uncommitted' end
drop_job(id)
write_journal('drop', id, clock(ARGV[1]))
return 'ok'
