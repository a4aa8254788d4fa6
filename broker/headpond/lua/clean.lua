-- clean: the persister has removed from storage what was purged up to a journal entry.
-- ARGV: now, inc that the persister read under, '<inc>-<seq>'
-- Reply: 'ok', or 'stale' if the server has gone back in time since
-- Keeps: `clean` of meta never goes back.
if int(inc) ~= ARGV[2] then return 'stale' end
local function numbers(id)
  local high, low = string.match(id or '', '^(%d+)-(%d+)$')
  return tonumber(high) or 0, tonumber(low) or 0
end
local old_inc, old_seq = numbers(call('HGET', meta, 'clean') or nil)
local new_inc, new_seq = numbers(ARGV[3])
if new_inc > old_inc or (new_inc == old_inc and new_seq > old_seq) then call('HSET', meta, 'clean', ARGV[3]) end
return 'ok'
