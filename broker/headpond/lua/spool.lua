-- spool: the journal while storage is away (S6).
-- ARGV: now, step, then for 'back': nothing; 'away': since when, ms; 'take': inc that the persister read under, id of its spool, last
--       '<inc>-<seq>' that is synced there, JSON of what the spool holds now (headpond.spooled); 'replayed': id of the
--       spool, last that it held; 'give-up': id of the spool
-- Reply: 'ok'; 'stale' if the server has gone back in time since; 'other' if another spool is named. Nothing is done
--        where it is not 'ok'.
-- Keeps: entries leave for one host's disk alone, which meta names from then on, until all that it has is in storage.
--        What is given up is written to the journal anew, from all that the queue holds and storage may lack.
local now, step = clock(ARGV[1]), ARGV[2]
local spooled = call('HGET', meta, 'spool')
local owner = spooled and cjson.decode(spooled)
if step == 'away' then
  call('HSETNX', meta, 'storage_away', int(tonumber(ARGV[3])))
elseif step == 'back' then
  call('HDEL', meta, 'storage_away')
elseif step == 'take' then
  if int(inc) ~= ARGV[3] then return 'stale' end
  if owner and owner.id ~= ARGV[4] then return 'other' end
  call('HSET', meta, 'spool', ARGV[6])
  local high, low = string.match(ARGV[5], '^(%d+)-(%d+)$')
  call('XTRIM', journal, 'MINID', high .. '-' .. int(tonumber(low) + 1))
elseif step == 'replayed' then
  if owner and (owner.id ~= ARGV[3] or owner.last ~= ARGV[4]) then return 'other' end
  call('HDEL', meta, 'spool')
else
  if not owner then return 'ok' end
  if owner.id ~= ARGV[3] then return 'other' end
  -- Who waits for storage may wait for an entry that is gone: a higher incarnation ends that wait.
  inc = math.max(now, inc + 1000)
  call('HSET', meta, 'inc', int(inc))
  call('HDEL', meta, 'spool')
  for _, id in ipairs(call('HKEYS', turns)) do write_journal('commit', id, now) end
  for _, name in ipairs(call('HKEYS', sessions)) do
    write_journal('session', name, now, call('HGET', sessions, name))
  end
  for _, id in ipairs(call('HKEYS', data)) do
    local r = load_run(id)
    local over = r and r[ENDED] > 0
    if not (over and r[DURABLE] == 1) then
      write_journal('submit', id, now)
      if over then write_journal('end', id, now) end
    end
  end
end
return 'ok'
