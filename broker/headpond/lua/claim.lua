-- claim: settle leases that are over, then lease the best waiting jobs to one worker (Q3, Q5, Q6, Q7, Q11, Q12).
-- ARGV: now, boot, seq, nonce, slots (0: only settle), version and fingerprint ('' where tokens do not depend on
--       them), host, lease_ms (0 leaves it), number of settlements, then for each of these: id, fence,
--       what ('finished' | 'failed' end the job; 'parked' | 'preempted' | 'faulty' put it back), offset, reason
-- Reply: {state, next_due ms or -1, now, number of settlements, their statuses,
--         then for each job: id, fence, attempt, gen, offset, submitted_ms, data entry}
-- Keeps: the same (boot, seq) gets the same leases again, so a lost reply leaves no ghost lease. Each lease has
-- a fence of its own. The wake token of a lane that was read is there exactly when something is left to claim in it.
local BATCH_EVERY = 8        -- one claimed job in so many is looked for in the batch band first
local now, boot, seq, slots = clock(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[5])
local version, fingerprint, settled = ARGV[6], ARGV[7], tonumber(ARGV[10])
local held = prefix .. 'held:' .. boot
local reply = { open and 'open' or state_of[2], -1, int(now), settled }
for i = 11, 10 + settled * 5, 5 do
  local id, fence, what, offset, reason = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3]), ARGV[i + 4]
  local r = load_run(id)
  if what == 'finished' or what == 'failed' then
    reply[#reply + 1] = finish_lease(id, r, fence, offset, what, '', reason, now)
  else
    reply[#reply + 1] = park_lease(id, r, fence, what == 'faulty' and 'failed' or what, reason, now)
  end
end
if slots == 0 or not open then return reply end

if tonumber(ARGV[9]) > 0 and tonumber(ARGV[9]) ~= lease_ms then
  -- Whoever claims renews by this lease, also after a wiped server forgot what was registered.
  lease_ms = tonumber(ARGV[9])
  call('HSET', meta, 'lease_ms', ARGV[9])
end
forgive(boot, now)
if suspect then
  local r = load_run(suspect)
  -- A row that was damaged or dropped must not keep the other suspects waiting for ever.
  if not r or r[STATE] ~= 'running' then
    suspect = false
    call('HDEL', meta, 'suspect')
  end
end

local jobs = {}
if call('HGET', workers, boot .. ':seq') == seq then
  local all = call('HGETALL', held)
  for i = 1, #all, 2 do
    local its_seq, fence, n = string.match(all[i + 1], '^(%d+):(.+%.(%d+))$')
    local r = its_seq == seq and load_run(all[i])
    if r and not refusal(r, fence) then jobs[#jobs + 1] = { all[i], r, tonumber(n) } end
  end
  table.sort(jobs, function(a, b) return a[3] < b[3] end)
else
  sweep(now, boot)
  call('HSET', workers, boot .. ':seq', seq)
  local mine = version == '' and { 'any', 'suspect' } or { 'any', version, 'suspect', 'suspect@' .. version }
  local counters = call('HMGET', meta, 'picks', 'v:interactive', 'v:normal', 'v:batch')
  local picks = tonumber(counters[1]) or 0
  local v = { interactive = counters[2], normal = counters[3], batch = counters[4] }

  -- The best job of one band over the lanes that this worker reads; taken out of its lane.
  local function take(band)
    local best, best_tag, best_lane
    for _, lane in ipairs(mine) do
      if not (suspect and is_suspect(lane)) then
        local first = call('ZRANGE', ready_key(lane, band), 0, 0, 'WITHSCORES')
        local tag = tonumber(first[2])
        if tag and (not best or tag < best_tag) then best, best_tag, best_lane = first[1], tag, lane end
      end
    end
    if best then call('ZREM', ready_key(best_lane, band), best) end
    return best, best_lane
  end

  while #jobs < slots do
    local order = (picks + 1) % BATCH_EVERY == 0 and { 'batch', 'interactive', 'normal' } or BANDS
    local id, lane
    for _, band in ipairs(order) do
      id, lane = take(band)
      if id then break end
    end
    if not id then break end
    local r = load_run(id)
    if r and r[STATE] == 'queued' then
      picks = picks + 1
      if is_suspect(lane) then
        suspect = id
        call('HSET', meta, 'suspect', id)
        call('ZREM', waits, 's:' .. id)
      end
      forget_strike(id, r)
      v[r[BAND]] = math.max(tonumber(v[r[BAND]]) or 0, r[TAG])
      r[STATE], r[FENCE], r[WORKER], r[HOST] = 'running', ARGV[4] .. '.' .. #jobs, boot, ARGV[8]
      r[ATTEMPT], r[CLAIMED] = r[ATTEMPT] + 1, now
      if r[OFFSET] > 0 and r[FINGERPRINT] ~= fingerprint then
        write_rewound(id, r, 0, 'another version of the model goes on')
      elseif r[GEN] < inc then
        write_rewound(id, r, r[OFFSET], 'the server restarted')
      else
        raise_gen(r)
      end
      r[CLAIMED_OFFSET], r[FINGERPRINT], r[SERVED_BY] = r[OFFSET], fingerprint, version
      save_run(id, r)
      call('ZADD', leases, now + lease_ms, id)
      call('HSET', held, id, seq .. ':' .. r[FENCE])
      jobs[#jobs + 1] = { id, r }
    end
  end
  if #jobs > 0 then
    local set = { 'picks', int(picks) }
    for _, band in ipairs(BANDS) do
      if v[band] then
        set[#set + 1], set[#set + 2] = 'v:' .. band, v[band]
        -- A tenant whose jobs are all paid for is one like any other.
        call('ZREMRANGEBYSCORE', prefix .. 'fair:' .. band, '-inf', v[band])
      end
    end
    call('HSET', meta, unpack(set))
  end
  for _, lane in ipairs(mine) do
    if has_jobs(lane) and not (suspect and is_suspect(lane)) then wake(lane)
    else call('DEL', prefix .. 'wake:' .. lane) end
  end
end
reply[2] = next_due(now)
for _, job in ipairs(jobs) do
  local id, r = job[1], job[2]
  for _, field in ipairs({ id, r[FENCE], r[ATTEMPT], int(r[GEN]), r[OFFSET], int(r[SUBMITTED]) }) do
    reply[#reply + 1] = field
  end
  reply[#reply + 1] = call('HGET', data, id) or ''
end
return reply
