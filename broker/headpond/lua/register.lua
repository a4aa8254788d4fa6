-- register: a worker process says what it is, before it claims and whenever its state changes.
-- ARGV: now, boot, host, instance, worker row, lease_ms, retention_ms, version, fingerprint ('' until loaded)
-- Reply: 'ok'
-- Keeps: one row for each (host, instance): the row of the process that it replaces goes.
local now, boot = clock(ARGV[1]), ARGV[2]
local all = call('HGETALL', workers)
for i = 1, #all, 2 do
  local other = all[i]
  if not string.find(other, ':', 1, true) and other ~= boot then
    local ok, row = pcall(cmsgpack.unpack, all[i + 1])
    if not ok or type(row) ~= 'table' or (row[3] == ARGV[3] and row[5] == ARGV[4]) then
      call('HDEL', workers, other, other .. ':seen', other .. ':seq')
    end
  end
end
call('HSET', workers, boot, ARGV[5], boot .. ':seen', int(now))
call('HSET', meta, 'lease_ms', ARGV[6], 'retention_ms', ARGV[7])
if ARGV[9] ~= '' then call('HSET', spec, ARGV[8], ARGV[9]) end
return 'ok'
