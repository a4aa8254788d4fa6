"""Q1, Q2, Q3: errors amid a script, a server that goes back in time, and writers from before."""

from __future__ import annotations

from headpond import operations as ops
from headpond import upkeep
from headpond.errors import QueueError
from headpond.folding import StreamFold
from headpond.operations import Entry
from headpond.wire import TokenRun
from queue_bench import Bench, entry, keep_data, server_as_it_was, tokens
from queue_holes.hole import Ground, Hole, LuaCut, PythonCut


def outcome_of_submit(bench: Bench, entries: list[Entry]) -> str:
    try:
        return ",".join(answer.value for answer in bench.queue.submit(entries))
    except QueueError:
        return "error"


def submit_beside_a_damaged_session(ground: Ground) -> object:
    """Answers of a submit that meets an error, of its repeat without what caused it, and what can be claimed then."""
    bench = ground.bench()
    bench.server.read("SET", bench.keys.session("damaged"), "no list")
    first = outcome_of_submit(bench, [entry("chat/a"), entry("chat/b", session="damaged")])
    again = outcome_of_submit(bench, [entry("chat/a")])
    return first, again, [lease.id for lease in bench.claim().leases]


def read_over_a_rollback(ground: Ground) -> object:
    """What a reader has who was ahead of a server that went back to before the claim: tokens, and the end."""
    bench, valkey = ground.own()
    bench.submit("chat/a")
    kept = keep_data(valkey, ground.folder / "kept")
    fold, had, last = StreamFold(), list[int](), "-"

    def read_on() -> None:
        nonlocal last
        for entry_id, fields in bench.queue.events("chat/a", after=last):
            last = entry_id
            chunk = fold.feed(fields)
            if chunk is not None:
                had[chunk.offset :] = chunk.token_ids

    bench.append(bench.lease("A"), tokens(0, 9))
    read_on()
    server_as_it_was(bench, valkey, kept)
    lease = bench.lease("B")
    bench.append(lease, TokenRun(0, (70, 71), (" x", " y")))
    bench.finish(lease, offset=2)
    read_on()
    return had, fold.ended is not None


def inc_after_a_restart(ground: Ground) -> object:
    """Whether the first command after a restart, of a process that was there before, is in a new incarnation."""
    bench, valkey = ground.own()
    bench.submit("chat/a")
    before = int(bench.queue.meta()["inc"])
    valkey.kill()
    valkey.start()
    return bench.lease().gen >= before + 1000


def open_a_server_that_storage_is_ahead_of(ground: Ground) -> object:
    """Whether a wiped server whose clock is behind begins above all that storage has seen."""
    bench = ground.bench(storage=True)
    seen = int(bench.queue.meta()["inc"])
    bench.raw.delete(*bench.raw.keys(f"{bench.keys.prefix}*"))
    bench.clock.move(-3600)
    bench.server.hello(bench.queue.name)
    bench.queue.run(upkeep.open_queue("claim", lineage="L"))
    bench.queue.run(upkeep.open_queue("open", lineage="L", least_inc=seen))
    return int(bench.queue.meta()["inc"]) > seen


def claim_from_a_wiped_server_with_storage(ground: Ground) -> object:
    """What is claimed of jobs that come before anybody has looked at what storage holds."""
    bench = ground.bench(storage=True)
    bench.raw.delete(*bench.raw.keys(f"{bench.keys.prefix}*"))
    bench.submit("chat/a")
    claimed = bench.claim()
    return claimed.state, [lease.id for lease in claimed.leases]


def write_with_an_old_lease_of_the_same_attempt(ground: Ground) -> object:
    """Statuses of appends by the worker from before a rollback, and by the one whose lease has the same number."""
    bench, valkey = ground.own()
    bench.submit("chat/a")
    kept = keep_data(valkey, ground.folder / "kept")
    old = bench.lease("A")
    server_as_it_was(bench, valkey, kept)
    new = bench.lease("B")
    both = [bench.append(lease, tokens(n, n + 1)) for n, lease in enumerate((old, new))]
    return old.attempt == new.attempt, [outcome.status.value for outcome in both]


def inc_never_written_before(ground: Ground) -> object:
    """Whether ids of a journal rise over restarts of a server whose clock stands still."""
    bench = ground.bench(storage=True)
    bench.submit("chat/a")
    bench.queue.run(ops.hello("another life", storage=True))
    bench.submit("chat/b")
    incs = [int(e.journal_id.partition("-")[0]) for e in bench.queue.journal(limit=10)]
    return len(incs), incs[0] < incs[1]


HOLES = [
    Hole(
        "an error amid a script leaves a job in no set at all",
        "Q1",
        submit_beside_a_damaged_session,
        kept=("error", "new", ["chat/a"]),
        broken=("error", "known", []),
        cuts=(LuaCut("submit.lua", "    fresh[id] = ", "    call('HSET', data, id, batch[i + 1])\n    fresh[id] = "),),
    ),
    Hole(
        "a reader from before a rollback never hears of what came after it",
        "Q2",
        read_over_a_rollback,
        kept=([70, 71], True),
        broken=([0, 1, 2, 3, 4, 5, 6, 7, 8], False),
        cuts=(LuaCut("hello.lua", "inc = math.max(now, inc + 1000)", "inc = inc"),),
    ),
    Hole(
        "a connection that outlives the server writes in the old incarnation",
        "Q2",
        inc_after_a_restart,
        kept=True,
        broken=False,
        cuts=(PythonCut("headpond.connections:Greeter.meet", "if not self.queues:", "if True:"),),
    ),
    Hole(
        "a counter in Redis alone goes back with Redis",
        "Q2",
        open_a_server_that_storage_is_ahead_of,
        kept=True,
        broken=False,
        cuts=(LuaCut("open.lua", "  if inc < seen then raise_inc", "  if false then raise_inc"),),
    ),
    Hole(
        "an incarnation does not rise where the clock stands still",
        "Q2",
        inc_never_written_before,
        kept=(2, True),
        broken=(2, False),
        cuts=(LuaCut("hello.lua", "math.max(now, inc + 1000)", "math.max(now, inc)"),),
    ),
    Hole(
        "workers begin on an empty server before storage was looked at",
        "Q2",
        claim_from_a_wiped_server_with_storage,
        kept=("closed", []),
        broken=("open", ["chat/a"]),
        cuts=(
            LuaCut("hello.lua", "ARGV[3] == '1' and 'closed' or 'open'", "'open'"),
            LuaCut("hello.lua", "    state = 'closed'\n    call(", "    call("),
        ),
    ),
    Hole(
        "two workers hold the same attempt number and both append",
        "Q3",
        write_with_an_old_lease_of_the_same_attempt,
        kept=(True, ["fenced", "gap"]),
        broken=(True, ["appended", "appended"]),
        cuts=(LuaCut("claim.lua", "nonce .. '.' .. #jobs", "int(r[ATTEMPT] + 1)"),),
    ),
]
