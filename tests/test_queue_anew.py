"""Claims of a worker that cannot go on after tokens, as of a proxy: they rewind what has some."""

from __future__ import annotations

from pathlib import Path

from headpond import JobState
from headpond.folding import StreamFold, fold_tokens
from headpond.operations import LeaseStatus
from headpond.wire import Ended, Rewound, TokenRun
from headpond_workers.supervision.embedded_valkey import ValkeyProcess
from queue_bench import Bench, keep_data, lease_key, server_as_it_was, tokens

WHY = "the server behind this model cannot continue an answer"


def test_a_claim_that_cannot_go_on_rewinds_a_job_with_tokens_and_says_why(bench: Bench) -> None:
    bench.submit("chat/a", "chat/b")
    first = bench.lease("A")
    assert first.id == "chat/a"
    bench.append(first, tokens(0, 5))
    bench.queue.park([lease_key(first)])
    again, other = bench.claim("B", slots=2, anew=WHY).leases
    assert (again.offset, other.offset) == (0, 0)
    assert bench.append(again, TokenRun(0, (-1,), ("seven",))).offset == 1
    assert bench.finish(again, offset=1).status is LeaseStatus.DONE
    assert [event for _, event in bench.events("chat/a")] == [
        tokens(0, 5), Rewound(0, WHY), TokenRun(0, (-1,), ("seven",)), Ended(JobState.FINISHED, 1),
    ]  # fmt: skip
    assert bench.events("chat/b") == []


def test_the_same_claim_again_rewinds_no_second_time(bench: Bench) -> None:
    bench.submit("chat/a")
    first = bench.lease("A")
    bench.append(first, tokens(0, 5))
    bench.queue.park([lease_key(first)])
    claims = [
        bench.queue.claim("B", seq=1, nonce=nonce, slots=1, version="v1", fingerprint="f", anew=WHY).leases
        for nonce in ("n", "m")
    ]
    assert len(claims[0]) == 1
    assert claims[0] == claims[1]
    assert [event for _, event in bench.events("chat/a")] == [tokens(0, 5), Rewound(0, WHY)]


def test_a_claim_that_can_go_on_does(bench: Bench) -> None:
    bench.submit("chat/a")
    first = bench.lease("A")
    bench.append(first, tokens(0, 5))
    bench.queue.park([lease_key(first)])
    assert bench.claim("B").leases[0].offset == 5


def test_a_server_that_forgets_the_rewind_forgets_its_claim_too(
    own: Bench, valkey: ValkeyProcess, tmp_path: Path
) -> None:
    own.submit("chat/a")
    first = own.lease("A")
    own.append(first, tokens(0, 5))
    own.queue.park([lease_key(first)])
    kept = keep_data(valkey, tmp_path / "kept")
    (again,) = own.claim("B", anew=WHY).leases
    server_as_it_was(own, valkey, kept)
    # Two tokens of the new answer must not pass for a repeat of the old ones.
    assert own.append(again, TokenRun(0, (-1, -1), ("x", "y"))).status is LeaseStatus.FENCED


def test_a_reader_drops_what_a_rewind_makes_void(bench: Bench) -> None:
    bench.submit("chat/a")
    first = bench.lease("A")
    bench.append(first, tokens(0, 5))
    bench.queue.park([lease_key(first)])
    (again,) = bench.claim("B", anew=WHY).leases
    bench.append(again, TokenRun(0, (-1, -1), ("x", "y")))
    bench.finish(again, offset=2)
    entries = bench.queue.events("chat/a")

    fold = StreamFold()
    chunks = [chunk for entry_id, fields in entries if (chunk := fold.feed(fields, entry_id)) is not None]
    assert [(chunk.offset, chunk.restarted, chunk.text) for chunk in chunks[1:]] == [(0, True, "xy")]
    assert fold_tokens(entries) == TokenRun(0, (-1, -1), ("x", "y"))
