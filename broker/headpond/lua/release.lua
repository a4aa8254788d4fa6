-- release: a deployment gives up names. What they mean stays, for jobs that wait and for whoever takes them next.
-- ARGV: now, deployment, then models
-- Reply: 'ok', also for names that it does not hold
local writes = {}
for i = 3, #ARGV do
  local row = load_model(ARGV[i])
  local others, since = without(row and row.holders or {}, ARGV[2])
  if since then
    row.holders = others
    writes[#writes + 1] = ARGV[i]
    writes[#writes + 1] = cmsgpack.pack(row)
  end
end
for i = 1, #writes, 2 do call('HSET', models, writes[i], writes[i + 1]) end
return 'ok'
