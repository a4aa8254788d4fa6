-- Q12: a batch job gives its slot to an interactive one, after a quantum of tokens, where its worker is full.
local QUANTUM_TOKENS = 60    -- of one lease; else prefills eat up what preemption gains
local PREEMPT_WAIT_MS = 5000 -- how long a worker that was told may take

-- Whether to tell a full worker to park this job. version: what it serves, with @ before it where it reads the lanes of
-- that alone. As many are told as interactive jobs wait that it could run.
local function to_preempt(id, r, version, now)
  if version == '' or r[BAND] ~= 'batch' or r[OFFSET] - r[CLAIMED_OFFSET] < QUANTUM_TOKENS then return false end
  local own = string.match(version, '^@(.*)$')
  local waiters = call('ZCARD', ready_key(own or version, 'interactive'))
  if not own then waiters = waiters + call('ZCARD', ready_key('any', 'interactive')) end
  local told = call('ZSCORE', preempts, id)
  if waiters == 0 then
    if told then call('ZREM', preempts, id) end
    return false
  end
  if told and tonumber(told) > now - PREEMPT_WAIT_MS then return true end
  call('ZREMRANGEBYSCORE', preempts, '-inf', now - PREEMPT_WAIT_MS)
  if call('ZCARD', preempts) >= waiters then return false end
  call('ZADD', preempts, now, id)
  return true
end
