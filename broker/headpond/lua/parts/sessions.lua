-- Q14: conversations. The jobs of one session run in order: `session:<s>` lists those that have not ended, and its first
-- alone is to be had. Each commit is one turn, never changes, and names the one before; a session's row names its head.
-- `links` counts who needs a commit: the commits after it, and sessions whose head it is or was when they went back.
local MAX_SKIPPED = 8        -- ids of jobs that ended without a commit since the head, which its next turn tells of
local MAX_LEFT = 32          -- heads that a session went back from, and that are kept

local LOOK_AGAIN_MS = 86400000  -- how often a session that is kept for ever is looked at, for that may have changed

local sessions, turns, links = prefix .. 'sessions', prefix .. 'turns', prefix .. 'links'

local function new_session(now)
  return { head = '', version = '', policy = '', tenant = '', turns = 0, created = now, updated = now, skipped = {},
    left = {} }
end

-- How long a session is kept after its last change, in ms; 0: for ever.
local function session_retention(tenant)
  local own = call('HGET', prefix .. 'retention', tenant)
  return tonumber(own and string.match(own, '(%d+)$') or call('HGET', meta, 'session_retention_ms') or 0)
end

-- When a sweep is to look whether a session is over.
local function lapse_at(name, s, now)
  local kept = session_retention(s.tenant)
  call('ZADD', prefix .. 'lapses', kept > 0 and math.max(s.updated + kept, now + lease_ms) or now + LOOK_AGAIN_MS, name)
end

local function save_session(name, s, now)
  s.updated = now
  local row = cmsgpack.pack({ 1, s.head, s.version, s.policy, s.tenant, s.turns, s.created, s.updated, s.skipped, s.left })
  call('HSET', sessions, name, row)
  call('ZADD', prefix .. 'changed', now, name)
  lapse_at(name, s, now)
  write_journal('session', name, now, row)
end

-- One more needs this commit. `?`: it is not here (yet), so nobody knows its parent.
local function hold_commit(id)
  if id == '' then return end
  local refs, parent = string.match(call('HGET', links, id) or '0:?', '^(%d+):(.*)$')
  call('HSET', links, id, int(refs + 1) .. ':' .. parent)
end

-- One fewer needs it. stays: also if nobody does.
local function let_go(id, now, stays)
  while id ~= '' and id ~= '?' do
    local refs, parent = string.match(call('HGET', links, id) or '1:?', '^(%d+):(.*)$')
    if tonumber(refs) > 1 or stays then
      call('HSET', links, id, int(math.max(0, refs - 1)) .. ':' .. parent)
      return
    end
    call('HDEL', links, id)
    if call('HDEL', turns, id) == 1 then write_journal('commit', id, now) end
    id = parent
  end
end

-- A commit, whether or not it is there. parent: '' for none.
local function put_turn(id, parent, document)
  if call('HSETNX', turns, id, document) == 0 then return end
  local refs = string.match(call('HGET', links, id) or '0:?', '^(%d+):')
  call('HSET', links, id, refs .. ':' .. parent)
  hold_commit(parent)
end

