-- Which version the workers of an alias serve: the queue's copy of the alias, and whose turn it is to change.
local LOAD_TRIES = 3         -- processes of one worker that may end while they load a version; then it is refused
local ABSENT_MS = 60000       -- how long a worker without a row may be about to begin, or to say what it loads
local switch, copy = prefix .. 'switch', {}
do
  local all = call('HGETALL', switch)
  for i = 1, #all, 2 do copy[all[i]] = all[i + 1] end
end

local function keep(field, value)
  copy[field] = value
  call('HSET', switch, field, value)
end

local function forget(field)
  if copy[field] then
    copy[field] = nil
    call('HDEL', switch, field)
  end
end

-- The version whose workers read this lane; '' for one that any worker reads.
local function version_of(lane)
  if lane == 'any' then return '' end
  return is_suspect(lane) and string.sub(lane, 9) or lane
end

-- From now on the trial's lane gets no more jobs for its share.
local function stop_share()
  call('HDEL', meta, 'trial')
  trial = false
end

local function is_refused(version) return copy['refused:' .. version] ~= nil end

-- The version that workers go for: the target, or the one before where the target did not load.
local function effective()
  local before = copy.previous
  if is_refused(copy.target) and before ~= '' and not is_refused(before) then return before end
  return copy.target
end

-- The trial; nil without one. One that was refused is none.
local function trial_version()
  local version = copy.trial
  if version == '' or version == effective() or is_refused(version) then return nil end
  return version
end

local function end_turn()
  for _, field in ipairs({ 'turn', 'turn_to', 'turn_until' }) do forget(field) end
end

-- A version that workers began to load, and none came to serve.
local function forget_tries(version)
  for field, value in pairs(copy) do
    if string.sub(field, 1, 6) == 'tries:' and string.match(value, '^([^:]*):') == version then forget(field) end
  end
end

-- A version is a trial no longer: jobs that wait in its lane for its share alone go elsewhere. What does not go at
-- once goes with the sweeps that follow.
local function end_share(version, now)
  if trial == version then stop_share() end
  local _, left = move_back(version, SWEEP_LIMIT, now)
  if left > 0 then call('ZADD', waits, now, 'back:' .. version) end
end

local function refuse_version(version, reason, now)
  if is_refused(version) then return end
  keep('refused:' .. version, reason)
  forget_tries(version)
  if version == copy.trial then end_share(version, now) end
end
