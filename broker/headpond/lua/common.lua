-- Shared head of every script. Each script is atomic, reads and checks before its first write, and may be
-- repeated after a lost reply. Times are ms of the server's clock; tests alone pass another one.
-- KEYS: the static keys of one queue, in this order. events:<id>, held:<boot>, wake:<lane> and
-- ready:<lane>:<band> derive from KEYS[1] and so stand in the same slot.
local meta, data, run, result, delayed, deadlines, leases, ended, dead, journal, workers, spec = unpack(KEYS)
local call, prefix = redis.call, string.sub(KEYS[1], 1, -5)

-- Fields of a run row, in the order of headpond.wire.RunRow.
local STATE, FENCE, ATTEMPT, STRIKES, WORKER, GEN, OFFSET, ENTRIES, TAG, LANE, BAND = 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
local CLAIMED_OFFSET, SUBMITTED, CLAIMED, ENDED, DURABLE, REASON, PARKED, FINGERPRINT = 13, 14, 15, 16, 17, 18, 19, 20

local BANDS = { 'interactive', 'normal', 'batch' }
local MAX_ATTEMPTS = 25      -- leases of one job before it is quarantined
-- The queue of the persistence actor: nobody reads its streams, and its messages are never quarantined.
local background = string.find(prefix, '{persistence}', 1, true) ~= nil
local PROGRESS_TOKENS = 8    -- a lease that made as many is no strike
local SWEEP_LIMIT = 100      -- jobs that one tick moves

local state_of = call('HMGET', meta, 'inc', 'state', 'storage', 'lease_ms', 'last_tick', 'retention_ms', 'graced')
local inc, open, storage = tonumber(state_of[1]), state_of[2] == 'open', state_of[3] == '1'
local lease_ms, last_tick = tonumber(state_of[4] or 10000), tonumber(state_of[5])
local retention_ms, graced = tonumber(state_of[6] or 86400000), state_of[7] == '1'

local function clock(arg)
  if arg ~= '' then return tonumber(arg) end
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function int(n) return string.format('%.0f', n) end

-- A row that cannot be read counts as absent: one bad row must not stop a queue.
local function decode(raw)
  if not raw then return nil end
  local ok, row = pcall(cmsgpack.unpack, raw)
  if ok and type(row) == 'table' and row[FINGERPRINT] then return row end
  return nil
end

local function load_run(id) return decode(call('HGET', run, id)) end
local function save_run(id, r) call('HSET', run, id, cmsgpack.pack(r)) end

local function wake(lane)
  local key = prefix .. 'wake:' .. lane
  if call('EXISTS', key) == 0 then call('RPUSH', key, '1') end
end

local function ready_key(lane, band) return prefix .. 'ready:' .. lane .. ':' .. band end

local function make_ready(id, r)
  r[STATE] = 'queued'
  call('ZADD', ready_key(r[LANE], r[BAND]), r[TAG], id)
  wake(r[LANE])
end

-- Q9: every entry of events:<id> is <gen>-<offset*16 + k>; gen rises with each claim, rewound and 17th entry.
local function raise_gen(r)
  r[GEN] = math.max(inc, r[GEN] + 1)
  r[ENTRIES] = 0
end

local function write_entry(id, r, field, payload)
  if background then return end
  if r[ENTRIES] > 15 then raise_gen(r) end
  local entry = int(r[GEN]) .. '-' .. int(r[OFFSET] * 16 + r[ENTRIES])
  call('XADD', prefix .. 'events:' .. id, entry, field, payload)
  r[ENTRIES] = r[ENTRIES] + 1
end

local function write_rewound(id, r, offset, reason)
  raise_gen(r)
  r[OFFSET] = offset
  write_entry(id, r, 'e', cmsgpack.pack({ 1, 'rewound', offset, reason }))
end

-- S1: ids are <inc>-<seq>, and the entry is written with the change that it tells of.
local function write_journal(kind, id, now)
  if not storage then return end
  local seq = call('HINCRBY', meta, 'journal_seq', 1)
  call('XADD', journal, int(inc) .. '-' .. int(seq), 'k', kind, 'i', id, 't', int(now))
end

local function release(id, r)
  call('ZREM', leases, id)
  if r[WORKER] ~= '' then call('HDEL', prefix .. 'held:' .. r[WORKER], id) end
end

