-- switch: bring the queue's copy of an alias up to date (Q5, S7).
-- ARGV: now, seq of the alias, target, previous ('' for none), trial ('' for none), its share in permille
-- Reply: {seq of the copy now, jobs that may still wait in lanes of trials that are over}
-- Keeps: the copy never goes back: a call with a lower seq changes nothing. One with the same seq moves on what waits
-- in lanes of trials that are over, at most SWEEP_LIMIT jobs a call, and changes nothing else.
local now, seq = clock(ARGV[1]), tonumber(ARGV[2])
local target, previous, new_trial, permille = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local known = tonumber(copy.seq)
if known and seq < known then return { known, 0 } end
if not known or seq > known then
  local old_trial, over = copy.trial or '', {}
  if new_trial == target then new_trial, permille = '', '0' end
  -- Who is named anew is tried anew.
  for _, version in ipairs({ target ~= copy.target and target or '', new_trial ~= old_trial and new_trial or '' }) do
    if version ~= '' then
      forget('refused:' .. version)
      forget_tries(version)
    end
  end
  if target ~= copy.target then keep('since', int(now)) end
  -- What waits in their lanes for the share of a trial is for others now, also of one that had become the target.
  for _, version in ipairs({ old_trial, copy.target or '' }) do
    if version ~= '' and version ~= target and version ~= new_trial then
      call('ZADD', waits, now, 'back:' .. version)
    end
  end
  if new_trial ~= '' and new_trial ~= old_trial then call('DEL', prefix .. 'outcomes') end
  for field, value in pairs({ seq = int(seq), target = target, previous = previous, trial = new_trial,
    permille = permille }) do keep(field, value) end
  -- What is remembered of versions that nobody serves any more, and of workers that are gone.
  local served, there = {}, {}
  for _, worker in ipairs(live_workers(now)) do served[worker.version], there[worker.who] = true, true end
  for field, value in pairs(copy) do
    local kind, name = string.match(field, '^(%a+):(.*)$')
    local tried = kind == 'tries' and tonumber(string.match(value, '^[^:]*:(%d+):'))
    if (kind == 'withdrawn' and (not served[name] or name == target or name == new_trial))
      or (kind == 'visit' and not there[name]) or (tried and now - tried >= LOADING_MS) then over[#over + 1] = field end
  end
  for _, field in ipairs(over) do forget(field) end
  for _, version in ipairs({ target, new_trial }) do call('ZREM', waits, 'back:' .. version) end
  if old_trial ~= '' and old_trial ~= new_trial then
    if trial == old_trial then stop_share() end
    if old_trial ~= target then keep('withdrawn:' .. old_trial, int(now)) end
  elseif trial and trial == new_trial then
    share = tonumber(permille)
    call('HSET', meta, 'trial', trial .. ':' .. permille)
  end
end
local room, left = SWEEP_LIMIT, 0
for _, member in ipairs(call('ZRANGE', waits, 0, -1)) do
  local version = string.match(member, '^back:(.*)$')
  if version then
    local moved, more = move_back(version, room, now)
    room, left = room - moved, left + more
    if more == 0 then call('ZREM', waits, member) end
  end
end
return { tonumber(copy.seq), left }
