"""A worker that was given a job with tokens, of a server that then went back to before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from headpond import JobState
from headpond.held import HeldLease
from headpond.operations import LeaseStatus
from headpond_workers.engines.protocol import Engine
from headpond_workers.generation import Generation
from headpond_workers.supervision.embedded_valkey import ValkeyProcess
from headpond_workers.token_writer import TokenWriter
from headpond_workers.totals import Totals
from queue_bench import Bench, keep_data, lease_key, server_as_it_was, tokens


def test_a_lease_that_the_server_forgot_is_left_without_an_error(
    own: Bench, valkey: ValkeyProcess, tmp_path: Path
) -> None:
    own.submit("chat/a")
    kept = keep_data(valkey, tmp_path / "kept")
    first = own.lease("A")
    own.append(first, tokens(0, 4))
    own.queue.park([lease_key(first)])
    held = HeldLease(own.lease("B"))
    assert held.lease.offset == 4
    server_as_it_was(own, valkey, kept)
    generation = Generation(
        own.queue, TokenWriter(own.queue), "v1", 60.0, on_broken=_never, preempt=_never, totals=Totals(),
        engine=cast("Engine", None),
    )  # fmt: skip

    generation.run({"prompt": "x"}, held)

    assert held.lost is LeaseStatus.FENCED
    assert generation.last_error == ""
    row = own.row("chat/a")
    assert (row.state, row.offset) == (JobState.QUEUED, 0)


def _never(*_: Any) -> None:
    raise AssertionError("nothing of this is the engine's fault")
