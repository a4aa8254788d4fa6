-- append: the tokens of one engine step, for all jobs of a worker (Q9).
-- ARGV: now, version ('' unless all slots of the worker are taken), a msgpack array of, for each job: id, fence, start
--       offset, number of tokens, token entry. One argument and one reply, for a client spends more on many than the
--       server on all of this.
-- Reply: a msgpack array of, for each job, a status and the job's offset: 'appended', also for what is there already;
--        'preempt': appended, and park this job for a more urgent one (Q12); 'gap': send again from that offset;
--        'fenced', 'cancelled' or 'expired' end the writer.
-- Keeps: offsets are contiguous; an entry that is partly there appends only its tail.
local replies, saves = {}, {}
local batch, ids = cmsgpack.unpack(ARGV[3]), {}
for i = 1, #batch, 5 do ids[#ids + 1] = batch[i] end
local rows = call('HMGET', run, unpack(ids))
for n, id in ipairs(ids) do
  local i = n * 5 - 4
  local r, rest = decode_head(rows[n])
  local start, count, payload = batch[i + 2], batch[i + 3], batch[i + 4]
  local no = refusal(r, batch[i + 1])
  local status, offset = no, r and r[OFFSET] or 0
  if not no then
    if r[GEN] < inc then
      write_rewound(id, r, r[OFFSET], 'the server restarted')
      saves[#saves + 1], saves[#saves + 2] = id, encode_head(r) .. rest
    end
    if start > offset then status = 'gap'
    elseif start + count <= offset then status = 'appended'
    else
      if start < offset then
        local entry = cmsgpack.unpack(payload)
        local tail = { entry[1], offset, {}, {} }
        for j = offset - start + 1, count do
          tail[3][#tail[3] + 1], tail[4][#tail[4] + 1] = entry[3][j], entry[4][j]
        end
        payload = cmsgpack.pack(tail)
      end
      r[OFFSET], r[ENTRIES] = start + count, 0
      write_entry(id, r, 't', payload)
      saves[#saves + 1], saves[#saves + 2] = id, encode_head(r) .. rest
      status, offset = 'appended', r[OFFSET]
    end
    if status == 'appended' and r[BAND] == 'batch' and to_preempt(id, r, ARGV[2], clock(ARGV[1])) then
      status = 'preempt'
    end
  end
  replies[#replies + 1], replies[#replies + 2] = status, offset
end
if #saves > 0 then call('HSET', run, unpack(saves)) end
return cmsgpack.pack(replies)
