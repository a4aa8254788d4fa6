-- register: a worker process says what it is, before it claims and whenever its state changes.
-- ARGV: now, boot, host, instance, worker row, version, fingerprint ('' until loaded), lease_ms, retention_ms,
--       stream_retention_ms, suspect_wait_ms, version_wait_ms, storage_retention_ms, session_retention_ms (0: for ever),
--       how many weights, these as pairs: tenant, weight, then pairs: tenant, '<retention_ms> <storage_retention_ms>
--       <session_retention_ms>'
-- Reply: 'ok'
-- Keeps: one row for each (deployment, host, instance): the row of the process that it replaces goes.
local now, boot = clock(ARGV[1]), ARGV[2]
local own, own_row = pcall(cmsgpack.unpack, ARGV[5])
local deployment = own and type(own_row) == 'table' and own_row[16] or ''
local all = call('HGETALL', workers)
for i = 1, #all, 2 do
  local other = all[i]
  if not string.find(other, ':', 1, true) and other ~= boot then
    local ok, row = pcall(cmsgpack.unpack, all[i + 1])
    if not ok or type(row) ~= 'table' or (row[3] == ARGV[3] and row[5] == ARGV[4]
      and (row[16] or '') == deployment) then
      call('HDEL', workers, other, other .. ':seen', other .. ':seq')
    end
  end
end
call('HSET', workers, boot, ARGV[5], boot .. ':seen', int(now))
call('HSET', meta, 'lease_ms', ARGV[8], 'retention_ms', ARGV[9], 'stream_retention_ms', ARGV[10],
  'suspect_wait_ms', ARGV[11], 'version_wait_ms', ARGV[12], 'storage_retention_ms', ARGV[13],
  'session_retention_ms', ARGV[14])
call('DEL', weights, retention)
local last_weight = 15 + 2 * tonumber(ARGV[15])
for i = 16, last_weight, 2 do call('HSET', weights, ARGV[i], ARGV[i + 1]) end
for i = last_weight + 1, #ARGV, 2 do call('HSET', retention, ARGV[i], ARGV[i + 1]) end
if ARGV[7] ~= '' then call('HSET', spec, ARGV[6], ARGV[7]) end
return 'ok'
