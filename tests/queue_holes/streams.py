"""Q9, Q10: entries of a stream, and how a job ends."""

from __future__ import annotations

from headpond import JobState
from headpond.errors import QueueError
from headpond.folding import fold_tokens
from headpond.operations import LeaseStatus
from headpond.wire import Ended, TokenRun
from queue_bench import RETENTION_S, keep_data, server_as_it_was, tokens
from queue_holes.hole import Ground, Hole, LuaCut


def cancel_amid_a_stream(ground: Ground) -> object:
    """What a cancel answers, and whether the stream has an end, where the job has tokens already."""
    bench = ground.bench()
    bench.submit("chat/a")
    bench.append(bench.lease(), tokens(0, 3))
    try:
        answer: object = bench.queue.cancel("chat/a")
    except QueueError:
        answer = "error"
    return answer, any(isinstance(event, Ended) for _, event in bench.events("chat/a"))


def append_after_a_rollback(ground: Ground) -> object:
    """Status of the next append of a writer whose last one the server has lost, and the tokens of the job then."""
    bench, valkey = ground.own()
    bench.submit("chat/a")
    lease = bench.lease()
    bench.append(lease, tokens(0, 2))
    kept = keep_data(valkey, ground.folder / "kept")
    bench.append(lease, tokens(2, 4))
    server_as_it_was(bench, valkey, kept)
    outcome = bench.append(lease, tokens(4, 6))
    return outcome.status, outcome.offset, fold_tokens(bench.queue.events("chat/a")).ids


def end_for_a_reader_ahead(ground: Ground) -> object:
    """Whether a reader hears the end of a job that was cancelled after the server lost what the reader has."""
    bench, valkey = ground.own()
    bench.submit("chat/a")
    lease = bench.lease()
    kept = keep_data(valkey, ground.folder / "kept")
    bench.append(lease, tokens(0, 9))
    last = bench.queue.last_event("chat/a")
    server_as_it_was(bench, valkey, kept)
    bench.queue.cancel("chat/a")
    return [sorted(fields) for _, fields in bench.queue.events("chat/a", after=last)]


def append_again_after_a_lost_reply(ground: Ground) -> object:
    """The tokens of a job whose writer sends again what is there, once whole and once with more behind it."""
    bench = ground.bench()
    bench.submit("chat/a")
    lease = bench.lease()
    for run in (tokens(0, 3), tokens(0, 3), tokens(1, 5)):
        bench.append(lease, run)
    return [event.ids for _, event in bench.events("chat/a") if isinstance(event, TokenRun)], bench.row("chat/a").offset


def finish_after_a_rollback(ground: Ground) -> object:
    """Status of a finish whose last tokens the server has lost, and whether the job has ended without them."""
    bench, valkey = ground.own()
    bench.submit("chat/a")
    lease = bench.lease()
    bench.append(lease, tokens(0, 2))
    kept = keep_data(valkey, ground.folder / "kept")
    bench.append(lease, tokens(2, 4))
    server_as_it_was(bench, valkey, kept)
    outcome = bench.finish(lease, offset=4)
    return outcome.status, outcome.offset, bench.row("chat/a").state


def cancel_a_running_job(ground: Ground) -> object:
    """What the writer's finish is answered after a cancel, and how the job has ended."""
    bench = ground.bench()
    bench.submit("chat/a")
    lease = bench.lease()
    bench.queue.cancel("chat/a")
    return bench.finish(lease, offset=0).status, bench.row("chat/a").state


def cancel_a_job_of_a_dead_worker(ground: Ground) -> object:
    """State of a cancelled job whose worker is dead, and what another worker claims after its lease."""
    bench = ground.bench()
    bench.submit("chat/a")
    bench.lease()
    bench.queue.cancel("chat/a")
    bench.let_leases_end()
    return bench.row("chat/a").state, [lease.id for lease in bench.claim("B").leases]


