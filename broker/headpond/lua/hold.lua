-- hold: a deployment takes the names of its models, all of them or none.
-- ARGV: now, how ('take', 'keep' or 'look'), deployment, host, folder, then pairs: model, its document without holders
-- Reply: for each model that is refused: its name, the document that stands
-- Keeps: all who hold a name mean the same by it: its spec changes only while no other deployment holds it. 'keep', of
-- a running worker, leaves a name alone that its deployment holds: a newer spec of it may be on its way. 'look' writes
-- nothing.
local how, deployment = ARGV[2], ARGV[3]
local now = tonumber(ARGV[1])
if not now then
  local t = call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local refused, writes = {}, {}
for i = 6, #ARGV, 2 do
  local name, row = ARGV[i], cmsgpack.unpack(ARGV[i + 1])
  local old, raw = load_model(name)
  local others, since = without(old and old.holders or {}, deployment)
  local kept = how == 'keep' and since
  if not kept then
    if #others > 0 and old.spec ~= row.spec then
      refused[#refused + 1] = name
      refused[#refused + 1] = raw
    else
      row.holders = { deployment, ARGV[4], ARGV[5], since or now, unpack(others) }
      writes[#writes + 1] = name
      writes[#writes + 1] = cmsgpack.pack(row)
    end
  end
end
if #refused == 0 and how ~= 'look' then
  for i = 1, #writes, 2 do call('HSET', models, writes[i], writes[i + 1]) end
end
return refused
