-- sample: how far some jobs are, for storage: each job's row and tokens in one step (S4). Nothing is written.
-- ARGV: now, most stream entries of one job, then pairs: id, the stream entry after which ('-': from the first on)
-- Reply: {what tenants have paid, then for each pair {run row as it is packed, or '', stream entries}}; the first is
-- {virtual time of a band or '', {tenant, paid up to, ...}} for interactive, normal and batch
local paid, reply = {}, {}
for i, band in ipairs(BANDS) do
  paid[i] = { call('HGET', meta, 'v:' .. band) or '', call('ZRANGE', prefix .. 'fair:' .. band, 0, -1, 'WITHSCORES') }
end
reply[1] = paid
for i = 3, #ARGV, 2 do
  local id, after = ARGV[i], ARGV[i + 1]
  local row = call('HGET', run, id)
  reply[#reply + 1] = { row or '', row and call('XRANGE', prefix .. 'events:' .. id,
    after == '-' and '-' or '(' .. after, '+', 'COUNT', ARGV[2]) or {} }
end
return reply
