-- open: what became of comparing this queue with what storage holds (Q2, S8).
-- ARGV: now, step, lineage, text (reason for 'close'; for 'restore' what is restored), highest inc that storage has
--       seen, inc that the caller read (0: any), what tenants have paid as storage has it ('' or a msgpack map: band ->
--       array of V and a map tenant -> paid up to)
-- Steps: 'claim': take this lineage if there is none yet; 'open'; 'close'; 'reconcile': storage has what this server
--        forgot, and it is put in now; 'restore': this Redis lost its data, and they are put in now; 'restored'
-- Reply: {lineage of this queue, state, inc, what is restored ('' for nothing)}
-- Keeps: nobody opens or closes a queue amid a restore but the restore itself. A queue that was opened once is not
-- restored: it holds a history of its own.
local step, theirs, text, paid_up = ARGV[2], ARGV[3], ARGV[4], ARGV[7]
local seen, read = tonumber(ARGV[5]), tonumber(ARGV[6])
local lineage, state = call('HGET', meta, 'lineage'), state_of[2]
local restored = call('HGET', meta, 'restoring')
local now = clock(ARGV[1])
local current = read == 0 or read == inc

local function enter(name)
  state = name
  call('HSET', meta, 'state', name)
end

-- A counter in Redis alone would go back with it (Q2).
local function raise_inc(least)
  if inc < least then
    inc = least
    call('HSET', meta, 'inc', int(inc))
  end
end

-- Whoever paid in either history has paid.
local function take_fair()
  if paid_up == '' then return end
  for band, paid in pairs(cmsgpack.unpack(paid_up)) do
    call('HSET', meta, 'v:' .. band, math.max(paid[1], tonumber(call('HGET', meta, 'v:' .. band)) or 0))
    for tenant, up_to in pairs(paid[2]) do call('ZADD', prefix .. 'fair:' .. band, 'GT', up_to, tenant) end
  end
end

if step == 'claim' then
  if not lineage then
    lineage = theirs
    call('HSET', meta, 'lineage', lineage)
  end
elseif step == 'close' then
  if state ~= 'restoring' then
    enter('closed')
    call('HSET', meta, 'closed_reason', text)
  end
elseif step == 'restore' then
  if state == 'closed' and not lineage then
    lineage, restored = theirs, text
    call('HSET', meta, 'lineage', lineage, 'restoring', restored)
    call('HDEL', meta, 'closed_reason', 'rolled_to')
    -- Always: the journal's entries from before are told by it.
    raise_inc(math.max(now, inc + 1000, seen + 1000))
    enter('restoring')
    take_fair()
  elseif state == 'restoring' and lineage == theirs and restored == text and inc <= seen then raise_inc(seen + 1000)
  end
elseif step == 'reconcile' then
  if current and lineage == theirs and state ~= 'open' and state ~= 'restoring' then
    if inc <= seen then raise_inc(seen + 1000) end
    enter('reconciling')
    take_fair()
  end
elseif current and lineage == theirs and state ~= 'open' and (state == 'restoring') == (step == 'restored') then
  if inc < seen then raise_inc(seen + 1000) end
  enter('open')
  call('HDEL', meta, 'closed_reason', 'rolled_to', 'restoring')
  call('UNLINK', prefix .. 'restored')
  restored, held_up = false, false
  wake_all()
end
return { lineage or '', state, int(inc), restored or '' }