-- The one way into an ended state. With storage the persister sets the time of expiry, after its commit (Q10).
local function end_job(id, r, state, reason, now)
  if r[STATE] == 'running' then release(id, r)
  elseif r[STATE] == 'queued' then call('ZREM', ready_key(r[LANE], r[BAND]), id)
  elseif r[STATE] == 'delayed' then call('ZREM', delayed, id) end
  call('ZREM', deadlines, id)
  -- A reader may be ahead of a server that went back: below its last entry it would never see the end (Q9).
  if r[GEN] < inc then write_rewound(id, r, r[OFFSET], 'the server restarted') end
  r[STATE], r[REASON], r[ENDED] = state, reason, now
  write_entry(id, r, 'e', cmsgpack.pack({ 1, 'ended', r[OFFSET], state }))
  save_run(id, r)
  if state == 'dead' then call('ZADD', dead, now, id) end
  if not storage then call('ZADD', ended, now + retention_ms, id) end
  write_journal('end', id, now)
  call('HINCRBY', meta, 'count:' .. state, 1)
end

-- A lease ended without its worker's word. Its fence is never accepted again.
local function take_back(id, r, now, strike)
  release(id, r)
  r[FENCE] = ''
  if strike then
    if r[OFFSET] - r[CLAIMED_OFFSET] >= PROGRESS_TOKENS then r[STRIKES] = 0 else r[STRIKES] = r[STRIKES] + 1 end
  end
  if r[ATTEMPT] >= MAX_ATTEMPTS and not background then
    r[STATE] = 'parked'
    end_job(id, r, 'dead', 'leased ' .. r[ATTEMPT] .. ' times without an end', now)
  else
    make_ready(id, r)
    save_run(id, r)
  end
end

-- Q8: due jobs become ready, deadlines end jobs, ended leases come back, retention ends. Run by every claim,
-- renewal, waiting reader and persister, so that it happens with no worker alive.
local function sweep(now)
  local back = last_tick and now < last_tick
  local late = last_tick and now - last_tick > lease_ms / 2
  if back or (late and not graced) then
    -- The server was away, or its clock went back: no worker can be blamed for silence. However long it lasted,
    -- each lease has its whole length again; however far the clock went back, it has no more than that.
    local all = call('ZRANGE', leases, 0, -1, 'WITHSCORES')
    for i = 1, #all, 2 do
      call('ZADD', leases, (back and now or math.max(now, tonumber(all[i + 1]))) + lease_ms, all[i])
    end
    -- Once, until a worker renews: where only a rare reader looks, the leases of dead workers must end too.
    if late then call('HSET', meta, 'graced', '1') end
  end
  call('HSET', meta, 'last_tick', int(now))
  local left = SWEEP_LIMIT
  for _, id in ipairs(call('ZRANGEBYSCORE', deadlines, '-inf', now, 'LIMIT', 0, left)) do
    local r = load_run(id)
    left = left - 1
    if r then end_job(id, r, 'expired', 'its deadline passed', now) else call('ZREM', deadlines, id) end
  end
  for _, id in ipairs(call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, left)) do
    local r = load_run(id)
    left = left - 1
    call('ZREM', delayed, id)
    if r then
      make_ready(id, r)
      save_run(id, r)
    end
  end
  for _, id in ipairs(call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, left)) do
    local r = load_run(id)
    left = left - 1
    if r then take_back(id, r, now, true) else call('ZREM', leases, id) end
  end
  for _, id in ipairs(call('ZRANGEBYSCORE', ended, '-inf', now, 'LIMIT', 0, left)) do
    call('HDEL', data, id)
    call('HDEL', run, id)
    call('HDEL', result, id)
    call('UNLINK', prefix .. 'events:' .. id)
    call('ZREM', ended, id)
    call('ZREM', dead, id)
  end
end

-- ms until the next thing that a tick would do; -1 without one.
local function next_due(now)
  local soonest
  for _, key in ipairs({ delayed, deadlines, leases }) do
    local first = call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
    if first and (not soonest or tonumber(first) < soonest) then soonest = tonumber(first) end
  end
  return soonest and math.max(0, soonest - now) or -1
end

-- Why a writer that names (id, fence) may not write; nil if it may.
local function refusal(r, fence)
  if not r or fence == '' or r[FENCE] ~= fence then return 'fenced' end
  if r[STATE] == 'running' then return nil end
  if r[STATE] == 'cancelled' or r[STATE] == 'expired' then return r[STATE] end
  return 'fenced'
end
