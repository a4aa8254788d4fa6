-- Q5, Q6, Q7: where a job waits, in which order, and what wakes who may take it.
local SUSPECT_STRIKES = 2   -- from so many strikes on, a job waits in a suspect lane (Q11)
local FRONT = -1            -- score of what goes before all of its band; tags are 0 or more

local function ready_key(lane, band) return prefix .. 'ready:' .. lane .. ':' .. band end

local function wake(lane)
  if held_up then return end
  local key = prefix .. 'wake:' .. lane
  if call('EXISTS', key) == 0 then call('RPUSH', key, '1') end
end

local function is_suspect(lane) return string.sub(lane, 1, 7) == 'suspect' end

-- The version that alone may run a job: the one it is pinned to, or the one that made its tokens. '' for none.
local function bound_version(r)
  if r[PINNED] ~= '' then return r[PINNED] end
  return r[OFFSET] > 0 and r[SERVED_BY] or ''
end

-- A trial has its share of the jobs that are bound to no version, by their ids: one that comes back goes where it was.
local function lane_of(id, r)
  local version = bound_version(r)
  -- A suspect is no trial's any more: it may be the trial that it dies of.
  if r[STRIKES] >= SUSPECT_STRIKES then return version == '' and 'suspect' or 'suspect@' .. version end
  if version ~= '' then return version end
  if trial and tonumber(string.sub(redis.sha1hex(id), 1, 8), 16) % 1000 < share then return trial end
  return 'any'
end

local function has_jobs(lane)
  return call('EXISTS', ready_key(lane, 'interactive'), ready_key(lane, 'normal'), ready_key(lane, 'batch')) > 0
end

local function wake_all()
  wake('any')
  for _, lane in ipairs(call('SMEMBERS', lanes)) do
    if has_jobs(lane) then wake(lane) end
  end
end

-- A job begins to wait. It keeps its first tag, so one that comes back stands before what was submitted later.
local function make_ready(id, r, now)
  local lane = lane_of(id, r)
  r[STATE], r[LANE] = 'queued', lane
  call('ZADD', ready_key(lane, r[BAND]), r[TAG], id)
  if lane ~= 'any' then
    call('SADD', lanes, lane)
    if is_suspect(lane) then call('ZADD', waits, now + suspect_wait_ms, 's:' .. id) end
    -- One timer a lane, not a job: it asks whether anybody serves the version, first after a lease.
    if lane ~= 'suspect' and not call('ZSCORE', waits, 'gone:' .. lane) then
      call('ZADD', waits, 'NX', now + lease_ms, 'lane:' .. lane)
    end
  end
  -- While a suspect runs, no other can be claimed, so nobody is woken for one.
  if not (suspect and is_suspect(lane)) then wake(lane) end
end

local function unqueue(id, r)
  call('ZREM', ready_key(r[LANE], r[BAND]), id)
  if is_suspect(r[LANE]) then call('ZREM', waits, 's:' .. id) end
end

-- Q6: start-time fair queueing. A job's tag is when its tenant's turn comes in virtual time: not before now (V), and
-- not before the tenant's jobs ahead of it are paid for. `fair` caches what one script has read; pay writes it back.
local fair = {}

local function is_idle(band)
  if call('ZCARD', leases) > 0 or call('EXISTS', ready_key('any', band)) > 0 then return false end
  for _, lane in ipairs(call('SMEMBERS', lanes)) do
    if call('EXISTS', ready_key(lane, band)) > 0 then return false end
  end
  return true
end

local function fair_tag(band, tenant, cost)
  local f = fair[band]
  if not f then
    f = { v = tonumber(call('HGET', meta, 'v:' .. band)) or 0, last = {}, weight = {} }
    fair[band] = f
    local key = prefix .. 'fair:' .. band
    local latest = tonumber(call('ZRANGE', key, -1, -1, 'WITHSCORES')[2])
    if latest and not held_up and is_idle(band) then
      -- All that was asked for has been served. Nobody owes anything, and nobody is remembered.
      f.v = math.max(f.v, latest)
      call('HSET', meta, 'v:' .. band, f.v)
      call('DEL', key)
    end
  end
  if not f.last[tenant] then
    f.last[tenant] = tonumber(call('ZSCORE', prefix .. 'fair:' .. band, tenant)) or 0
    f.weight[tenant] = tonumber(call('HGET', weights, tenant)) or 1
  end
  local start = math.max(f.v, f.last[tenant])
  f.last[tenant] = start + cost / f.weight[tenant]
  return start
end

-- A job that ends before anybody claimed it has cost nothing: its tenant's next one comes so much sooner.
local function refund(id, r)
  local raw = call('HGET', data, id)
  if r[ATTEMPT] > 0 or not raw then return end
  local key, header = prefix .. 'fair:' .. r[BAND], header_of(raw)
  if call('ZSCORE', key, header[3]) then
    call('ZINCRBY', key, -header[6] / (tonumber(call('HGET', weights, header[3])) or 1), header[3])
  end
end

local function pay()
  for band, f in pairs(fair) do
    for tenant, last in pairs(f.last) do call('ZADD', prefix .. 'fair:' .. band, last, tenant) end
  end
end
