-- The run row: where one job stands. Fields in the order of headpond.wire.RunRow.
local STATE, FENCE, ATTEMPT, STRIKES, WORKER, GEN, OFFSET, ENTRIES, TAG, LANE, BAND = 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
local CLAIMED_OFFSET, SUBMITTED, CLAIMED, ENDED, DURABLE, REASON, PARKED, FINGERPRINT = 13, 14, 15, 16, 17, 18, 19, 20
local HOST, FAULTS, STRUCK, PINNED, SERVED_BY = 21, 22, 23, 24, 25

-- A row that cannot be read counts as absent: one bad row must not stop a queue.
local function decode(raw)
  if not raw then return nil end
  local ok, row = pcall(cmsgpack.unpack, raw)
  if ok and type(row) == 'table' and row[SERVED_BY] then return row end
  return nil
end

local function load_run(id) return decode(call('HGET', run, id)) end
local function save_run(id, r) call('HSET', run, id, cmsgpack.pack(r)) end

-- Why a writer that names (id, fence) may not write; nil if it may.
local function refusal(r, fence)
  if not r or fence == '' or r[FENCE] ~= fence then return 'fenced' end
  if r[STATE] == 'running' then return nil end
  if r[STATE] == 'cancelled' or r[STATE] == 'expired' then return r[STATE] end
  return 'fenced'
end
