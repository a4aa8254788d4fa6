-- rejournal: what was journaled since this server lost its state gets ids of the incarnation that it has now (S3).
-- ARGV: now, inc that the caller read, journal id after which to go on ('0-0' begins)
-- Reply: the journal id after which to go on; '' at the end; 'stale' if the server went back since, or all is open
-- Keeps: no entry's id is below what storage has, and none tells of a job that storage had another for. Jobs that a
-- lost Redis accepted get their turn after those that it had.
local AT_ONCE = 100
if int(inc) ~= ARGV[2] or not held_up then return 'stale' end
local now = clock(ARGV[1])
local function parts_of(id)
  local high, low = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(high), tonumber(low)
end
local rolled, rolled_seq = parts_of(call('HGET', meta, 'rolled_to') or '0-0')
local page = call('XRANGE', journal, '(' .. ARGV[3], '+', 'COUNT', AT_ONCE)
for _, entry in ipairs(page) do
  local high, low = parts_of(entry[1])
  local fields, named = entry[2], {}
  for i = 1, #fields, 2 do named[fields[i]] = fields[i + 1] end
  if high > rolled or (high == rolled and low > rolled_seq) then
    local outcome = named.k ~= 'commit' and named.k ~= 'session' and call('HGET', prefix .. 'restored', named.i)
    if outcome then call('XDEL', journal, entry[1])
    elseif high < inc then
      local r = held_up == 'restoring' and named.k == 'submit' and load_run(named.i)
      if r and r[STATE] == 'queued' then
        local header = header_of(call('HGET', data, named.i))
        unqueue(named.i, r)
        r[TAG] = fair_tag(r[BAND], header[3], header[6])
        make_ready(named.i, r, now)
        save_run(named.i, r)
      end
      local seq = call('HINCRBY', meta, 'journal_seq', 1)
      call('XADD', journal, int(inc) .. '-' .. int(seq), unpack(fields))
      call('XDEL', journal, entry[1])
    end
  end
end
pay()
return #page == AT_ONCE and page[#page][1] or ''
