-- The run row: where one job stands, as two msgpack arrays, one after the other. The first holds what each step of an
-- engine reads and writes, so that append leaves the second packed. Fields in the order of headpond.wire.RunRow.
local STATE, FENCE, GEN, OFFSET, ENTRIES, CLAIMED_OFFSET, BAND = 2, 3, 4, 5, 6, 7, 8
local ATTEMPT, STRIKES, WORKER, TAG, LANE, SUBMITTED, CLAIMED, ENDED, DURABLE = 9, 10, 11, 12, 13, 14, 15, 16, 17
local REASON, PARKED, FINGERPRINT, HOST, FAULTS, STRUCK, PINNED, SERVED_BY = 18, 19, 20, 21, 22, 23, 24, 25
-- Not in a row that an older release wrote:
local SESSION, PLACE = 26, 27

-- The first array, and the second as it is packed; nil for a row that cannot be read, which counts as absent: one bad
-- row must not stop a queue.
local function decode_head(raw)
  if not raw then return nil end
  local ok, at, head = pcall(cmsgpack.unpack_one, raw)
  if ok and type(head) == 'table' and head[BAND] and at > 0 then return head, string.sub(raw, at + 1) end
  return nil
end

local function decode(raw)
  local r, rest = decode_head(raw)
  if not r then return nil end
  local ok, tail = pcall(cmsgpack.unpack, rest)
  if not ok or type(tail) ~= 'table' or not tail[SERVED_BY - BAND] then return nil end
  for i = 1, PLACE - BAND do r[BAND + i] = tail[i] end
  r[SESSION], r[PLACE] = r[SESSION] or '', r[PLACE] or 0
  return r
end

local function encode_head(r) return cmsgpack.pack({ unpack(r, 1, BAND) }) end

local function load_run(id) return decode(call('HGET', run, id)) end

-- Rows of several ids, by id; one that cannot be read is not in it.
local function load_runs(ids)
  local rows = {}
  if #ids == 0 then return rows end
  for i, raw in ipairs(call('HMGET', run, unpack(ids))) do rows[ids[i]] = decode(raw) end
  return rows
end
local function encode(r) return encode_head(r) .. cmsgpack.pack({ unpack(r, BAND + 1, PLACE) }) end
local function save_run(id, r) call('HSET', run, id, encode(r)) end

-- What encodes rows that differ from r in their tag alone, for many jobs that are submitted alike. As a whole number
-- below 128 packs into one byte, a tag of 0 stands where any other one belongs.
local function encoder_by_tag(r)
  r[TAG] = 0
  local head, tail = encode_head(r), cmsgpack.pack({ unpack(r, BAND + 1, PLACE) })
  local at = #cmsgpack.pack({ unpack(r, BAND + 1, TAG) }) + 2  -- an array of more than 15 has two more bytes of head
  local before, after = head .. string.sub(tail, 1, at - 1), string.sub(tail, at + 1)
  return function(tag) return before .. cmsgpack.pack(tag) .. after end
end

-- Why a writer that names (id, fence) may not write; nil if it may.
local function refusal(r, fence)
  if not r or fence == '' or r[FENCE] ~= fence then return 'fenced' end
  if r[STATE] == 'running' then return nil end
  if r[STATE] == 'cancelled' or r[STATE] == 'expired' then return r[STATE] end
  return 'fenced'
end

-- The header of a data entry: version, digest, tenant, band, pinned version, cost; of a session's job also its session,
-- policy and parent. One that cannot be read is nobody's and costs 1: an error amid a script would leave its job in no
-- set.
local function header_of(raw)
  local ok, _, header = pcall(cmsgpack.unpack_one, raw)
  if ok and type(header) == 'table' and header[6] then return header end
  return { 1, '', '', '', '', 1 }
end