def keep_until_committed(ground: Ground) -> object:
    """What is still there of a job whose end storage does not have, long after its retention: row, stream, tokens."""
    bench = ground.bench(storage=True)
    bench.submit("chat/a")
    lease = bench.lease()
    bench.append(lease, tokens(0, 2))
    bench.queue.finish(lease.id, lease.fence, offset=2, state=JobState.FINISHED, result=b"r")
    for _ in range(3):
        bench.clock.move(RETENTION_S * 10)
        bench.queue.tick()
    return [
        bench.queue.run_row("chat/a") is not None,
        bool(bench.queue.events("chat/a")),
        bench.queue.result("chat/a") is not None,
    ]


HOLES = [
    Hole(
        "an end at the offset of the last token is refused",
        "Q9",
        cancel_amid_a_stream,
        kept=(JobState.CANCELLED, True),
        broken=("error", False),
        cuts=(LuaCut("parts/streams.lua", "r[OFFSET] * 16 + r[ENTRIES])", "r[OFFSET])"),),
    ),
    Hole(
        "tokens that the server lost are missing from the stream",
        "Q9",
        append_after_a_rollback,
        kept=(LeaseStatus.GAP, 2, (0, 1)),
        broken=(LeaseStatus.APPENDED, 6, (0, 1, 4, 5)),
        cuts=(LuaCut("append.lua", "if start > offset then status = 'gap'\n    elseif", "if"),),
    ),
    Hole(
        "a reader who is ahead of a server that went back never hears the end",
        "Q9",
        end_for_a_reader_ahead,
        kept=[[b"e"], [b"e"]],
        broken=[],
        cuts=(
            LuaCut(
                "parts/ends.lua",
                "if r[GEN] < inc then write_rewound(id, r, r[OFFSET], 'the server restarted') end",
                "",
            ),
        ),
    ),
    Hole(
        "tokens that were sent again stand in the stream twice",
        "Q9",
        append_again_after_a_lost_reply,
        kept=([(0, 1, 2), (3, 4)], 5),
        broken=([(0, 1, 2), (1, 2, 3, 4)], 5),
        cuts=(LuaCut("append.lua", "if start < offset then", "if false then"),),
    ),
    Hole(
        "a job ends without its last tokens",
        "Q10",
        finish_after_a_rollback,
        kept=(LeaseStatus.GAP, 2, JobState.RUNNING),
        broken=(LeaseStatus.DONE, 2, JobState.FINISHED),
        cuts=(LuaCut("parts/ends.lua", "if offset ~= r[OFFSET] then return 'gap' end", ""),),
    ),
    Hole(
        "a finish undoes a cancel",
        "Q10",
        cancel_a_running_job,
        kept=(LeaseStatus.CANCELLED, JobState.CANCELLED),
        broken=(LeaseStatus.DONE, JobState.FINISHED),
        cuts=(LuaCut("cancel.lua", " or r[STATE] == 'running' then", " then"),),
    ),
    Hole(
        "a cancelled job of a dead worker runs again",
        "Q10",
        cancel_a_job_of_a_dead_worker,
        kept=(JobState.CANCELLED, []),
        broken=(JobState.QUEUED, ["chat/a"]),
        cuts=(LuaCut("cancel.lua", " or r[STATE] == 'running' then", " then"),),
    ),
    Hole(
        "a job is dropped before storage has its end",
        "Q10",
        keep_until_committed,
        kept=[True, True, True],
        broken=[False, False, False],
        cuts=(LuaCut("parts/ends.lua", "if not storage then put('ZADD', ended", "if true then put('ZADD', ended"),),
    ),
    Hole(
        "a stream is dropped before storage has its end",
        "Q10",
        keep_until_committed,
        kept=[True, True, True],
        broken=[True, False, True],
        cuts=(LuaCut("parts/sweep.lua", "if r and storage and r[DURABLE] == 0 then", "if false then"),),
    ),
]
