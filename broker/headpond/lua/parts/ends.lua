-- How leases and jobs end: the one way into an ended state, and the one way back into the queue.
local MAX_STRIKES = 3        -- then a job is quarantined (Q11)
local MAX_FAULTS = 25        -- leases of one job that ended by a crash or an engine's failure, with progress or without
local PROGRESS_TOKENS = 8    -- a lease that made as many is no strike, and clears those before
local KEPT_ATTEMPTS = 32     -- records of ended leases that are kept of one job
local KEPT_OUTCOMES = 2000   -- jobs of one version whose ends are kept while a trial has its share

-- Writes of many jobs in few commands. Between collect() and write() nothing that put() notes may be read back.
local noted, order

local function collect() noted, order = {}, {} end

local function put(command, key, ...)
  if not noted then return call(command, key, ...) end
  local name = command .. key
  local list = noted[name]
  if not list then
    list = { command, key }
    noted[name] = list
    order[#order + 1] = list
  end
  for _, word in ipairs({ ... }) do list[#list + 1] = word end
end

local function write()
  for _, list in ipairs(order) do call(unpack(list)) end
  noted, order = nil, nil
end

-- What a script counts; written once, by flush(), which is the last of it.
local bumps, ends, earliest = {}, 0, nil

local function bump(field, n) bumps[field] = (bumps[field] or 0) + n end

local function flush(now)
  for field, n in pairs(bumps) do call('HINCRBY', meta, field, n) end
  if ends > 0 then
    -- The usual time between two ends tells a refused producer when a place will be free. A queue that had nothing to
    -- do was not slow: no end is waited for before its job was claimed.
    local last, gap = unpack(call('HMGET', meta, 'end_ms', 'end_gap_ms'))
    local since = math.max(0, now - math.max(tonumber(last) or 0, earliest)) / ends
    gap = gap and gap + (since - gap) * (1 - 0.9 ^ ends) or since
    call('HSET', meta, 'end_ms', int(now), 'end_gap_ms', string.format('%.3f', gap))
  end
end

local function release(id, r)
  put('ZREM', leases, id)
  if r[WORKER] ~= '' then put('HDEL', prefix .. 'held:' .. r[WORKER], id) end
  if r[BAND] == 'batch' then call('ZREM', preempts, id) end
  if suspect == id then
    suspect = false
    call('HDEL', meta, 'suspect')
    for _, lane in ipairs(call('SMEMBERS', lanes)) do
      if is_suspect(lane) and has_jobs(lane) then wake(lane) end
    end
  end
end

-- The strike that a boot's silence gave is remembered until the job is claimed again: see forgive().
local function forget_strike(id, r)
  if r[STRUCK] ~= '' then
    call('HDEL', prefix .. 'struck:' .. r[STRUCK], id)
    r[STRUCK] = ''
  end
end

local NOTICE_MS = 60000      -- how long a notice waits for a worker that may be gone

-- Tell a worker at once that something became of its jobs: a long prefill appends nothing, and would hear of it only
-- by the next renewal.
local function notify(boot)
  local key = prefix .. 'notice:' .. boot
  if call('EXISTS', key) == 0 then
    call('RPUSH', key, '1')
    call('PEXPIRE', key, NOTICE_MS)
  end
end

-- How long this job is kept once it has ended: as its tenant's jobs are, if that differs.
local some_differ
local function kept_ms(id)
  if some_differ == nil then some_differ = call('EXISTS', retention) == 1 end
  local raw = some_differ and call('HGET', data, id)
  local own = raw and call('HGET', retention, header_of(raw)[3])
  return own and tonumber(string.match(own, '^(%d+)')) or retention_ms
end

-- With storage the persister sets the time of expiry, after its commit (Q10). committed: it made a turn of its session.
local function end_job(id, r, state, reason, now, committed)
  if r[STATE] == 'running' then
    release(id, r)
    if state == 'cancelled' or state == 'expired' then notify(r[WORKER]) end
  elseif r[STATE] == 'queued' then
    unqueue(id, r)
    refund(id, r)
  elseif r[STATE] == 'delayed' then call('ZREM', delayed, id) end
  put('ZREM', deadlines, id)
  forget_strike(id, r)
  -- A reader may be ahead of a server that went back: below its last entry it would never see the end (Q9).
  if r[GEN] < inc then write_rewound(id, r, r[OFFSET], 'the server restarted') end
  r[STATE], r[REASON], r[ENDED] = state, reason, now
  -- The messages of other actors are no jobs: nobody reads a stream of theirs.
  if not string.find(id, '#', 1, true) then
    write_entry(id, r, 'e', cmsgpack.pack({ 1, 'ended', r[OFFSET], state }))
  end
  put('HSET', run, id, encode(r))
  if state == 'dead' then put('ZADD', dead, now, id) end
  if not storage then put('ZADD', ended, now + kept_ms(id), id) end
  if r[SESSION] ~= '' then leave_session(id, r, now, committed) end
  write_journal('end', id, now)
  bump('count:' .. state, 1)
end

-- How one lease ended without an end of its job: what a replay bundle shows of it.
local function log_attempt(id, r, now, how, reason)
  if background then return end
  local raw = call('HGET', attempts, id)
  local ok, log = pcall(cmsgpack.unpack, raw or '')
  -- A log that cannot be read counts as absent: an error amid a script would leave its job in no set.
  if not ok or type(log) ~= 'table' or #log == 0 then log = { 1 } end
  if #log > KEPT_ATTEMPTS then table.remove(log, 2) end
  log[#log + 1] = { r[ATTEMPT], r[WORKER], r[HOST], r[SERVED_BY], r[FINGERPRINT], r[CLAIMED], now, how,
    r[CLAIMED_OFFSET], r[OFFSET], reason }
  call('HSET', attempts, id, cmsgpack.pack(log))
end

-- While a trial has its share: how a job ended under the version that ran it. The oldest of a version make room.
-- first_token_ms: from its lease to the first token; -1 where nobody says.
local function note_outcome(id, r, state, first_token_ms, now)
  if not trial or r[SERVED_BY] == '' or string.find(id, '#', 1, true) then return end
  local key, version = prefix .. 'outcomes', r[SERVED_BY]
  local place = call('HINCRBY', key, version, 1) % KEPT_OUTCOMES
  call('HSET', key, version .. ':' .. int(place), cmsgpack.pack({ 1, id, version, state, first_token_ms, r[OFFSET],
    r[OFFSET] - r[CLAIMED_OFFSET], math.max(0, now - r[CLAIMED]) }))
end

-- A lease ends and its job does not. Its fence is never accepted again.
-- how: 'expired', 'killed' and 'failed' (the engine) are faults; 'parked', 'preempted', 'unnamed' and 'left' are
-- nobody's.
local function take_back(id, r, now, how, reason)
  release(id, r)
  log_attempt(id, r, now, how, reason)
  r[FENCE] = ''
  local gone = how == 'expired' or how == 'killed'
  local fault = gone or how == 'failed'
  if fault then r[FAULTS] = r[FAULTS] + 1 end
  if r[OFFSET] - r[CLAIMED_OFFSET] >= PROGRESS_TOKENS then r[STRIKES] = 0
  elseif fault then
    if gone then
      r[STRUCK] = r[WORKER]
      call('HSET', prefix .. 'struck:' .. r[WORKER], id, r[STRIKES])
    end
    r[STRIKES] = r[STRIKES] + 1
    bump('strikes', 1)
  end
  local why
  if r[STRIKES] >= MAX_STRIKES then why = r[STRIKES] .. ' leases in a row ended without progress'
  elseif r[FAULTS] >= MAX_FAULTS then why = r[FAULTS] .. ' leases ended by a fault' end
  if why and not background then
    r[STATE] = 'parked'
    note_outcome(id, r, 'dead', -1, now)
    end_job(id, r, 'dead', why .. '; the last: ' .. reason, now)
  else
    make_ready(id, r, now)
    put('HSET', run, id, encode(r))
    write_journal('back', id, now)
  end
end

-- Q11: a boot that speaks again was not killed by its jobs. Those that nobody has claimed since lose their strike.
local function forgive(boot, now)
  local key = prefix .. 'struck:' .. boot
  local all = call('HGETALL', key)
  if #all == 0 then return end
  for i = 1, #all, 2 do
    local r = load_run(all[i])
    if r and r[STATE] == 'queued' and r[STRUCK] == boot then
      unqueue(all[i], r)
      r[STRIKES], r[FAULTS], r[STRUCK] = tonumber(all[i + 1]), r[FAULTS] - 1, ''
      make_ready(all[i], r, now)
      save_run(all[i], r)
    end
  end
  call('DEL', key)
end

-- Settlements name (id, fence): a repeat by the same fence gets the same answer. turn: of its session; nil without.
local function finish_lease(id, r, fence, offset, state, document, reason, now, first_token_ms, turn)
  if r and r[FENCE] == fence and (r[STATE] == 'finished' or r[STATE] == 'failed') then return 'done' end
  local no = refusal(r, fence)
  if no then return no end
  if offset ~= r[OFFSET] then return 'gap' end
  if turn and not is_head(r[SESSION], turn.head) then
    -- Its prompt was another conversation's: a server that went back in time, or storage that was put back.
    write_rewound(id, r, 0, 'its session has another head now')
    take_back(id, r, now, 'parked', 'its session has another head now')
    return 'fenced'
  end
  if turn then commit_turn(id, r, turn, now) end
  if document ~= '' then
    call('HSET', result, id, document)
    if not background then call('ZADD', streams, now + stream_retention_ms, id) end
  end
  note_outcome(id, r, state, first_token_ms, now)
  end_job(id, r, state, reason, now, turn ~= nil)
  ends, earliest = ends + 1, math.min(earliest or now, r[CLAIMED])
  if r[OFFSET] > 0 then bump('tokens', r[OFFSET]) end
  return 'done'
end

local function park_lease(id, r, fence, how, reason, now)
  local no = refusal(r, fence)
  if not no then
    r[PARKED] = fence
    take_back(id, r, now, how, reason)
    return 'parked'
  end
  if r and fence ~= '' and r[PARKED] == fence then return 'parked' end
  return no
end

local function drop_job(id)
  call('HDEL', data, id)
  call('HDEL', run, id)
  call('HDEL', result, id)
  call('HDEL', attempts, id)
  call('UNLINK', prefix .. 'events:' .. id)
  call('ZREM', ended, id)
  call('ZREM', dead, id)
  call('ZREM', streams, id)
end
