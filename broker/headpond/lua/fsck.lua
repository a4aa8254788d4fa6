-- fsck: look at some run rows, and put back what is neither ended nor in any set (Q15).
-- ARGV: now, cursor ('0' begins), repair ('1' or '0'), rows a call
-- Reply: {next cursor ('0': done), rows looked at, then for each fault: id, what, what was done}
-- Keeps: a job that is where its row says is not touched. Each call is atomic by itself, and may be repeated.
local now, repair = clock(ARGV[1]), ARGV[3] == '1'
if repair and held_up then return not_yet() end
local page = call('HSCAN', run, ARGV[2], 'COUNT', ARGV[4])
local found, looked = {}, 0

local function fault(id, what, remedy, mend)
  if repair then mend() end
  for _, word in ipairs({ id, what, repair and remedy or 'left' }) do found[#found + 1] = word end
end

for i = 1, #page[2], 2 do
  local id, r = page[2][i], decode(page[2][i + 1])
  looked = looked + 1
  if not r then
    fault(id, 'its run row cannot be read', 'left', function() end)
  elseif call('HEXISTS', data, id) == 0 then
    fault(id, 'its request is gone', r[ENDED] > 0 and 'dropped' or 'failed', function()
      if r[ENDED] > 0 then
        drop_job(id)
        write_journal('drop', id, now)
      else
        end_job(id, r, 'failed', 'its request is gone', now)
      end
    end)
  elseif r[STATE] == 'queued' then
    if not call('ZSCORE', ready_key(r[LANE], r[BAND]), id) then
      fault(id, 'queued, and in no lane', 'queued', function()
        make_ready(id, r, now)
        save_run(id, r)
      end)
    end
  elseif r[STATE] == 'delayed' then
    if not call('ZSCORE', delayed, id) then
      fault(id, 'delayed, and due at no time', 'queued', function()
        local header = header_of(call('HGET', data, id))
        r[TAG] = fair_tag(r[BAND], header[3], header[6])
        make_ready(id, r, now)
        save_run(id, r)
        pay()
      end)
    end
  elseif r[STATE] == 'running' then
    if not call('ZSCORE', leases, id) then
      fault(id, 'running, and without a lease', 'queued', function()
        take_back(id, r, now, 'unnamed', 'fsck found no lease')
      end)
    end
  elseif r[ENDED] > 0 then
    if not storage and not call('ZSCORE', ended, id) then
      fault(id, 'ended, and never dropped', 'kept for its retention', function()
        call('ZADD', ended, now + retention_ms, id)
      end)
    end
  else
    fault(id, 'in an unknown state', 'queued', function()
      make_ready(id, r, now)
      save_run(id, r)
    end)
  end
end
flush(now)
local reply = { page[1], looked }
for _, word in ipairs(found) do reply[#reply + 1] = word end
return reply
