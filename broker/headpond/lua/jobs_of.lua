-- jobs_of: look for the jobs of one tenant or one session, a page of all jobs at a time.
-- ARGV: now, cursor ('0' begins), 'tenant' or 'session', its name, about how many jobs a call
-- Reply: {next cursor ('0': done), then ids}
local page, found = call('HSCAN', data, ARGV[2], 'COUNT', ARGV[5]), {}
local place = ARGV[3] == 'session' and 7 or 3
for i = 1, #page[2], 2 do
  if header_of(page[2][i + 1])[place] == ARGV[4] then found[#found + 1] = page[2][i] end
end
return { page[1], unpack(found) }
