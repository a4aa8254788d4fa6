-- unregister: a worker process leaves for good; what it still holds comes back at once, without a strike.
-- ARGV: now, boot. Reply: 'ok'
local now, boot = clock(ARGV[1]), ARGV[2]
forgive(boot, now)
local all = call('HGETALL', prefix .. 'held:' .. boot)
for i = 1, #all, 2 do
  local _, fence = string.match(all[i + 1], '^(%d+):(.+)$')
  local r = load_run(all[i])
  if not refusal(r, fence) then take_back(all[i], r, now, 'left', 'its worker left') end
end
call('DEL', prefix .. 'held:' .. boot)
call('HDEL', workers, boot, boot .. ':seen', boot .. ':seq')
flush(now)
return 'ok'
