-- forget: a name is no model's any more, if its document is still the one that was looked at.
-- ARGV: now, model, the document as it was read
-- Reply: 'ok', also where there is none; 'changed' if somebody wrote it since
local raw = call('HGET', models, ARGV[2])
if not raw then return 'ok' end
if raw ~= ARGV[3] then return 'changed' end
call('HDEL', models, ARGV[2])
return 'ok'
