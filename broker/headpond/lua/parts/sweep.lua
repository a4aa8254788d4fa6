-- Q8: due jobs become ready, deadlines end jobs, ended leases come back, retention ends. Run by every claim,
-- renewal, waiting reader and persister, so that it happens with no worker alive.

-- Q5: nobody has served this lane's version for version_wait_ms. Pinned jobs fail; the others begin anew anywhere.
-- Returns how many jobs it moved.
local function give_up_version(lane, version, limit, now)
  local moved, refused = 0, call('HGET', prefix .. 'switch', 'refused:' .. version)
  local reason = 'no worker serves version ' .. version .. ' any more'
  if refused then reason = reason .. ': it did not load: ' .. refused end
  -- Else its share would come back here. Whoever serves the trial next begins it anew.
  if version == trial then
    call('HDEL', meta, 'trial')
    trial = false
  end
  for _, band in ipairs(BANDS) do
    for _, id in ipairs(call('ZRANGE', ready_key(lane, band), 0, limit - moved - 1)) do
      moved = moved + 1
      local r = load_run(id)
      if not r then call('ZREM', ready_key(lane, band), id)
      elseif r[PINNED] ~= '' then
        end_job(id, r, 'failed', reason, now)
      else
        unqueue(id, r)
        -- Its tokens stay until somebody claims it: should the same model come back, they are still good.
        r[SERVED_BY] = ''
        make_ready(id, r, now)
        save_run(id, r)
      end
    end
    if moved >= limit then break end
  end
  return moved
end

local function end_wait(member, limit, now)
  local kind, name = string.match(member, '^(%a+):(.*)$')
  if kind == 's' then
    -- A suspect has waited long enough: it is first of its band (Q11).
    call('ZREM', waits, member)
    local r = load_run(name)
    if r and r[STATE] == 'queued' and is_suspect(r[LANE]) then
      call('ZADD', ready_key(r[LANE], r[BAND]), 'XX', FRONT, name)
    end
    return 1
  end
  call('ZREM', waits, member)
  if kind == 'back' then
    local moved, more = move_back(name, limit, now)
    if more > 0 then call('ZADD', waits, now, member) end
    return math.max(1, moved)
  end
  if not has_jobs(name) then
    call('SREM', lanes, name)
    return 1
  end
  local version, served = is_suspect(name) and string.match(name, '@(.*)$') or name, false
  for _, worker in ipairs(live_workers(now)) do
    served = served or worker.version == version or worker.state == 'loading'
  end
  if served then call('ZADD', waits, now + lease_ms, 'lane:' .. name)
  elseif kind == 'lane' then call('ZADD', waits, now + version_wait_ms, 'gone:' .. name)
  else
    local moved = give_up_version(name, version, limit, now)
    local more = moved
    -- A session's job that fails makes the next one ready, and nobody serves that either.
    while more > 0 and moved < limit and has_jobs(name) do
      more = give_up_version(name, version, limit - moved, now)
      moved = moved + more
    end
    call('ZREM', waits, 'lane:' .. name)
    if has_jobs(name) then call('ZADD', waits, now, 'gone:' .. name) else call('SREM', lanes, name) end
    return moved
  end
  return 1
end

-- The server was away, or its clock went back: no worker can be blamed for silence. However long it lasted, each
-- lease has its whole length again; however far the clock went back, it has no more than that. Nor could a worker of
-- a version have come meanwhile: what ends a wait is as far off as it was.
local function move_leases(now, back)
  local all = call('ZRANGE', leases, 0, -1, 'WITHSCORES')
  for i = 1, #all, 2 do
    call('ZADD', leases, (back and now or math.max(now, tonumber(all[i + 1]))) + lease_ms, all[i])
  end
  for _, member in ipairs(call('ZRANGE', waits, 0, -1)) do call('ZINCRBY', waits, int(now - last_tick), member) end
end

-- speaker: the boot whose call this is. It lives, so a lease of its that just ended is nobody's fault (Q11).
local function sweep(now, speaker)
  -- The first one after that finds that nobody swept for long, and gives each lease and wait its time again.
  if held_up then return end
  local back = last_tick and now < last_tick
  local late = last_tick and now - last_tick > lease_ms / 2
  if back or (late and not graced) then
    move_leases(now, back)
    -- Once, until a worker renews: where only a rare reader looks, the leases of dead workers must end too.
    if late then call('HSET', meta, 'graced', '1') end
  end
  call('HSET', meta, 'last_tick', int(now))
  local left = SWEEP_LIMIT
  local function due(key)
    return left > 0 and call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, left) or {}
  end
  for _, id in ipairs(due(deadlines)) do
    local r = load_run(id)
    left = left - 1
    if r then end_job(id, r, 'expired', 'its deadline passed', now) else call('ZREM', deadlines, id) end
  end
  for _, id in ipairs(due(delayed)) do
    local r, raw = load_run(id), call('HGET', data, id)
    left = left - 1
    call('ZREM', delayed, id)
    if r and raw then
      -- Its turn is reckoned from now: a delay is no place in the queue.
      local header = header_of(raw)
      r[TAG] = fair_tag(r[BAND], header[3], header[6])
      make_ready(id, r, now)
      save_run(id, r)
    end
  end
  pay()
  for _, id in ipairs(due(leases)) do
    local r = load_run(id)
    left = left - 1
    if r and r[WORKER] == speaker then take_back(id, r, now, 'unnamed', 'its worker spoke too late')
    elseif r then take_back(id, r, now, 'expired', 'its worker was silent for a whole lease')
    else call('ZREM', leases, id) end
  end
  for _, member in ipairs(due(waits)) do
    if left > 0 then left = left - end_wait(member, left, now) end
  end
  for _, id in ipairs(due(streams)) do
    left = left - 1
    local r = load_run(id)
    -- Its result holds the same tokens. With storage it stays until the end is committed.
    if r and storage and r[DURABLE] == 0 then call('ZADD', streams, now + stream_retention_ms, id)
    else
      call('ZREM', streams, id)
      call('UNLINK', prefix .. 'events:' .. id)
    end
  end
  for _, id in ipairs(due(ended)) do
    left = left - 1
    drop_job(id)
  end
  for _, name in ipairs(open and due(prefix .. 'lapses') or {}) do
    left = left - 1
    lapse(name, now)
  end
end

-- ms until the next thing that a sweep would do for a claim; -1 without one.
local function next_due(now)
  local soonest
  for _, key in ipairs({ delayed, deadlines, leases, waits }) do
    local first = call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
    if first and (not soonest or tonumber(first) < soonest) then soonest = tonumber(first) end
  end
  return soonest and math.max(0, soonest - now) or -1
end

-- A busy queue is claimed from every moment: there is no need to go through all of it each time.
local SWEEP_EVERY_MS = 20

-- Sweep where something is due or the last sweep is a while ago. Returns what next_due gives afterwards.
local function sweep_if_due(now, speaker)
  local due = next_due(now)
  if due ~= 0 and last_tick and now >= last_tick and now - last_tick < SWEEP_EVERY_MS then return due end
  sweep(now, speaker)
  return next_due(now)
end
