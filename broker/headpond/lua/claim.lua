-- claim: settle leases that are over, then lease the best waiting jobs to one worker (Q3, Q5, Q6, Q7, Q11, Q12).
-- ARGV: now, a msgpack array: boot, seq, nonce, slots (0: only settle), version and fingerprint ('' where tokens do not
--       depend on them), host, lease_ms (0 leaves it), why jobs with tokens begin anew here ('' if they go on), whether
--       only lanes of its version are read (1 or 0), then for each settlement: id, fence, what ('finished' | 'failed'
--       end the job; 'parked' | 'preempted' | 'faulty' put it back), offset, reason
-- Reply: a msgpack array: state, next_due ms or -1, now, the statuses of all settlements as one array, then for each
--        job: id, fence, attempt, gen, offset, submitted_ms, data entry
-- Keeps: the same (boot, seq) gets the same leases again, so a lost reply leaves no ghost lease. Each lease has
-- a fence of its own. The wake token of a lane that was read is there exactly when something is left to claim in it.
local BATCH_EVERY = 8        -- one claimed job in so many is looked for in the batch band first
local now, args = clock(ARGV[1]), cmsgpack.unpack(ARGV[2])
local boot, seq, nonce, slots, version, fingerprint, host, lasts, anew, own_lane = unpack(args, 1, 10)
local held, settled = prefix .. 'held:' .. boot, {}
for i = 13, held_up and #args or 0, 5 do
  -- A settlement that ends its job, or may.
  if args[i] ~= 'parked' and args[i] ~= 'preempted' then return not_yet() end
