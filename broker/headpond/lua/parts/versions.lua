-- Q5: who serves which version, and how the share of a trial ends.
local SERVING_MS = 5000      -- a worker that said nothing for so long, and for two leases, serves nothing
local LOADING_MS = 900000    -- so long one that loads its model, which it does in silence, may be what is waited for
local SWEEP_LIMIT = 100      -- jobs that one sweep moves, or one call of switch

-- The workers that were heard of of late. who: names a worker, also after its process; one that is loaded beside another
-- of its name has a + behind its instance, and is the same.
local function live_workers(now)
  local fields, found, all = {}, {}, call('HGETALL', workers)
  for i = 1, #all, 2 do fields[all[i]] = all[i + 1] end
  for i = 1, #all, 2 do
    local ok, row = nil, nil
    if not string.find(all[i], ':', 1, true) then ok, row = pcall(cmsgpack.unpack, all[i + 1]) end
    if ok and type(row) == 'table' then
      local silent = now - (tonumber(fields[all[i] .. ':seen']) or 0)
      if silent < (row[8] == 'loading' and LOADING_MS or math.max(SERVING_MS, 2 * lease_ms)) then
        local name = string.gsub(tostring(row[5]), '%+$', '')
        found[#found + 1] = { boot = all[i], version = tostring(row[2]), state = row[8],
          who = (row[16] or '') .. '/' .. tostring(row[3]) .. '/' .. name }
      end
    end
  end
  return found
end

-- Jobs that wait in a version's lane for a trial's share alone go where they belong now. Returns how many moved, and
-- how many were not looked at.
local function move_back(version, limit, now)
  local moved, left = 0, 0
  for _, band in ipairs(BANDS) do
    local key, stay = ready_key(version, band), 0
    while moved < limit do
      local ids = call('ZRANGE', key, stay, stay + SWEEP_LIMIT - 1)
      if #ids == 0 then break end
      local rows = load_runs(ids)
      for _, id in ipairs(ids) do
        if moved == limit then break end
        local r = rows[id]
        if r and bound_version(r) == '' then
          moved = moved + 1
          unqueue(id, r)
          make_ready(id, r, now)
          save_run(id, r)
        else stay = stay + 1 end
      end
    end
    if moved == limit then left = left + call('ZCARD', key) - stay end
  end
  return moved, left
end
