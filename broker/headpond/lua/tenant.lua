-- tenant: look for the jobs of one tenant, a page of all jobs at a time.
-- ARGV: now, cursor ('0' begins), tenant, about how many jobs a call
-- Reply: {next cursor ('0': done), then ids}
local page, found = call('HSCAN', data, ARGV[2], 'COUNT', ARGV[4]), {}
for i = 1, #page[2], 2 do
  if header_of(page[2][i + 1])[3] == ARGV[3] then found[#found + 1] = page[2][i] end
end
return { page[1], unpack(found) }