local function needs(s)
  local ids = { s and s.head or '' }
  for _, id in ipairs(s and s.left or {}) do ids[#ids + 1] = id end
  return ids
end

-- A session as storage has it; row '': it was deleted. Takes nothing away that another record may still name.
local function put_session(name, row, now)
  local before = needs(read_session(name))
  if row == '' then
    call('HDEL', sessions, name)
    call('ZREM', prefix .. 'changed', name)
    call('ZREM', prefix .. 'lapses', name)
  else
    call('HSET', sessions, name, row)
    local s = read_session(name)
    for _, id in ipairs(needs(s)) do hold_commit(id) end
    call('ZADD', prefix .. 'changed', s and s.updated or now, name)
    if s then lapse_at(name, s, now) end
  end
  for _, id in ipairs(before) do let_go(id, now, true) end
end

-- A commit that storage says is gone.
local function drop_turn(id, now)
  local parent = string.match(call('HGET', links, id) or ':', ':(.*)$')
  call('HDEL', links, id)
  if call('HDEL', turns, id) == 1 then let_go(parent, now, true) end
end

local function delete_session(name, now)
  local s = read_session(name)
  call('HDEL', sessions, name)
  call('ZREM', prefix .. 'changed', name)
  call('ZREM', prefix .. 'lapses', name)
  write_journal('session', name, now, '')
  for _, id in ipairs(needs(s)) do let_go(id, now) end
end

-- A sweep looks at a session: its retention is over, or not yet. One in use is not over.
local function lapse(name, now)
  local s = read_session(name)
  if not s then
    call('ZREM', prefix .. 'lapses', name)
    return
  end
  local kept = session_retention(s.tenant)
  if kept > 0 and s.updated + kept <= now and call('EXISTS', session_key(name)) == 0 then delete_session(name, now)
  else lapse_at(name, s, now) end
end

-- The head moves. A row that is there and cannot be read is left as it is: it may be mended.
local function move_head(s, to, version, count, now)
  local before = s.head
  s.head, s.version, s.turns, s.skipped = to, version, count, {}
  hold_commit(to)
  let_go(before, now)
end

-- Whether a session still has the head that a turn was made on.
local function is_head(name, head)
  local s = read_session(name)
  return (s and s.head or '') == head
end

-- A turn: its commit, and the session's new head. turn.told: the skipped jobs that it tells of.
local function commit_turn(id, r, turn, now)
  local s = read_session(r[SESSION]) or new_session(now)
  put_turn(turn.id, turn.parent, turn.document)
  write_journal('commit', turn.id, now)
  local header, told, skipped = header_of(call('HGET', data, id)), {}, {}
  for _, job in ipairs(turn.told) do told[job] = true end
  for _, job in ipairs(s.skipped) do
    if not told[job] then skipped[#skipped + 1] = job end
  end
  move_head(s, turn.id, turn.version, turn.count, now)
  s.skipped, s.tenant, s.policy = skipped, header[3], turn.policy
  save_session(r[SESSION], s, now)
end

-- The first of a session's jobs that has not ended becomes ready.
local function next_turn(name, now)
  local key = session_key(name)
  local id = call('LINDEX', key, 0)
  while id do
    local r = load_run(id)
    if r and r[ENDED] == 0 then
      if r[STATE] == 'queued' then
        make_ready(id, r, now)
        save_run(id, r)
      end
      return
    end
    -- Its row was damaged or dropped. The others must not wait for it for ever.
    call('LPOP', key)
    call('ZREM', waiting, id)
    id = call('LINDEX', key, 0)
  end
end

-- A job of a session has ended. committed: it made a turn; else its session goes on from its last good commit.
local function leave_session(id, r, now, committed)
  local name = r[SESSION]
  if not committed then
    local s = read_session(name)
    if s or call('HEXISTS', sessions, name) == 0 then
      s = s or new_session(now)
      if s.tenant == '' then s.tenant = header_of(call('HGET', data, id))[3] end
      s.skipped[#s.skipped + 1] = id
      if #s.skipped > MAX_SKIPPED then table.remove(s.skipped, 1) end
      save_session(name, s, now)
    end
  end
  local first = call('LINDEX', session_key(name), 0) == id
  call('LREM', session_key(name), 1, id)
  call('ZREM', waiting, id)
  if first then next_turn(name, now) end
end

-- Puts a job where it belongs in its session, by the order of submits. A first one that comes after it waits again.
local function enlist(id, r, now)
  local key = session_key(r[SESSION])
  local all = call('LRANGE', key, 0, -1)
  local before
  for _, other in ipairs(all) do
    if other == id then return end
    local o = not before and load_run(other)
    if o and o[PLACE] > r[PLACE] and o[STATE] ~= 'running' then before = other end
  end
  if not before then
    call('RPUSH', key, id)
    return
  end
  call('LINSERT', key, 'BEFORE', before, id)
  if before == all[1] then
    local o = load_run(before)
    if o[STATE] == 'queued' then
      unqueue(before, o)
      make_ready(before, o, now)
      save_run(before, o)
    end
  end
end
