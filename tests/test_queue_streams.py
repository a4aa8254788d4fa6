"""Q9: the stream of a job, as it is written and as readers see it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import eventually
from headpond import AsyncClient, Client, JobState
from headpond import operations as ops
from headpond.folding import StreamFold, fold_tokens
from headpond.jobs import Chunk
from headpond.operations import Append, LeaseStatus
from headpond.wire import (
    Ended,
    Rewound,
    TokenRun,
    pack,
    pack_for_script,
    pack_tokens,
)
from headpond_workers.supervision.embedded_valkey import ValkeyProcess
from queue_bench import Bench, keep_data, lease_key, server_as_it_was, tokens


def test_an_entry_is_named_by_gen_and_offset_and_several_share_an_offset(bench: Bench) -> None:
    bench.submit("chat/a")
    lease = bench.lease()
    bench.append(lease, tokens(0, 3))
    bench.append(lease, tokens(3, 4))
    bench.queue.cancel("chat/a")
    assert bench.events("chat/a") == [
        (f"{lease.gen}-48", tokens(0, 3)),
        (f"{lease.gen}-64", tokens(3, 4)),
        (f"{lease.gen}-65", Ended(JobState.CANCELLED, 4)),
    ]


def test_the_seventeenth_entry_at_one_offset_raises_the_generation(bench: Bench) -> None:
    bench.submit("chat/a")
    lease = bench.lease()
    bench.append(lease, tokens(0, 2))
    run = bench.keys.named("run")
    unpacker = msgpack.Unpacker()
    unpacker.feed(bench.server.read("HGET", run, "chat/a"))
    head, rest = unpacker
    assert head[5] == 1
    head[5] = 16
    bench.server.read("HSET", run, "chat/a", pack_for_script(head) + pack_for_script(rest))
    bench.queue.cancel("chat/a")
    assert [at for at, _ in bench.events("chat/a")] == [f"{lease.gen}-32", f"{lease.gen + 1}-32"]


def test_every_claim_raises_the_generation(bench: Bench) -> None:
    bench.submit("chat/a")
    gens = []
    for _ in range(3):
        lease = bench.lease()
        gens.append(lease.gen)
        bench.append(lease, tokens(lease.offset, lease.offset + 1))
        bench.queue.park([(lease.id, lease.fence)], strike=False)
    assert gens == sorted(set(gens))
    assert gens[0] >= int(bench.queue.meta()["inc"])
    assert fold_tokens(bench.queue.events("chat/a")) == tokens(0, 3)


def test_a_repeated_append_appends_nothing_and_a_partly_covered_one_its_tail(bench: Bench) -> None:
    bench.submit("chat/a")
    lease = bench.lease()
    assert bench.append(lease, tokens(0, 5)) == ops.Outcome(LeaseStatus.APPENDED, 5)
    assert bench.append(lease, tokens(0, 5)) == ops.Outcome(LeaseStatus.APPENDED, 5)
    assert bench.append(lease, tokens(1, 4)) == ops.Outcome(LeaseStatus.APPENDED, 5)
    assert bench.append(lease, tokens(2, 8)) == ops.Outcome(LeaseStatus.APPENDED, 8)
    assert [event for _, event in bench.events("chat/a")] == [tokens(0, 5), tokens(5, 8)]
    assert bench.append(lease, tokens(9, 10)) == ops.Outcome(LeaseStatus.GAP, 8)
    assert bench.append(lease, tokens(8, 10)) == ops.Outcome(LeaseStatus.APPENDED, 10)
    assert fold_tokens(bench.queue.events("chat/a")) == tokens(0, 10)


def test_the_tail_of_a_partly_covered_append_keeps_any_text_and_id(bench: Bench) -> None:
    bench.submit("chat/a")
    lease = bench.lease()
    pieces = ("a", "", "\N{WATER WAVE}\N{LATIN SMALL LETTER E WITH ACUTE}", "x" * 300, "\x00\n", "y" * 70_000)
    ids = (0, 2**31, 2**52, 1, 255, 65_536)
    bench.append(lease, TokenRun(0, ids[:1], pieces[:1]))
    assert bench.append(lease, TokenRun(0, ids, pieces)).offset == 6
    assert fold_tokens(bench.queue.events("chat/a")) == TokenRun(0, ids, pieces)


def test_one_append_answers_each_job_for_itself(bench: Bench) -> None:
    bench.submit("chat/fine", "chat/gap", "chat/cancelled", "chat/fenced", "chat/parked")
    bench.submit("chat/expired", deadline_s=1)
    leases = {lease.id: lease for lease in bench.claim(slots=6).leases}
    bench.queue.cancel("chat/cancelled")
    bench.queue.park([(leases["chat/parked"].id, leases["chat/parked"].fence)], strike=False)
    bench.clock.move(1)
    bench.queue.tick()
    batch = [
        Append(job_id, "no such fence" if job_id == "chat/fenced" else leases[job_id].fence,
               tokens(1, 2) if job_id == "chat/gap" else tokens(0, 2))
        for job_id in ("chat/gap", "chat/cancelled", "chat/fine", "chat/fenced", "chat/expired", "chat/parked")
    ]  # fmt: skip
    assert [(o.status.value, o.offset) for o in bench.queue.append(batch)] == [
        ("gap", 0), ("cancelled", 0), ("appended", 2), ("fenced", 0), ("expired", 0), ("fenced", 0),
    ]  # fmt: skip
    assert bench.row("chat/fine").offset == 2


def test_the_first_append_in_a_new_incarnation_says_rewound(bench: Bench) -> None:
    bench.submit("chat/a")
    lease = bench.lease()
    bench.append(lease, tokens(0, 2))
    bench.clock.move(1)
    bench.queue.run(ops.hello("restarted", storage=False))
    inc = int(bench.queue.meta()["inc"])
    bench.append(lease, tokens(2, 3))
    bench.append(lease, tokens(3, 4))
    events = bench.events("chat/a")
    assert [event for _, event in events] == [
        tokens(0, 2), Rewound(2, "the server restarted"), tokens(2, 3), tokens(3, 4),
    ]  # fmt: skip
    assert all(int(at.partition("-")[0]) >= inc for at, _ in events[1:])
    assert [at for at, _ in events] == sorted((at for at, _ in events), key=lambda at: [*map(int, at.split("-"))])


def test_a_claim_by_another_fingerprint_rewinds_to_the_beginning(bench: Bench) -> None:
    bench.submit("chat/a")
    lease = bench.lease(fingerprint="f")
    bench.append(lease, tokens(0, 5))
    bench.queue.park([(lease.id, lease.fence)], strike=False)
    same = bench.lease("B", fingerprint="f")
    assert same.offset == 5
    bench.queue.park([(same.id, same.fence)], strike=False)
    other = bench.lease("C", fingerprint="g")
    assert other.offset == 0
    assert bench.append(other, TokenRun(0, (7,), ("seven",))).status is LeaseStatus.APPENDED
    assert [event for _, event in bench.events("chat/a")] == [
        tokens(0, 5), Rewound(0, "another version of the model goes on"), TokenRun(0, (7,), ("seven",)),
    ]  # fmt: skip
    assert fold_tokens(bench.queue.events("chat/a")) == TokenRun(0, (7,), ("seven",))


def test_a_reader_ahead_of_a_server_that_went_back_is_told_and_caught_up(
    own: Bench, valkey: ValkeyProcess, tmp_path: Path
) -> None:
    own.submit("chat/a")
    lease = own.lease()
    own.append(lease, tokens(0, 4))
    kept = keep_data(valkey, tmp_path / "kept")
    own.append(lease, tokens(4, 9))
    last, fold = feed_all(own, StreamFold(), "-")
    assert fold.given == 9
    server_as_it_was(own, valkey, kept)
    assert own.append(lease, tokens(9, 10)) == ops.Outcome(LeaseStatus.GAP, 4)
    assert own.append(lease, tokens(4, 10)) == ops.Outcome(LeaseStatus.APPENDED, 10)
    chunks = [chunk for _, fields in own.queue.events("chat/a", after=last) if (chunk := fold.feed(fields))]
    assert [(c.offset, c.token_ids, c.restarted) for c in chunks] == [(4, (4, 5, 6, 7, 8, 9), True)]


@pytest.mark.parametrize("how", ["cancel", "deadline", "finish"])
def test_a_reader_ahead_of_a_server_that_went_back_still_hears_the_end(
    own: Bench, valkey: ValkeyProcess, tmp_path: Path, how: str
) -> None:
    own.submit("chat/a", deadline_s=30 if how == "deadline" else None)
    lease = own.lease()
    own.append(lease, tokens(0, 4))
    kept = keep_data(valkey, tmp_path / "kept")
    own.append(lease, tokens(4, 9))
    last, fold = feed_all(own, StreamFold(), "-")
    server_as_it_was(own, valkey, kept)
    if how == "cancel":
        own.queue.cancel("chat/a")
    elif how == "deadline":
        own.clock.move(30)
        own.queue.tick()
    else:
        assert own.finish(lease, offset=9) == ops.Outcome(LeaseStatus.GAP, 4)
        own.finish(lease, offset=4)
    assert own.row("chat/a").state.ended
    for _, fields in own.queue.events("chat/a", after=last):
        fold.feed(fields)
    assert fold.ended is not None
    assert (fold.ended.offset, fold.given) == (4, 4)


def feed_all(bench: Bench, fold: StreamFold, after: str) -> tuple[str, StreamFold]:
    for at, fields in bench.queue.events("chat/a", after=after):
        after = at
        fold.feed(fields)
    return after, fold


def fields_of(event: TokenRun | int) -> dict[bytes, bytes]:
    if isinstance(event, TokenRun):
        return {b"t": pack_tokens(event)}
    return {b"e": pack([1, "rewound", event, "because"])}


@st.composite
def streams(draw: st.DrawFn) -> list[TokenRun | int]:
    """Streams as writers make them: each rewound says to where, and tokens go on from there."""
    events: list[TokenRun | int] = []
    offset, fresh = 0, 0
    for _ in range(draw(st.integers(0, 12))):
        if draw(st.booleans()) or not offset:
            n = draw(st.integers(1, 5))
            ids = tuple(range(fresh, fresh + n))
            events.append(TokenRun(offset, ids, tuple(f"<{i}>" for i in ids)))
            offset, fresh = offset + n, fresh + n
        else:
            offset = draw(st.integers(0, offset))
            events.append(offset)
    return events


@given(streams())
def test_a_reader_from_the_beginning_ends_with_exactly_the_valid_tokens(events: list[TokenRun | int]) -> None:
    fold = StreamFold()
    had: list[int] = []
    text: list[str] = []
    void_from: int | None = None
    for event in events:
        if isinstance(event, int) and event < len(had):
            void_from = event
        chunk = fold.feed(fields_of(event))
        if chunk is None:
            continue
        # restarted exactly when something that was given is void, and it says from where.
        assert chunk.restarted is (void_from is not None)
        if void_from is not None:
            assert chunk.offset == void_from
        assert chunk.offset <= len(had)
        assert chunk.restarted or chunk.offset == len(had)
        del had[chunk.offset :], text[chunk.offset :]
        had += chunk.token_ids
        text.append(chunk.text)
        text = list("".join(text).replace("><", ">\n<").split("\n"))
        void_from = None
    valid = fold_tokens((str(i), fields_of(event)) for i, event in enumerate(events))
    if void_from is None:
        assert (tuple(had), "".join(text)) == (valid.ids, "".join(valid.pieces))
    else:
        assert tuple(had[:void_from]) == valid.ids
    assert fold.given == len(valid.ids)


@given(st.lists(st.integers(1, 5), max_size=6), st.integers(0, 30))
def test_a_reader_who_has_a_part_is_given_the_exact_rest(sizes: list[int], after: int) -> None:
    fold, offset = StreamFold(after), 0
    given_ids: list[int] = []
    for n in sizes:
        chunk = fold.feed({b"t": pack_tokens(tokens(offset, offset + n))})
        offset += n
        if chunk is not None:
            assert not chunk.restarted
            assert chunk.offset == after + len(given_ids)
            assert chunk.text == "".join(f" {i}" for i in chunk.token_ids)
            given_ids += chunk.token_ids
    assert given_ids == list(range(after, offset))


async def read_asynchronously(url: str, given: list[Chunk]) -> None:
    async with AsyncClient(url) as client:
        async for chunk in client.job("chat/a").stream():
            given.append(chunk)


def read_synchronously(url: str, given: list[Chunk]) -> None:
    with Client(url) as client:
        for chunk in client.job("chat/a").stream():
            given.append(chunk)


@pytest.mark.parametrize("read", [read_synchronously, read_asynchronously], ids=["sync", "async"])
def test_a_reader_that_began_anew_in_what_a_server_forgot_gets_every_token(
    own: Bench, valkey: ValkeyProcess, tmp_path: Path, read: Callable[[str, list[Chunk]], Any]
) -> None:
    own.submit("chat/a")
    lease = own.lease("A")
    own.append(lease, tokens(0, 4))
    kept = keep_data(valkey, tmp_path / "kept")
    given: list[Chunk] = []

    def follow() -> None:
        reading = read(valkey.url, given)
        if reading is not None:
            asyncio.run(reading)

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    own.queue.park([lease_key(lease)])
    other = own.lease("B", fingerprint="another")
    assert other.offset == 0
    own.append(other, TokenRun(0, (70, 71), (" x", " y")))
    eventually(lambda: given and given[-1].token_ids == (70, 71), what="the tokens of the other model")
    # All that is forgotten: the reader obeyed a rewound to 0, and the server holds four tokens.
    server_as_it_was(own, valkey, kept)
    assert own.append(lease, tokens(4, 6)) == ops.Outcome(LeaseStatus.APPENDED, 6)
    assert own.finish(lease, offset=6).status is LeaseStatus.DONE
    reader.join(10)
    assert not reader.is_alive()
    has: list[int] = []
    for chunk in given:
        if chunk.restarted:
            del has[chunk.offset :]
        assert chunk.offset == len(has)
        has += chunk.token_ids
    assert has == [0, 1, 2, 3, 4, 5]
