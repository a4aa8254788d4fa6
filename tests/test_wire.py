"""The codec: what is packed comes back, and bytes that are no document are refused as such, never otherwise."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headpond.commits import Commit, Origin, pack_commit, unpack_commit, unpack_session
from headpond.errors import MalformedDocument, UnsupportedSchema
from headpond.jobs import FinishReason, JobState, Result, Timings, Usage
from headpond.models import ModelRow, pack_model, unpack_model
from headpond.requests import Message
from headpond.turns import ROOT, Policy, Turn, TurnRequest
from headpond.wire import (
    MAX_DOCUMENT_BYTES,
    MAX_EMBEDDING_BYTES,
    RESULT_SCHEMA,
    RUN_HEAD,
    Attempt,
    Call,
    Ended,
    Header,
    Rewound,
    RunRow,
    TokenRun,
    pack,
    pack_data,
    pack_document,
    pack_for_script,
    pack_result,
    pack_tokens,
    unpack,
    unpack_attempts,
    unpack_data,
    unpack_document,
    unpack_entry,
    unpack_event,
    unpack_result,
    unpack_run,
    unpack_tokens,
)
from headpond.workers import WorkerRow, WorkerState, pack_worker, unpack_workers

text = st.text(st.characters(codec="utf-8"), max_size=20)
seconds = st.floats(0, 1e9)
token_ids = st.integers(0, (1 << 53) - 1)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | text
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def token_runs(draw: st.DrawFn) -> TokenRun:
    ids = draw(st.lists(token_ids, min_size=1, max_size=8))
    pieces = draw(st.lists(text, min_size=len(ids), max_size=len(ids)))
    return TokenRun(draw(st.integers(0, 1 << 20)), tuple(ids), tuple(pieces))


results = st.builds(
    lambda pieces, **fields: Result(text="".join(pieces), pieces=pieces, **fields),
    pieces=st.lists(text, max_size=8).map(tuple),
    id=text,
    state=st.sampled_from(JobState),
    token_ids=st.lists(token_ids, max_size=8).map(tuple),
    finish_reason=st.sampled_from(FinishReason),
    usage=st.builds(Usage, st.integers(0, 1 << 30), st.integers(0, 1 << 30)),
    timings=st.builds(Timings, seconds, st.none() | seconds, seconds, st.none() | seconds),
    model=text,
    version=text,
    attempts=st.integers(0, 25),
    durable=st.booleans(),
    error=st.none() | text,
)
calls = st.builds(
    Call,
    actor=text,
    args=st.lists(plain, max_size=3).map(tuple),
    kwargs=st.dictionaries(text, plain, max_size=3),
    options=st.dictionaries(text, plain, max_size=3),
    timestamp_ms=st.integers(0, 1 << 50),
)
model_rows = st.builds(ModelRow, text, st.integers(0, 1 << 40), st.booleans(), st.integers(0, 1 << 20))
run_rows = st.builds(
    RunRow,
    state=st.sampled_from(JobState),
    fence=text,
    attempt=st.integers(0, 25),
    strikes=st.integers(0, 25),
    worker=text,
    gen=st.integers(0, 1 << 50),
    offset=st.integers(0, 1 << 20),
    entries=st.integers(0, 16),
    tag=st.floats(0, 1e12),
    lane=text,
    band=text,
    claimed_offset=st.integers(0, 1 << 20),
    submitted_ms=st.integers(0, 1 << 50),
    claimed_ms=st.integers(0, 1 << 50),
    ended_ms=st.integers(0, 1 << 50),
    durable=st.booleans(),
    reason=text,
    parked=text,
    fingerprint=text,
    host=text,
    faults=st.integers(0, 25),
    struck=text,
    pinned=text,
    served_by=text,
)
attempts = st.builds(
    Attempt,
    attempt=st.integers(0, 1 << 20),
    boot=text,
    host=text,
    version=text,
    fingerprint=text,
    claimed_ms=st.integers(0, 1 << 50),
    ended_ms=st.integers(0, 1 << 50),
    how=text,
    from_offset=st.integers(0, 1 << 20),
    to_offset=st.integers(0, 1 << 20),
    reason=text,
)
worker_rows = st.builds(
    WorkerRow,
    boot=st.just("01BOOT"),
    model=st.just("chat"),
    version=text,
    host=text,
    pid=st.integers(1, 1 << 22),
    instance=text,
    slots=st.integers(1, 1024),
    busy=st.integers(0, 1024),
    state=st.sampled_from(WorkerState),
    last_error=text,
    started_ms=st.integers(0, 1 << 50),
    seen_ms=st.integers(0, 1 << 50),
    tokens=st.integers(0, 1 << 50),
    jobs=st.integers(0, 1 << 30),
    tokens_per_s=st.just(12.5),
)


def run_elements(row: RunRow) -> list[Any]:
    """The elements of a run row, its version first, as scripts write them."""
    stored = {"state": row.state.value, "durable": int(row.durable)}
    return [1, *(stored.get(name, getattr(row, name)) for name in RunRow.__slots__)]


def pack_elements(elements: list[Any]) -> bytes:
    """The two arrays of a run row."""
    return pack(elements[:RUN_HEAD]) + pack(elements[RUN_HEAD:])


def pack_run(row: RunRow) -> bytes:
    return pack_elements(run_elements(row))


@given(token_runs())
def test_tokens_come_back(run: TokenRun) -> None:
    assert unpack_tokens(pack_tokens(run)) == run


@given(token_runs(), st.integers(0, 10))
def test_a_part_of_a_token_run_is_its_end(run: TokenRun, skip: int) -> None:
    part = run.after(run.offset + skip)
    assert part.ids == run.ids[skip:]
    assert part.pieces == run.pieces[skip:]
    assert part.offset == run.offset + skip
    assert run.after(0) is run


@given(results)
def test_a_result_comes_back_and_only_the_row_says_whether_it_is_durable(result: Result) -> None:
    assert unpack_result(pack_result(result), durable=result.durable) == result


@given(calls, text, text, text, st.integers(0, 1 << 30))
def test_a_data_entry_comes_back_and_scripts_can_read_its_header(
    call: Call, digest: str, tenant: str, pinned: str, cost: int
) -> None:
    entry = pack_data(call, digest=digest, tenant=tenant, band="batch", pinned=pinned, cost=cost)
    assert unpack_data(entry) == call
    assert unpack_entry(entry) == (Header(digest, tenant, "batch", pinned, cost), call)
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(entry)
    assert unpacker.unpack() == [1, digest, tenant, "batch", pinned, cost]


def test_a_header_with_a_field_of_another_type_is_refused() -> None:
    header, call = [1, "d", "t", "normal", "v1", 9], pack([1, "generate", [], {}, {}, 0])
    assert unpack_entry(pack(header) + call)[0] == Header("d", "t", "normal", "v1", 9)
    for at, other in ((1, None), (2, 7), (3, ["normal"]), (4, True), (5, "9"), (5, 9.5), (5, True)):
        with pytest.raises(MalformedDocument):
            unpack_entry(pack([*header[:at], other, *header[at + 1 :]]) + call)


@given(model_rows)
def test_a_model_row_comes_back(row: ModelRow) -> None:
    assert unpack_model(pack_model(row)) == row


@given(run_rows)
def test_a_run_row_comes_back(row: RunRow) -> None:
    assert unpack_run(pack_run(row)) == row


@given(st.lists(attempts, max_size=4))
def test_a_log_of_attempts_comes_back(log: list[Attempt]) -> None:
    records = [[getattr(attempt, name) for name in Attempt.__slots__] for attempt in log]
    assert unpack_attempts(pack([1, *records])) == tuple(log)


@pytest.mark.parametrize("at", range(len(Attempt.__slots__)), ids=Attempt.__slots__)
def test_a_record_of_an_attempt_with_a_field_of_another_type_is_refused(at: int) -> None:
    for other in (None, True, 1.5, [], {}, b"boot", 7 if isinstance(RECORD[at], str) else "7"):
        with pytest.raises(MalformedDocument, match=Attempt.__slots__[at]):
            unpack_attempts(pack([1, RECORD, [*RECORD[:at], other, *RECORD[at + 1 :]]]))


def test_a_record_of_an_attempt_that_is_too_short_or_no_array_is_refused() -> None:
    for record in (RECORD[:-1], [], None, 7, "eleven chars", {str(n): n for n in range(11)}):
        with pytest.raises(MalformedDocument, match="11 elements"):
            unpack_attempts(pack([1, RECORD, record]))


def test_elements_that_a_later_headpond_adds_to_a_row_are_passed_over() -> None:
    assert unpack_attempts(pack([1, [*RECORD, "new"]])) == unpack_attempts(pack([1, RECORD]))
    assert unpack_run(pack_elements([*run_elements(ROW), "new"])) == ROW


@given(worker_rows)
def test_a_worker_row_comes_back(row: WorkerRow) -> None:
    fields = {b"01BOOT": pack_worker(row), b"01BOOT:seen": str(row.seen_ms).encode(), b"01BOOT:seq": b"7"}
    assert unpack_workers("chat", fields) == [row]


@given(st.sampled_from(JobState), st.integers(0, 1 << 20), text)
def test_stream_events_come_back(state: JobState, offset: int, reason: str) -> None:
    assert unpack_event(pack([1, "ended", offset, state.value])) == Ended(state, offset)
    assert unpack_event(pack([1, "rewound", offset, reason])) == Rewound(offset, reason)


@given(st.dictionaries(text.filter(lambda key: key not in ("schema", "v")), plain, max_size=4))
def test_a_document_comes_back_without_its_frame(fields: dict[str, Any]) -> None:
    assert unpack_document(pack_document("a/b", 3, fields), schema="a/b", v=3) == fields
    assert unpack_document(pack_document("a/b", 3, fields), schema="a/b", v=4) == fields


RESULT = Result(
    "chat/a",
    JobState.FINISHED,
    "text",
    (1, 2),
    FinishReason.STOP,
    Usage(3, 2),
    Timings(0.5, 0.1, 1.0, 9.0),
    pieces=("te", "xt"),
)
ROW = RunRow(
    state=JobState.RUNNING, fence="fence", gen=1_800_000_000_000, offset=7, entries=2, claimed_offset=0, band="normal",
    attempt=1, strikes=0, worker="boot", tag=3.0, lane="any", submitted_ms=1, claimed_ms=2, ended_ms=0,
    durable=False, reason="", parked="", fingerprint="f", host="h:1", faults=0, struck="", pinned="", served_by="v1",
)  # fmt: skip
CALL = Call("generate", (1, "two"), {"request": {"prompt": "p", "stop": ["x"]}}, {"retries": 1}, 1_800_000_000_000)
COMMIT = Commit(
    "", "c" * 64, "s", "chat/a", (Message(role="user", content="u"), Message(role="assistant", content="a")),
    FinishReason.STOP, "chat", "v1", "f", Usage(3, 2), 1_800_000_000_000, 2, 9, Policy.PIN, Origin("v0", "e"),
    ("chat/b",),
)  # fmt: skip
RECORD: list[object] = [1, "boot", "h:1", "v1", "f", 5, 9, "expired", 0, 3, "silent"]
WORKER = WorkerRow("01BOOT", "chat", "v1", "host", 7, "chat-0", 4, 0, WorkerState.READY, "", 1_800_000_000_000)

KINDS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "tokens": (pack_tokens(TokenRun(5, (1, 70_000), ("a", "\N{WATER WAVE}"))), unpack_tokens),
    "rewound": (pack([1, "rewound", 5, "because"]), unpack_event),
    "ended": (pack([1, "ended", 5, "finished"]), unpack_event),
    "result": (pack_result(RESULT), lambda data: unpack_result(data, durable=False)),
    "data": (pack_data(CALL, digest="d", tenant="t", band="normal", pinned="v1", cost=9), unpack_data),
    "data of a session": (pack_data(CALL, digest="d", turn=TurnRequest("s", Policy.PIN, ROOT)), unpack_data),
    "result of a session": (
        pack_result(replace(RESULT, turn=Turn("s", "c" * 64, None, ("chat/b",), "v1"))),
        lambda data: unpack_result(data, durable=False),
    ),
    "commit": (pack_commit(COMMIT)[1], lambda data: unpack_commit(hashlib.sha256(data).hexdigest(), data)),
    "session": (
        pack_for_script([1, "c" * 64, "v1", "pin", "t", 2, 1, 9, ["chat/b"], ["d" * 64]]),
        lambda data: unpack_session("s", data),
    ),
    "run": (pack_run(ROW), unpack_run),
    "model": (pack_model(ModelRow("scripted", 5, storage=True, context_tokens=64)), unpack_model),
    "attempts": (pack([1, RECORD]), unpack_attempts),
    "worker": (pack_worker(WORKER), lambda data: unpack_workers("chat", {b"01BOOT": data})),
    "document": (pack_document("a/b", 1, {"x": [1, {"y": None}]}), lambda d: unpack_document(d, schema="a/b", v=1)),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def accepted(kind: str, data: bytes) -> bool:
    """Whether data is read as a document of this kind. Any error but MalformedDocument fails the test."""
    try:
        KINDS[kind][1](data)
    except MalformedDocument:
        return False
    return True


@kinds
def test_a_document_that_is_cut_anywhere_is_refused(kind: str) -> None:
    whole = KINDS[kind][0]
    assert accepted(kind, whole)
    assert [n for n in range(len(whole)) if accepted(kind, whole[:n])] == []


@kinds
def test_bytes_behind_a_document_are_refused(kind: str) -> None:
    assert not accepted(kind, KINDS[kind][0] + b"\x00")


@kinds
def test_a_flipped_bit_is_read_or_refused_and_never_another_error(kind: str) -> None:
    whole = KINDS[kind][0]
    outcomes = []
    for at in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << at % 8
        outcomes.append(accepted(kind, bytes(flipped)))
    assert False in outcomes


@kinds
@given(junk=st.binary(max_size=60))
def test_random_bytes_are_read_or_refused_and_never_another_error(kind: str, junk: bytes) -> None:
    assert accepted(kind, junk) in (True, False)


@kinds
@given(value=plain)
def test_any_other_value_is_read_or_refused_and_never_another_error(kind: str, value: object) -> None:
    if kind != "data":
        assert not accepted(kind, pack(value))
    assert not accepted(kind, pack([0, value]))


@kinds
@given(data=st.data())
def test_a_field_of_any_other_type_is_read_or_refused_and_never_another_error(kind: str, data: st.DataObject) -> None:
    # Hostile stored bytes: well-formed, of the right shape, and wrong in one place.
    whole = KINDS[kind][0]
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(whole)
    parts = list(unpacker)
    target = data.draw(st.sampled_from(parts))
    other = data.draw(plain | st.just(math.inf) | st.just(math.nan) | st.just(-1))
    if isinstance(target, dict):
        target[data.draw(st.sampled_from(sorted(target)))] = other
    else:
        target[data.draw(st.integers(0, len(target) - 1))] = other
    assert accepted(kind, b"".join(map(pack, parts))) in (True, False)


@kinds
def test_a_newer_version_is_refused_with_what_to_do(kind: str) -> None:
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(KINDS[kind][0])
    parts = list(unpacker)
    if isinstance(parts[-1], dict):
        parts[-1]["v"] = 2
    else:
        # A data entry is two rows; the second array of a run row has no version of its own.
        parts[0 if kind == "run" else -1][0] = 2
    with pytest.raises(UnsupportedSchema, match="Upgrade headpond") as refused:
        KINDS[kind][1](b"".join(map(pack, parts)))
    assert (refused.value.found, refused.value.supported) == (2, 1)


@pytest.mark.parametrize("v", [0, -1, True, None, "1", 1.5])
def test_a_version_that_is_no_version_is_malformed(v: object) -> None:
    with pytest.raises(MalformedDocument):
        unpack_document(pack({"schema": "a/b", "v": v}), schema="a/b", v=1)


def test_another_schema_is_refused_by_name() -> None:
    with pytest.raises(MalformedDocument, match=r"a/b.*found 'c/d'"):
        unpack_document(pack_document("c/d", 1, {}), schema="a/b", v=1)


def test_an_oversized_document_is_refused_before_it_is_read() -> None:
    with pytest.raises(MalformedDocument, match="at most 100 are read"):
        unpack(b"\xc1" * 101, kind="thing", max_bytes=100)
    with pytest.raises(MalformedDocument, match="at most"):
        unpack(bytes(MAX_DOCUMENT_BYTES + 1), kind="thing")
    with pytest.raises(MalformedDocument, match="at most 10 are read"):
        unpack_document(pack_document("a/b", 1, {}), schema="a/b", v=1, max_bytes=10)


@pytest.mark.parametrize("depth", [600, 100_000])
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1k", b"\xdd\x00\x00\x00\x01"])
@kinds
def test_deep_nesting_is_refused(kind: str, opening: bytes, depth: int) -> None:
    assert not accepted(kind, opening * depth + b"\x00")


@pytest.mark.parametrize(
    "claim", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
)
@kinds
def test_a_length_that_the_bytes_do_not_hold_is_refused(kind: str, claim: bytes) -> None:
    assert not accepted(kind, claim)
    assert not accepted(kind, claim + b"\x00" * 40)


def test_an_event_that_nobody_knows_is_refused() -> None:
    for row in ([1, "paused", 3, "why"], [1, "ended", 3, "exploded"], [1, ["ended"], 3, "finished"]):
        with pytest.raises(MalformedDocument):
            unpack_event(pack(row))


def test_pieces_that_do_not_match_their_ids_are_refused() -> None:
    for row in ([1, 0, [1, 2], ["a"]], [1, 0, [1], [2]], [1, 0, ["a"], ["a"]], [1, "0", [1], ["a"]], [1, 0, [1], None]):
        with pytest.raises(MalformedDocument):
            unpack_tokens(pack(row))


def test_a_commit_comes_back_under_its_own_id_alone() -> None:
    commit_id, document = pack_commit(COMMIT)
    assert unpack_commit(commit_id, document) == replace(COMMIT, id=commit_id)
    with pytest.raises(MalformedDocument, match="is not what"):
        unpack_commit("d" * 64, document)
    assert pack_commit(replace(COMMIT, parent=""))[0] != commit_id


def test_a_run_row_with_a_field_of_another_type_is_refused() -> None:
    whole = run_elements(ROW)
    for at, name in enumerate(RunRow.__slots__, start=1):
        for other in (None, True, [], 7 if isinstance(whole[at], str) else "7"):
            with pytest.raises(MalformedDocument, match=name):
                unpack_run(pack_elements([*whole[:at], other, *whole[at + 1 :]]))


def test_a_run_row_with_a_part_that_is_too_short_or_missing_is_refused() -> None:
    whole = run_elements(ROW)
    first, second = pack(whole[:RUN_HEAD]), pack(whole[RUN_HEAD:])
    assert unpack_run(first + second) == ROW
    # A release before sessions wrote the row without its last two elements.
    assert unpack_run(first + pack(whole[RUN_HEAD:-2])) == replace(ROW, session="", place=0)
    for packed in (
        pack(whole[: RUN_HEAD - 1]) + second, first + pack(whole[RUN_HEAD:-3]), first, second, second + first,
        pack(whole), first + pack(dict.fromkeys(map(str, whole[RUN_HEAD:]), 0)), first + second + second, b"",
    ):  # fmt: skip
        with pytest.raises(MalformedDocument):
            unpack_run(packed)


@pytest.mark.parametrize("version", [0, -1, True, None, "1", 1.0])
def test_a_row_whose_version_is_no_version_is_refused(version: object) -> None:
    for kind in ("tokens", "attempts", "ended"):
        row = unpack(KINDS[kind][0], kind="row")
        assert not accepted(kind, pack([version, *row[1:]]))
    assert not accepted("run", pack_elements([version, *run_elements(ROW)[1:]]))


def test_a_state_that_nobody_knows_is_refused() -> None:
    row = run_elements(ROW)
    row[1] = "exploded"
    with pytest.raises(MalformedDocument, match="exploded"):
        unpack_run(pack_elements(row))
    worker = unpack(pack_worker(WORKER), kind="worker row")
    worker[7] = "exploded"
    with pytest.raises(MalformedDocument):
        unpack_workers("chat", {b"01BOOT": pack(worker)})
    document = unpack(pack_result(RESULT), kind=RESULT_SCHEMA)
    document["state"] = "exploded"
    with pytest.raises(MalformedDocument):
        unpack_result(pack(document), durable=False)


def test_a_model_row_with_a_number_that_is_none_is_refused() -> None:
    numbers: list[object] = [math.inf, math.nan, "many", None, []]
    for number in numbers:
        fields = {"engine": "scripted", "max_queued": number, "storage": False, "context_tokens": 1}
        with pytest.raises(MalformedDocument):
            unpack_model(pack_document("headpond/model", 1, fields))


def test_a_worker_that_was_seen_at_no_time_is_refused() -> None:
    with pytest.raises(MalformedDocument):
        unpack_workers("chat", {b"01BOOT": pack_worker(WORKER), b"01BOOT:seen": b"never"})


# Vectors


def embedded(vectors: tuple[tuple[float, ...], ...]) -> Result:
    return Result("embedder/a", JobState.FINISHED, "", (), FinishReason.STOP, embeddings=vectors)


@given(
    st.integers(1, 40).flatmap(
        lambda dimensions: st.lists(
            st.lists(
                st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=dimensions, max_size=dimensions
            ),
            min_size=1,
            max_size=5,
        )
    )
)
def test_vectors_come_back_in_single_precision(vectors: list[list[float]]) -> None:
    result = embedded(tuple(map(tuple, vectors)))
    assert unpack_result(pack_result(result), durable=False) == result


def test_a_result_takes_four_bytes_a_number() -> None:
    size = len(pack_result(embedded(((0.5,) * 1000,) * 10)))
    assert size - len(pack_result(embedded(((0.5,),)))) in range(39_990, 40_010)


def test_a_result_of_a_release_without_vectors_is_read() -> None:
    result = Result("chat/a", JobState.FINISHED, "", (), FinishReason.STOP)
    packed = pack_result(result)
    assert b"embeddings" not in packed
    assert unpack_result(packed, durable=False).embeddings is None


@pytest.mark.parametrize(
    "damaged",
    [7, [], [3], [3, b"1234", 1], [0, b""], [0, b"1234"], [2, b""], [2, b"1234"], [-1, b"1234"], [True, b"1234"],
     ["2", b"12345678"], [1, "1234"], [1, b"12345"]],
)  # fmt: skip
def test_vectors_that_are_none_are_refused(damaged: object) -> None:
    fields = msgpack.unpackb(pack_result(embedded(((1.0, 2.0),))), raw=False)
    with pytest.raises(MalformedDocument):
        unpack_result(msgpack.packb(fields | {"embeddings": damaged}, use_bin_type=True), durable=False)


def test_more_vectors_than_a_result_holds_are_neither_packed_nor_read() -> None:
    too_many = ((0.0,) * 4096,) * (MAX_EMBEDDING_BYTES // 4 // 4096 + 1)
    with pytest.raises(MalformedDocument, match="more than"):
        pack_result(embedded(too_many))
    fields = msgpack.unpackb(pack_result(embedded(((1.0,),))), raw=False)
    large = msgpack.packb(fields | {"embeddings": [1, bytes(MAX_EMBEDDING_BYTES + 4)]}, use_bin_type=True)
    with pytest.raises(MalformedDocument):
        unpack_result(large, durable=False)
