-- chain: a commit and those before it, the newest first. Changes nothing.
-- ARGV: now, commit, most commits, most bytes of documents (the first one is given in any case)
-- Reply: {where to go on ('': that was all; '?': the commit before the last one is not here), id, document, ...}
local id, left, reply = ARGV[2], tonumber(ARGV[4]), { '' }
for _ = 1, tonumber(ARGV[3]) do
  if id == '' or id == '?' then break end
  local document = call('HGET', turns, id)
  if not document then
    id = '?'
    break
  end
  left = left - #document
  if left < 0 and #reply > 1 then break end
  reply[#reply + 1], reply[#reply + 2] = id, document
  id = string.match(call('HGET', links, id) or ':?', ':(.*)$')
end
reply[1] = id
return reply
