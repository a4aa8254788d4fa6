-- Head of the scripts of names. Each is atomic, reads and checks before its first write, and may be repeated after a
-- lost reply.
-- KEYS[1]: headpond:models, a slot of its own: no queue's key may be touched here.
local models, call = KEYS[1], redis.call

-- A model document as a table; nil without one, or if it is not one. holders: deployment, host, folder, ms, and so on.
local function load_model(name)
  local raw = call('HGET', models, name)
  if not raw then return nil, nil end
  local ok, row = pcall(cmsgpack.unpack, raw)
  if not ok or type(row) ~= 'table' then return nil, raw end
  if type(row.holders) ~= 'table' then row.holders = {} end
  return row, raw
end

-- The holders but for one deployment, and since when that one holds it; nil if it does not.
local function without(holders, deployment)
  local others, since = {}, nil
  for i = 1, #holders, 4 do
    if holders[i] == deployment then since = holders[i + 3]
    else for k = i, i + 3 do others[#others + 1] = holders[k] end end
  end
  return others, since
end

