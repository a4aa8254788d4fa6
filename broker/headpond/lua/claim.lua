-- claim: lease the best waiting jobs to one worker (Q3, Q5, Q7).
-- ARGV: now, boot, seq, nonce, slots, fingerprint ('' where tokens do not depend on it), lease_ms (0 leaves it)
-- Reply: {state, next_due ms or -1, now, then for each job: id, fence, attempt, gen, offset, submitted_ms, data entry}
-- Keeps: the same (boot, seq) gets the same leases again, so a lost reply leaves no ghost lease. Each lease has
-- a fence of its own. The wake token of the lane is there exactly when something is left to claim.
local now, boot, seq, slots = clock(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[5])
local held = prefix .. 'held:' .. boot
local jobs = {}
if not open then return { state_of[2], -1, int(now) } end
if tonumber(ARGV[7]) > 0 and tonumber(ARGV[7]) ~= lease_ms then
  -- Whoever claims renews by this lease, also after a wiped server forgot what was registered.
  lease_ms = tonumber(ARGV[7])
  call('HSET', meta, 'lease_ms', ARGV[7])
end
if call('HGET', workers, boot .. ':seq') == seq then
  local all = call('HGETALL', held)
  for i = 1, #all, 2 do
    local its_seq, fence = string.match(all[i + 1], '^(%d+):(.+)$')
    local r = its_seq == seq and load_run(all[i])
    if r and not refusal(r, fence) then jobs[#jobs + 1] = { all[i], r } end
  end
  table.sort(jobs, function(a, b) return a[2][TAG] < b[2][TAG] end)
else
  sweep(now)
  call('HSET', workers, boot .. ':seq', seq)
  for _, band in ipairs(BANDS) do
    local key = ready_key('any', band)
    while #jobs < slots do
      local id = call('ZPOPMIN', key)[1]
      if not id then break end
      local r = load_run(id)
      if r and r[STATE] == 'queued' then
        r[STATE], r[FENCE], r[WORKER] = 'running', ARGV[4] .. '.' .. #jobs, boot
        r[ATTEMPT], r[CLAIMED] = r[ATTEMPT] + 1, now
        if r[OFFSET] > 0 and r[FINGERPRINT] ~= ARGV[6] then
          write_rewound(id, r, 0, 'another version of the model goes on')
        elseif r[GEN] < inc then
          write_rewound(id, r, r[OFFSET], 'the server restarted')
        else
          raise_gen(r)
        end
        r[CLAIMED_OFFSET], r[FINGERPRINT] = r[OFFSET], ARGV[6]
        save_run(id, r)
        call('ZADD', leases, now + lease_ms, id)
        call('HSET', held, id, seq .. ':' .. r[FENCE])
        jobs[#jobs + 1] = { id, r }
      end
    end
  end
  local left = false
  for _, band in ipairs(BANDS) do left = left or call('EXISTS', ready_key('any', band)) == 1 end
  if left then wake('any') else call('DEL', prefix .. 'wake:any') end
end
local reply = { 'open', next_due(now), int(now) }
for _, job in ipairs(jobs) do
  local id, r = job[1], job[2]
  for _, field in ipairs({ id, r[FENCE], r[ATTEMPT], int(r[GEN]), r[OFFSET], int(r[SUBMITTED]) }) do
    reply[#reply + 1] = field
  end
  reply[#reply + 1] = call('HGET', data, id) or ''
end
return reply
