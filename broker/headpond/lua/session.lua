-- session: what becomes of a conversation beside its turns (Q14).
-- ARGV: now, step, session, then
--       'fork': commit, its version, commits up to it, name of the new session, whether nothing of the session may wait
--       or run (1 or 0); 'rollback': commit ('' for none), its version, commits up to it; 'delete': nothing
-- Reply: 'ok', also where it was done before; 'gone': no such session; 'busy': a job of it waits or runs; 'taken': there
--        is another session of the new name; 'unknown': no such commit in this session; 'closed': the queue is not open
-- Keeps: nothing moves while a job of the session waits or runs. What a session went back from is kept, so that it can
-- go there again.
local now, step, name = clock(ARGV[1]), ARGV[2], ARGV[3]
local s, busy = read_session(name), call('EXISTS', session_key(name)) == 1
if not open then return 'closed' end

-- Whether a commit is the session's: it leads to its head, or to one that it went back from.
local function is_of(commit)
  local seen = {}
  for _, id in ipairs(needs(s)) do
    while id ~= '' and id ~= '?' and not seen[id] do
      if id == commit then return true end
      seen[id] = true
      id = string.match(call('HGET', links, id) or ':?', ':(.*)$')
    end
  end
  return false
end

if not s then return busy and 'busy' or 'gone' end
local at, version, count = ARGV[4], ARGV[5], tonumber(ARGV[6])
if step == 'fork' then
  if not is_of(at) then return 'unknown' end
  local other, to = ARGV[7], read_session(ARGV[7])
  if to and to.head == at and to.created == to.updated then return 'ok' end
  if call('HEXISTS', sessions, other) == 1 or call('EXISTS', session_key(other)) == 1 then return 'taken' end
  if busy and ARGV[8] == '1' then return 'busy' end
  local forked = new_session(now)
  forked.policy, forked.tenant = s.policy, s.tenant
  move_head(forked, at, version, count, now)
  save_session(other, forked, now)
  return 'ok'
end

if busy then return 'busy' end
if step == 'delete' then
  delete_session(name, now)
  return 'ok'
end
if at == s.head then return 'ok' end
if at ~= '' and not is_of(at) then return 'unknown' end
local left = {}
for _, id in ipairs(s.left) do
  if id ~= at and id ~= s.head then left[#left + 1] = id end
end
if s.head ~= '' then left[#left + 1] = s.head end
if #left > MAX_LEFT then table.remove(left, 1) end
local before = needs(s)
s.left, s.head = left, at
for _, id in ipairs(needs(s)) do hold_commit(id) end
s.version, s.turns, s.skipped = version, count, {}
for _, id in ipairs(before) do let_go(id, now) end
save_session(name, s, now)
return 'ok'
