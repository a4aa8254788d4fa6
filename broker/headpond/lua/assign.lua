-- assign: which version a worker of an alias is to serve, what it claims meanwhile, and whether it is its turn to move
-- (Q5). docs/states.md has the rules as a table.
-- ARGV: now, boot, who (deployment/host/instance), version that it serves ('' before it has loaded one), leases that it
--       holds, version that it loads by now ('' if none: with no version served, it asks which one to load)
-- Reply: {version to serve, 'all' or 'own lane', 1 to leave what is served for that version now, seq of the alias}
-- Keeps: of all workers of a model one at a time leaves what it serves. A repeat gets the same answer.
local now, boot, who, version = clock(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
local busy, loading = tonumber(ARGV[5]) > 0, ARGV[6]
if not copy.seq then return { '', 'all', 0, 0 } end

local alive, there = live_workers(now), {}
for _, worker in ipairs(alive) do there[worker.who] = true end
if copy.turn then
  -- Whoever has it says so by asking, or loads in silence; one that has no row is begun again at once, or never.
  local left = tonumber(copy.turn_until) - now
  if left <= 0 or (copy.turn ~= who and not there[copy.turn] and left <= LOADING_MS - ABSENT_MS) then end_turn() end
end
local mine = copy.turn == who
local arrived = mine and version ~= '' and version == copy.turn_to
if arrived then
  end_turn()
  mine = false
end
if version ~= '' then
  local tried = string.match(copy['tries:' .. who] or '', '^([^:]*):')
  if tried == version then forget('tries:' .. who) end
end
-- A visit: a worker of the target serves what waits for an old version. Its time begins when it arrives.
local visits, visits_since = string.match(copy['visit:' .. who] or '', '^([^:]*):(%d+)$')
if visits and visits == version and arrived then
  visits_since = int(now)
  keep('visit:' .. who, version .. ':' .. visits_since)
end
local visiting = visits ~= nil and visits == version

local target, probe = effective(), trial_version()

-- The other workers: those that serve, and by name all that come to serve. One that drains is on its way elsewhere, or
-- leaves.
local serving, coming, live = {}, {}, 1

local function comes(one, to)
  coming[to] = coming[to] or {}
  coming[to][one] = true
end

local known = {}
for _, worker in ipairs(alive) do
  -- A row with this worker's name is its own, or that of the process that it replaces.
  if worker.boot ~= boot and worker.who ~= who then
    local leaves = worker.who == copy.turn and worker.version ~= copy.turn_to
    local works = worker.state == 'ready' or worker.state == 'loading'
    if (works or leaves) and not known[worker.who] then
      known[worker.who] = true
      live = live + 1
    end
    if worker.state == 'ready' then serving[worker.version] = (serving[worker.version] or 0) + 1 end
    if works and not leaves then comes(worker.who, worker.version) end
  end
end
if copy.turn and not mine then comes(copy.turn, copy.turn_to) end
for field, value in pairs(copy) do
  -- It may have asked what to load, and not have said yet that it does.
  local one, tried, at = string.match(field, '^tries:(.*)$'), string.match(value, '^([^:]*):(%d+):')
  if one and tried and one ~= who and now - tonumber(at) < ABSENT_MS then comes(one, tried) end
end

local function count(of)
  local n = 0
  for _ in pairs(coming[of] or {}) do n = n + 1 end
  return n
end

-- Workers that are to serve the trial. One worker alone serves the target, unless there is none.
local wanted = 0
if probe then
  local most = target == '' and live or live - 1
  wanted = math.min(math.max(1, math.floor(live * tonumber(copy.permille) / 1000 + 0.5)), most)
end
local lacks = probe ~= nil and count(probe) < wanted

local function waits_for(of) return has_jobs(of) or has_jobs('suspect@' .. of) end

local function serve_as(of)
  if of == target or of == '' then return 'all' end
  return 'own lane'
end

-- Before it has loaded anything.
if version == '' then
  if loading ~= '' and not is_refused(loading) then
    if mine and copy.turn_to == loading then keep('turn_until', int(now + LOADING_MS)) end
    return { loading, serve_as(loading), 0, tonumber(copy.seq) }
  end
  local field, to = 'tries:' .. who, ''
  for _ = 1, 3 do
    target, probe = effective(), trial_version()
    local unfinished = mine and copy.turn_to or ''
    if lacks and probe then to = probe
    elseif unfinished ~= '' and not is_refused(unfinished) and unfinished ~= probe and waits_for(unfinished) then
      to = unfinished
    else to = target end
    local tried, at, list = string.match(copy[field] or '', '^([^:]*):(%d+):(.*)$')
    local boots, here = {}, false
    if tried == to then
      for each in string.gmatch(list, '[^,]+') do
        boots[#boots + 1] = each
        here = here or each == boot
      end
    end
    if to == '' or here then break end
    if #boots < LOAD_TRIES or is_refused(to) then
      if #boots >= LOAD_TRIES then boots = {} end
      boots[#boots + 1] = boot
      keep(field, to .. ':' .. int(now) .. ':' .. table.concat(boots, ','))
      break
    end
    local place = string.match(who, '^[^/]*/(.*)$') or who
    refuse_version(to, 'its process ended ' .. LOAD_TRIES .. ' times while it loaded version ' .. to .. ' on ' .. place,
      now)
    if mine then
      end_turn()
      mine = false
    end
  end
  if mine and to ~= '' then
    keep('turn_to', to)
    keep('turn_until', int(now + LOADING_MS))
  elseif mine then end_turn() end
  return { to, serve_as(to), 0, tonumber(copy.seq) }
end

local last, away = not serving[version], target ~= '' and serving[target] ~= nil
local work = busy or waits_for(version)

-- What it claims, for as long as it serves this version.
local serve = 'all'
if version ~= target then
  local alone = version == copy.trial or copy['withdrawn:' .. version] or visiting
  -- One that is all there is must end what it runs before it can change: it begins nothing new.
  local ending = busy and live == 1 and target ~= '' and not is_refused(target)
  if alone or (last and work and (away or ending)) then serve = 'own lane' end
end

-- An old version that somebody waits for and nobody serves.
local function to_visit()
  if not away and (busy or has_jobs('any') or has_jobs('suspect')) then return nil end
  local found
  for _, lane in ipairs(call('SMEMBERS', lanes)) do
    local old = version_of(lane)
    local number = string.match(old, '^%d+$') and tonumber(old)
    if number and old ~= target and (old ~= probe or wanted == 0) and not is_refused(old) and count(old) == 0
      and not serving[old] and has_jobs(lane) and not call('ZSCORE', waits, 'back:' .. old)
      and (not found or number < tonumber(found)) then found = old end
  end
  return found
end

-- Where it would rather be; nil if here.
local goal, visit
if version == probe then
  if count(probe) + 1 > wanted then goal = target end
elseif version == target then
  if lacks and away and count(target) + 1 > live - wanted then goal = probe
  else
    visit = to_visit()
    goal = visit
  end
else goal = lacks and probe or target end
if goal and (goal == '' or is_refused(goal)) then goal = nil end

-- The last worker of a version stays until nothing waits for it, but not for ever.
local function stays()
  if visit or not (last and work) then return false end
  local since = math.max(tonumber(copy.since), tonumber(copy['withdrawn:' .. version] or 0))
  if visiting then
    if away or not (has_jobs('any') or has_jobs('suspect')) then return true end
    since = math.max(since, tonumber(visits_since))
  end
  return now < since + version_wait_ms
end

local function is_goal(to)
  if to == '' or to == version or is_refused(to) then return false end
  return to == target or (to == probe and lacks) or (visits == to and waits_for(to))
end

if mine and is_goal(copy.turn_to) then
  -- It was told to move, and is on its way.
  keep('turn_until', int(now + LOADING_MS))
elseif goal and (mine or (not copy.turn and not stays())) then
  mine = true
  keep('turn', who)
  keep('turn_to', goal)
  keep('turn_until', int(now + LOADING_MS))
  if visit then keep('visit:' .. who, visit .. ':' .. int(now)) end
elseif mine then
  end_turn()
  mine = false
end

local marked = string.match(copy['visit:' .. who] or '', '^([^:]*):')
if marked and marked ~= version and not (mine and copy.turn_to == marked) then forget('visit:' .. who) end

-- The trial has its share of the jobs from when a worker serves it until none does.
if version == probe then
  if not mine and wanted > 0 then
    local due = probe .. ':' .. copy.permille
    if not trial or trial ~= probe or share ~= tonumber(copy.permille) then
      call('HSET', meta, 'trial', due)
      call('ZREM', waits, 'back:' .. probe)
    end
  elseif mine and last and trial == probe then end_share(probe, now) end
end
return { mine and copy.turn_to or version, serve, mine and 1 or 0, tonumber(copy.seq) }
