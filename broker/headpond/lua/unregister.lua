-- unregister: a worker process is gone for good; what it still holds comes back at once.
-- ARGV: now, boot, 'killed' if it died, and whoever says so knows it for sure: a strike, as by silence (Q11); '' if it
--       leaves by itself: none
-- Reply: 'ok'
-- WAITS while storage is put in, for a process that died: a strike may end a job.
local now, boot, killed = clock(ARGV[1]), ARGV[2], ARGV[3] == 'killed'
if killed and held_up then return not_yet() end
if not killed then forgive(boot, now) end
local all = call('HGETALL', prefix .. 'held:' .. boot)
for i = 1, #all, 2 do
  local _, fence = string.match(all[i + 1], '^(%d+):(.+)$')
  local r = load_run(all[i])
  local no = refusal(r, fence)
  if not no and killed then take_back(all[i], r, now, 'killed', 'its worker died')
  elseif not no then take_back(all[i], r, now, 'left', 'its worker left') end
end
call('DEL', prefix .. 'held:' .. boot)
call('HDEL', workers, boot, boot .. ':seen', boot .. ':seq')
flush(now)
return 'ok'
