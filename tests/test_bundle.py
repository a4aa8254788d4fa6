"""The replay bundle: what is written is read again, and what is damaged is refused without harm."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headpond import bundle as bundle_module
from headpond.bundle import (
    BUNDLE_SCHEMA,
    BUNDLE_VERSION,
    MAX_BUNDLE_ATTEMPTS,
    MAX_BUNDLE_BYTES,
    MAX_REASON_CHARS,
    MAX_WORD_CHARS,
    Bundle,
    BundleAttempt,
    new_bundle,
    pack_bundle,
    parse_bundle,
    read_bundle,
    write_bundle,
)
from headpond.errors import BundleError, MalformedDocument, UnsupportedSchema
from headpond.jobs import JobState, Priority
from headpond.requests import MAX_TOKENS_LIMIT, JobRequest
from headpond.sampling import Sampling

ATTEMPT: dict[str, Any] = {
    "attempt": 1,
    "worker": "01J0",
    "host": "gpu7",
    "version": "local-abc",
    "fingerprint": "ab" * 32,
    "claimed_ms": 1_700_000_000_000,
    "ended_ms": 1_700_000_001_000,
    "how": "expired",
    "from_offset": 0,
    "to_offset": 2,
    "reason": "its worker was silent for a whole lease",
}


def a_bundle(*, prompt: str = "Tell me of the river.", seed: int | None = 7, **changes: Any) -> Bundle:
    request = JobRequest(prompt=prompt, sampling=Sampling(seed=seed))
    fields: dict[str, Any] = {
        "headpond": "0.1.0",
        "exported_ms": 1_700_000_002_000,
        "id": "chat/order-17",
        "state": JobState.DEAD,
        "tenant": "acme",
        "priority": Priority.BATCH,
        "pinned": "",
        "request": request,
        "seed": request.seed_for("chat/order-17"),
        "token_ids": (300, 301),
        "text": " kalomi \N{WATER WAVE}",
        "fingerprint": "ab" * 32,
        "version": "local-abc",
        "submitted_ms": 1_700_000_000_000,
        "ended_ms": 1_700_000_001_000,
        "leases": 3,
        "strikes": 3,
        "faults": 3,
        "attempts": [ATTEMPT],
        "last_error": "its worker was silent for a whole lease",
    }
    return new_bundle(**fields | changes)


def changed(**fields: Any) -> bytes:
    return json.dumps({**a_bundle().document(), **fields}).encode()


def test_a_bundle_is_read_as_it_was_written() -> None:
    for bundle in (a_bundle(), a_bundle(seed=None), a_bundle(token_ids=(), text="", attempts=[])):
        assert parse_bundle(pack_bundle(bundle)) == bundle


def test_a_written_bundle_holds_no_character_that_steers_a_terminal() -> None:
    written = pack_bundle(a_bundle(prompt="\x1b[2J\u202e\x9b ok"))
    assert all(byte == 0x0A or 0x20 <= byte < 0x7F for byte in written)


def test_a_field_of_a_later_release_is_passed_over() -> None:
    assert parse_bundle(changed(weather="fair")) == a_bundle()


def test_a_newer_version_is_refused_and_says_so() -> None:
    with pytest.raises(UnsupportedSchema, match="schema version 2; this headpond reads up to 1"):
        parse_bundle(changed(v=2))


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "JSON"),
        (b"null", "object"),
        (b"[]", "object"),
        (b"{", "JSON"),
        (b"\xff\xfe{}", "JSON"),
        (pack_bundle(a_bundle())[:-40], "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"schema": "headpond/bundle", "v": 1, "request": ' + b'{"a":' * 5000, "JSON"),
        (changed(schema="headpond/result"), "headpond/result"),
        (changed(schema=None), "schema"),
        (changed(v=0), "v: "),
        (changed(v="1"), "v: "),
        (changed(v=0).replace(b'"v": 0', b'"v": ' + b"9" * 5000), "number out of range"),
        (changed(v=10**30), "v: "),
        (changed(v=True), "v"),
        (changed(v=1.5), "v"),
        (b'{"schema": "headpond/bundle", "v": 1}', "headpond: Field required"),
        (changed(id="no id"), "not a job id"),
        (changed(id="chat/../../etc"), "not a job id"),
        (changed(state="undead"), "state"),
        (changed(priority="urgent"), "priority"),
        (changed(seed=-1), "seed"),
        (changed(seed=8), "not the one that follows"),
        (changed(seed=True), "seed"),
        (changed(leases=-1), "leases"),
        (changed(leases=10**400), "leases"),
        (changed(ended_ms=1.5), "ended_ms"),
        (changed(token_ids=[-2]), "token_ids.0"),
        (changed(token_ids=[1 << 32]), "token_ids.0"),
        (changed(token_ids=["1"]), "token_ids.0"),
        (changed(token_ids=5), "token_ids"),
        (changed(text=None), "text"),
        (changed(host="x", fingerprint="a" * 301), "fingerprint"),
        (changed(attempts=[ATTEMPT] * (MAX_BUNDLE_ATTEMPTS + 1)), "attempts"),
        (changed(attempts=[{**ATTEMPT, "from_offset": "0"}]), "attempts.0.from_offset"),
        (changed(attempts=[5]), "attempts.0"),
        (changed(request={"prompt": ""}), "prompt is empty"),
        (changed(request={"prompt": "x", "max_tokens": 0}), "max_tokens"),
        (changed(request={"prompt": "x", "sampling": {"temperature": "hot"}}), "temperature"),
        (changed(request={"prompt": "x", "shell": "rm"}), "shell"),
        (changed(request={"prompt": "x" * (1 << 20)}), "limit"),
        (changed(text=5).replace(b'"text": 5', b'"text": NaN'), "text"),
        (changed(text="x").replace(b'"text": "x"', b'"text": "\\ud800"'), "JSON"),
    ],
)
def test_what_is_no_bundle_is_refused_with_its_reason(data: bytes, word: str) -> None:
    with pytest.raises(MalformedDocument) as refused:
        parse_bundle(data)
    assert word in str(refused.value)
    assert len(str(refused.value)) < 700


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_damage_is_refused_or_leaves_a_bundle_that_is_whole(data: st.DataObject) -> None:
    whole = bytearray(pack_bundle(a_bundle()))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "insert", "repeat"]))
        if kind == "set":
            whole[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del whole[at : at + data.draw(st.integers(1, 60))]
        elif kind == "insert":
            whole[at:at] = data.draw(st.binary(max_size=8))
        else:
            whole[at:at] = whole[at : at + data.draw(st.integers(1, 200))]
        if not whole:
            break
    try:
        read = parse_bundle(bytes(whole))
    except MalformedDocument:
        return
    # What is read can be written, and is then the same.
    assert parse_bundle(pack_bundle(read)) == read


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
lists = st.lists(scalars | st.lists(scalars, max_size=3), max_size=4)
json_values = scalars | lists | st.dictionaries(st.text(max_size=8), scalars | lists, max_size=4)


@given(field=st.sampled_from(sorted(a_bundle().document())), value=json_values)
@settings(max_examples=300, deadline=None)
def test_any_value_in_any_field_is_refused_or_kept(field: str, value: object) -> None:
    try:
        read = parse_bundle(changed(**{field: value}))
    except MalformedDocument:
        return
    assert parse_bundle(pack_bundle(read)) == read


def test_the_document_describes_every_field_and_bound() -> None:
    text = (Path(__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
    section = text.partition("\n## Replay bundle\n")[2].partition("\n## ")[0]
    bundle, attempt = section.split("Of an attempt:")
    assert re.findall(r"^\| `(\w+)` \|", bundle, re.MULTILINE) == list(a_bundle().document())[2:]
    assert re.findall(r"^\| `(\w+)` \|", attempt, re.MULTILINE) == list(BundleAttempt.model_fields)
    assert f"`{BUNDLE_SCHEMA}`, version {BUNDLE_VERSION}," in section
    bounds = (MAX_BUNDLE_BYTES, MAX_TOKENS_LIMIT, MAX_BUNDLE_ATTEMPTS, MAX_WORD_CHARS, MAX_REASON_CHARS)
    assert re.findall(r"\b\d\d+\b", section.rpartition("bounded and checked:")[2]) == [str(bound) for bound in bounds]


def test_more_bytes_than_the_bound_are_not_parsed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bundle_module, "MAX_BUNDLE_BYTES", 1000)
    file = tmp_path / "large.json"
    file.write_bytes(pack_bundle(a_bundle(text="x" * 2000)))
    with pytest.raises(BundleError, match="more than 1000 bytes"):
        read_bundle(file)


def test_an_overlong_reason_is_cut_when_a_bundle_is_made() -> None:
    made = a_bundle(last_error="x" * 9000, attempts=[{**ATTEMPT, "reason": "y" * 9000}])
    assert len(made.last_error) == len(made.attempts[0].reason) == MAX_REASON_CHARS
    assert parse_bundle(pack_bundle(made)) == made


def test_what_redis_holds_and_no_bundle_may_is_told_as_such() -> None:
    with pytest.raises(MalformedDocument, match=r"headpond/bundle.*claimed_ms"):
        a_bundle(attempts=[{**ATTEMPT, "claimed_ms": "soon"}])


def test_a_bundle_is_written_for_its_owner_alone_and_never_over_another_file(tmp_path: Path) -> None:
    file = tmp_path / "one.json"
    old = os.umask(0)
    try:
        write_bundle(a_bundle(), file, force=False)
        with pytest.raises(BundleError, match="exists, and is not overwritten without --force"):
            write_bundle(a_bundle(seed=8), file, force=False)
        assert read_bundle(file) == a_bundle()
        file.chmod(0o666)
        write_bundle(a_bundle(seed=8), file, force=True)
    finally:
        os.umask(old)
    assert read_bundle(file) == a_bundle(seed=8)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_is_not_written_through_without_force(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(BundleError, match="exists"):
        write_bundle(a_bundle(), link, force=False)
    assert not target.exists()


def test_files_that_cannot_be_read_or_written_are_told_by_name(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, words in (
        (tmp_path / "none.json", "No such file"),
        (tmp_path, "no regular file|Is a directory"),
        (pipe, "no regular file"),
        (Path("/dev/zero"), "no regular file"),
    ):
        with pytest.raises(BundleError, match=words) as refused:
            read_bundle(path)
        assert str(path) in str(refused.value)
    for path in (tmp_path / "none" / "one.json", tmp_path):
        for force in (False, True):
            with pytest.raises(BundleError) as refused:
                write_bundle(a_bundle(), path, force=force)
            assert str(path) in str(refused.value)