end
local given_up = 0           -- slots that a batch job has just left for a more urgent one
if #args > 10 then
  local ids = {}
  for i = 11, #args, 5 do ids[#ids + 1] = args[i] end
  local rows = load_runs(ids)
  collect()
  for i = 11, #args, 5 do
    local id, fence, what, offset, reason = unpack(args, i, i + 4)
    if what == 'finished' or what == 'failed' then
      local status = finish_lease(id, rows[id], fence, offset, what, '', reason, now, -1)
      -- Its worker lives and will send what is missing: the sweep below must not end its lease.
      -- Never shorter: where a sweep has just given all leases more (Q8), a repeat must leave that.
      if status == 'gap' then call('ZADD', leases, 'GT', now + lease_ms, id) end
      settled[#settled + 1] = status
    else
      local status = park_lease(id, rows[id], fence, what == 'faulty' and 'failed' or what, reason, now)
      if what == 'preempted' and status == 'parked' then given_up = given_up + 1 end
      settled[#settled + 1] = status
    end
  end
  write()
end
local reply = { open and 'open' or state_of[2], -1, now, settled }
if slots == 0 or not open then
  -- A worker that holds nothing renews seldom: its claims say that it lives, also where there is nothing to have.
  if slots > 0 then call('HSET', workers, boot .. ':seen', int(now)) end
  flush(now)
  return cmsgpack.pack(reply)
end

if lasts > 0 and lasts ~= lease_ms then
  -- Whoever claims renews by this lease, also after a wiped server forgot what was registered.
  lease_ms = lasts
  call('HSET', meta, 'lease_ms', int(lasts))
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

local jobs, due = {}, nil
if call('HGET', workers, boot .. ':seq') == int(seq) then
  local all = call('HGETALL', held)
  for i = 1, #all, 2 do
    local its_seq, fence, n = string.match(all[i + 1], '^(%d+):(.+%.(%d+))$')
    local r = tonumber(its_seq) == seq and load_run(all[i])
    if r and not refusal(r, fence) then jobs[#jobs + 1] = { all[i], r, tonumber(n) } end
  end
  table.sort(jobs, function(a, b) return a[3] < b[3] end)
else
  due = sweep_if_due(now, boot)
  call('HSET', workers, boot .. ':seq', int(seq), boot .. ':seen', int(now))
  -- Other lanes than `any` are named in the set `lanes` while they hold jobs.
  local mine = { 'any' }
  if own_lane == 1 then mine = { version, 'suspect@' .. version }
  elseif call('EXISTS', lanes) == 1 then
    mine = version == '' and { 'any', 'suspect' } or { 'any', version, 'suspect', 'suspect@' .. version }
  end
  local counters = call('HMGET', meta, 'picks', 'v:interactive', 'v:normal', 'v:batch')
  local picks = tonumber(counters[1]) or 0
  local v = { interactive = counters[2], normal = counters[3], batch = counters[4] }

  -- Virtual time does not pass what waits where this worker does not look: who comes next would stand behind it (Q6).
  local least
  if own_lane == 1 then
    least = {}
    for _, band in ipairs(BANDS) do
      least[band] = tonumber(call('ZRANGE', ready_key('any', band), 0, 0, 'WITHSCORES')[2])
    end
  end

  -- The best job of one band over the lanes that this worker reads; taken out of its lane.
  local function take(band)
    if #mine == 1 then return call('ZPOPMIN', ready_key('any', band))[1], 'any' end
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

  -- Ids to lease, the best first, with the lane that each came from.
  local function take_many(wanted)
    local ids, from = {}, {}
    -- The usual case in one command a band: one lane, and nothing that waits for its share.
    if #mine == 1 and call('EXISTS', ready_key('any', 'batch')) == 0 then
      for _, band in ipairs({ 'interactive', 'normal' }) do
        if #ids < wanted then
          local popped = call('ZPOPMIN', ready_key('any', band), wanted - #ids)
          for i = 1, #popped, 2 do ids[#ids + 1], from[popped[i]] = popped[i], 'any' end
        end
      end
      picks = picks + #ids
      return ids, from
    end
    while #ids < wanted do
      -- A slot that was given up is no turn of the batch band: the job that left it would have it back at once (Q12).
      local batch_first = given_up == 0 and (picks + 1) % BATCH_EVERY == 0
      local bands = batch_first and { 'batch', 'interactive', 'normal' } or BANDS
      local id, lane
      for _, band in ipairs(bands) do
        id, lane = take(band)
        if id then break end
      end
      if not id then break end
      ids[#ids + 1], from[id] = id, lane
      if given_up > 0 then given_up = given_up - 1 else picks = picks + 1 end
      if is_suspect(lane) then suspect = id end
    end
    return ids, from
  end

  local ids, from = take_many(slots)
  local rows = load_runs(ids)
  collect()
  for _, id in ipairs(ids) do
    local r = rows[id]
    if r and r[STATE] == 'queued' then
      if is_suspect(from[id]) then
        put('HSET', meta, 'suspect', id)
        put('ZREM', waits, 's:' .. id)
      end
      forget_strike(id, r)
      local tag = least and math.min(r[TAG], least[r[BAND]] or r[TAG]) or r[TAG]
      v[r[BAND]] = math.max(tonumber(v[r[BAND]]) or 0, tag)
      r[STATE], r[FENCE], r[WORKER], r[HOST] = 'running', nonce .. '.' .. #jobs, boot, host
      r[ATTEMPT], r[CLAIMED] = r[ATTEMPT] + 1, now
      if r[OFFSET] > 0 and r[FINGERPRINT] ~= fingerprint then
        write_rewound(id, r, 0, 'another version of the model goes on')
      elseif r[OFFSET] > 0 and anew ~= '' then
        -- Here and nowhere later: a server that goes back in time forgets this with the claim, so that no writer is
        -- left whose tokens from 0 on would pass for a repeat of those before.
        write_rewound(id, r, 0, anew)
      elseif r[GEN] < inc then
        write_rewound(id, r, r[OFFSET], 'the server restarted')
      else
        raise_gen(r)
      end
      r[CLAIMED_OFFSET], r[FINGERPRINT], r[SERVED_BY] = r[OFFSET], fingerprint, version
      put('HSET', run, id, encode(r))
      put('ZADD', leases, now + lease_ms, id)
      put('HSET', held, id, int(seq) .. ':' .. r[FENCE])
      jobs[#jobs + 1] = { id, r }
    end
  end
  write()
  if suspect and from[suspect] and not rows[suspect] then suspect = false end
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
  -- It may have been woken by a lane that it read until a moment ago: somebody else must be.
  if own_lane == 1 then
    for _, lane in ipairs({ 'any', 'suspect' }) do
      if not (suspect and is_suspect(lane)) and has_jobs(lane) then wake(lane) end
    end
  end
end
flush(now)
due = due or next_due(now)
reply[2] = #jobs > 0 and (due < 0 or due > lease_ms) and lease_ms or due
if #jobs > 0 then
  local ids = {}
  for n, job in ipairs(jobs) do ids[n] = job[1] end
  local bodies = call('HMGET', data, unpack(ids))
  for n, job in ipairs(jobs) do
    local r = job[2]
    for _, field in ipairs({ job[1], r[FENCE], r[ATTEMPT], r[GEN], r[OFFSET], r[SUBMITTED], bodies[n] or '' }) do
      reply[#reply + 1] = field
    end
  end
end
return cmsgpack.pack(reply)
