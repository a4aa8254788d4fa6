-- release: a deployment gives up names. What they mean stays, for jobs that wait and for whoever takes them next.
-- ARGV: now, deployment, then models
-- Reply: the models that it held
local released, writes = {}, {}
for i = 3, #ARGV do
  local row = load_model(ARGV[i])
  local others, since = without(row and row.holders or {}, ARGV[2])
  if since then
    row.holders = others
    released[#released + 1] = ARGV[i]
    writes[#writes + 1] = cmsgpack.pack(row)
  end
end
for i, name in ipairs(released) do call('HSET', models, name, writes[i]) end
return released
