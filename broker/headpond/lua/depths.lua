-- depths: how many jobs stand where. Changes nothing.
-- ARGV: now
-- Reply: {ready: interactive, normal, batch; of these suspects; delayed, of these due; running, of these with an ended
--         lease; dead; waiting for their turn in a session}
local now, ready, suspects = clock(ARGV[1]), { 0, 0, 0 }, 0
local all = call('SMEMBERS', lanes)
all[#all + 1] = 'any'
for _, lane in ipairs(all) do
  for n, band in ipairs(BANDS) do
    local count = call('ZCARD', ready_key(lane, band))
    ready[n] = ready[n] + count
    if is_suspect(lane) then suspects = suspects + count end
  end
end
return { ready[1], ready[2], ready[3], suspects, call('ZCARD', delayed), call('ZCOUNT', delayed, '-inf', now),
  call('ZCARD', leases), call('ZCOUNT', leases, '-inf', now), call('ZCARD', dead), call('ZCARD', waiting) }
