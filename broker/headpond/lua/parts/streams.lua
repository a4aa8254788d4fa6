-- Q9: every entry of events:<id> is <gen>-<offset*16 + k>; gen rises with each claim, rewound and 17th entry.
local function raise_gen(r)
  r[GEN] = math.max(inc, r[GEN] + 1)
  r[ENTRIES] = 0
end

local function write_entry(id, r, field, payload)
  if background then return end
  if r[ENTRIES] > 15 then raise_gen(r) end
  local entry = string.format('%.0f-%.0f', r[GEN], r[OFFSET] * 16 + r[ENTRIES])
  call('XADD', prefix .. 'events:' .. id, entry, field, payload)
  r[ENTRIES] = r[ENTRIES] + 1
end

local function write_rewound(id, r, offset, reason)
  raise_gen(r)
  r[OFFSET] = offset
  write_entry(id, r, 'e', cmsgpack.pack({ 1, 'rewound', offset, reason }))
end
