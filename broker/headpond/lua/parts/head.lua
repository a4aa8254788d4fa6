-- Head of every script. Each script is atomic, reads and checks before its first write, and may be repeated after
-- a lost reply. Times are ms of the server's clock; tests alone pass another one.
-- KEYS[1]: meta, which names the queue. All other keys of it derive from that one, and so stand in the same slot; a
-- client that packed all of them would spend more on it than the server on a whole script.
local meta, call = KEYS[1], redis.call
local prefix = string.sub(KEYS[1], 1, -5)
local data = prefix .. 'data'
local run = prefix .. 'run'
local result = prefix .. 'result'
local delayed = prefix .. 'delayed'
local deadlines = prefix .. 'deadlines'
local leases = prefix .. 'leases'
local ended = prefix .. 'ended'
local dead = prefix .. 'dead'
local journal = prefix .. 'journal'
local workers = prefix .. 'workers'
local spec = prefix .. 'spec'
local waits = prefix .. 'waits'
local lanes = prefix .. 'lanes'
local streams = prefix .. 'streams'
local attempts = prefix .. 'attempts'
local preempts = prefix .. 'preempts'
local weights = prefix .. 'weights'
local retention = prefix .. 'retention'
local waiting = prefix .. 'waiting'

local BANDS = { 'interactive', 'normal', 'batch' }
-- The queue of the persistence actor: nobody reads its streams, and its messages are never quarantined.
local background = string.find(prefix, '{persistence}', 1, true) ~= nil

local state_of = call('HMGET', meta, 'inc', 'state', 'storage', 'lease_ms', 'last_tick', 'retention_ms', 'graced',
  'suspect', 'suspect_wait_ms', 'version_wait_ms', 'stream_retention_ms', 'trial')
local inc = tonumber(state_of[1])
local open, storage = state_of[2] == 'open', state_of[3] == '1'
-- Q2: what storage holds is being put in; nothing is leased, and nothing ends. The state's name; false else.
local held_up = (state_of[2] == 'restoring' or state_of[2] == 'reconciling') and state_of[2]
local lease_ms = tonumber(state_of[4] or 10000)
local last_tick = tonumber(state_of[5])
local retention_ms = tonumber(state_of[6] or 86400000)
local graced = state_of[7] == '1'
local suspect = state_of[8]  -- id of the one suspect that runs (Q11); false without
local suspect_wait_ms = tonumber(state_of[9] or 30000)
local version_wait_ms = tonumber(state_of[10] or 60000)
local stream_retention_ms = tonumber(state_of[11] or 600000)
-- Q5: the version that a share of the jobs goes to, in permille; false while no trial has one.
local trial, share = state_of[12], nil
if trial then
  trial, share = string.match(trial, '^(.*):(%d+)$')
  share = tonumber(share)
end

local function clock(arg)
  if arg ~= '' then return tonumber(arg) end
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- The reply to what has to wait until then; the caller asks again, as after an outage of the server.
local function not_yet() return redis.error_reply('WAITS ' .. held_up) end

local function int(n) return string.format('%.0f', n) end
