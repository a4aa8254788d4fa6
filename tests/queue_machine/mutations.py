"""Scripts with a rule taken out on purpose. A machine that does not find each of them checks nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from headpond.scripts import Library, Script, read_lua


@dataclass(frozen=True, slots=True)
class Mutation:
    """rule: what the scripts no longer keep. original, changed: text of a script or of a part."""

    rule: str
    original: str
    changed: str

    def load(self, name: str) -> Script:
        """As headpond.scripts.load_script. Scripts in which the rule does not stand are as they were."""
        return _library(self.original, self.changed).script(name)


@cache
def _library(original: str, changed: str) -> Library:
    return Library(lambda path: read_lua(path).replace(original, changed))


MUTATIONS = (
    Mutation(
        "of a session the first job alone is to be had",
        "if call('LINDEX', session_key(r[SESSION]), 0) ~= id then",
        "if false then",
    ),
    Mutation(
        "a session's next job becomes ready when the first one ends",
        "  if first then next_turn(name, now) end",
        "",
    ),
    Mutation(
        "a session's head moves only from where the worker saw it",
        "if turn and not is_head(r[SESSION], turn.head) then",
        "if false then",
    ),
    Mutation("a job that made no commit is told of", "s.skipped[#s.skipped + 1] = id", ""),
    Mutation(
        "a writer is known by its fence",
        "if not r or fence == '' or r[FENCE] ~= fence then return 'fenced' end",
        "if not r or fence == '' then return 'fenced' end",
    ),
    Mutation(
        "a claim leaves a wake token where work is left",
        "if has_jobs(lane) and not (suspect and is_suspect(lane)) then wake(lane)\n    else call(",
        "if false then wake(lane)\n    else call(",
    ),
    Mutation(
        "the end of a suspect's lease wakes whoever waits for the next",
        "if is_suspect(lane) and has_jobs(lane) then wake(lane) end",
        "",
    ),
    Mutation(
        "progress clears strikes",
        ">= PROGRESS_TOKENS then r[STRIKES] = 0",
        ">= PROGRESS_TOKENS then r[STRIKES] = r[STRIKES]",
    ),
    Mutation("the third strike quarantines", "local MAX_STRIKES = 3", "local MAX_STRIKES = 4"),
    Mutation(
        "one suspect runs at a time",
        "if not (suspect and is_suspect(lane)) then\n        local first",
        "if true then\n        local first",
    ),
    Mutation("a boot that speaks again is forgiven", "local all = call('HGETALL', key)", "local all = {}"),
    Mutation("a lost reply of a claim is given again", "call('HGET', workers, boot .. ':seq') == int(seq)", "false"),
    Mutation("what a worker does not name comes back", "and tonumber(its_seq) <= last_seq then", "and false then"),
    Mutation("a claim whose reply is on its way is left alone", "and tonumber(its_seq) <= last_seq then", "then"),
    Mutation("a partly covered append adds its tail alone", "if start < offset then", "if false then"),
    Mutation("an end names the last offset", "if offset ~= r[OFFSET] then return 'gap' end", ""),
    Mutation("tenants take turns", "local start = math.max(f.v, f.last[tenant])", "local start = f.v"),
    Mutation(
        "a returned job keeps its tag",
        "  local lane = lane_of(id, r)\n",
        "  local lane = lane_of(id, r)\n  r[TAG] = r[TAG] + 1\n",
    ),
    Mutation("a server that comes back has a higher incarnation", "inc = math.max(now, inc + 1000)", "inc = inc"),
    Mutation(
        "readers ahead of a server that went back are told so",
        "      write_rewound(id, r, r[OFFSET], 'the server restarted')\n      saves",
        "      saves",
    ),
    Mutation("a pause of the server is nobody's silence", "if back or (late and not graced) then", "if false then"),
    Mutation(
        "a batch job is told to make room",
        "  call('ZADD', preempts, now, id)\n  return true",
        "  return false",
    ),
    Mutation("a job runs for a quantum before it makes room", "local QUANTUM_TOKENS = 60", "local QUANTUM_TOKENS = 6"),
    Mutation("the journal tells of each end", "  write_journal('end', id, now)\n  bump", "  bump"),
    Mutation("the journal tells of each lease that was taken back", "    write_journal('back', id, now)\n", ""),
    Mutation("a stale persister trims nothing", "if int(inc) ~= ARGV[2] then return 'stale' end", ""),
    Mutation(
        "an ended job is dropped after its commit alone",
        "if not storage then put('ZADD', ended",
        "do put('ZADD', ended",
    ),
    Mutation("a job that nobody claimed costs nothing", "    refund(id, r)\n", ""),
    Mutation("an idle band forgets who owes it", "if latest and not held_up and is_idle(band) then", "if false then"),
    Mutation(
        "a worker is told at once that its job ended",
        "    if state == 'cancelled' or state == 'expired' then notify(r[WORKER]) end\n",
        "",
    ),
    Mutation(
        "a slot that was given up is no turn of the batch band",
        "if what == 'preempted' and status == 'parked' then given_up = given_up + 1 end",
        "",
    ),
    Mutation(
        "a pause of the server is no wait for a version",
        "call('ZINCRBY', waits, int(now - last_tick), member)",
        "call('ZINCRBY', waits, 0, member)",
    ),
    Mutation("a claim sees to what is due", "if due ~= 0 and last_tick", "if last_tick"),
    Mutation(
        "a version is waited for while a worker loads its model",
        "(row[8] == 'loading' and LOADING_MS or math.max(SERVING_MS, 2 * lease_ms))",
        "math.max(SERVING_MS, 2 * lease_ms)",
    ),
    Mutation("the time between ends counts no wait for work", "math.min(earliest or now, r[CLAIMED])", "0"),
    Mutation(
        "a trial that is over gives back its share",
        "        if r and bound_version(r) == '' then",
        "        if false then",
    ),
    Mutation(
        "who claims for one lane wakes those who read the others",
        "for _, lane in ipairs({ 'any', 'suspect' }) do",
        "for _, lane in ipairs({}) do",
    ),
    Mutation(
        "who claims for one lane leaves the others alone",
        "if own_lane == 1 then mine = { version, 'suspect@' .. version }",
        "if own_lane == 1 then mine = { 'any', version, 'suspect@' .. version }",
    ),
    Mutation(
        "virtual time does not pass what a claim for one lane does not see",
        "least and math.min(r[TAG], least[r[BAND]] or r[TAG]) or r[TAG]",
        "r[TAG]",
    ),
    Mutation("one worker at a time has the turn", "(mine or (not copy.turn and not stays()))", "(mine or not stays())"),
    Mutation(
        "nothing ends while storage may know more",
        "if held_up then return not_yet() end\nlocal now, id",
        "local now, id",
    ),
    Mutation(
        "time ends nothing while storage may know more", "  if held_up then return end\n  local back", "  local back"
    ),
    Mutation(
        "a fault waits for storage, for it may quarantine", "if held_up and ARGV[2] == 'failed' then", "if false then"
    ),
    Mutation(
        "a death waits for storage, for it may quarantine", "if killed and held_up then return not_yet() end\n", ""
    ),
    Mutation("a worker that died is a fault of its jobs", "how == 'expired' or how == 'killed'", "how == 'expired'"),
    Mutation("a server that went back with storage waits for it", "state = 'reconciling'\n", "state = 'open'\n"),
    Mutation("a copy of an alias is newer than the last", "if not known or seq > known then", "if true then"),
)
