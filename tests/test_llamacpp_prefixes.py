"""Keys and values of llama.cpp's slots go through a file into another server, or are refused and change nothing."""

from __future__ import annotations

import json
import re
import stat
import struct
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headpond.errors import PrefixRefused
from headpond.sampling import Sampling
from headpond.tables import AdapterTable
from headpond_workers.engines.llamacpp.prefixes import LlamaCppPrefixEngine
from headpond_workers.engines.prefix_header import MAX_HEADER_BYTES, read_fingerprint, read_head
from headpond_workers.engines.protocol import Capability, PrefixEngine, Sequence, Verdict
from llama_engines import smollm2, table
from tiny_gguf import write_adapter

STORY = "Once there was a mill by a river, and the miller counted the sacks each evening. "
DEADLINE_S = 120.0
TOKENS = 96


@dataclass(frozen=True)
class Answer:
    ids: tuple[int, ...]
    cached_tokens: int


def engine_in(folder: Path, **more: Any) -> LlamaCppPrefixEngine:
    folder.mkdir(mode=0o700)
    settings_of = table(smollm2(), **{"slots": 2, "kv": "local", "kv_min_tokens": 64, **more})
    return LlamaCppPrefixEngine(settings_of, smollm2(), slot_folder=folder)


def answer(engine: LlamaCppPrefixEngine, ids: Seq[int], *, new: int = 8, adapter: str | None = None) -> Answer:
    made: list[int] = []

    def emit(more: Seq[int]) -> Verdict:
        made.extend(more)
        return Verdict.GO

    finish = engine.generate(Sequence(tuple(ids), (), new, Sampling(temperature=0.0), 7, adapter), emit)
    return Answer(tuple(made), int(finish.details["cached_tokens"]))


def story(engine: LlamaCppPrefixEngine, tokens: int = TOKENS) -> tuple[int, ...]:
    return tuple(engine.encode(STORY * 20)[:tokens])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCppPrefixEngine]:
    engine = engine_in(tmp_path_factory.mktemp("source") / "slots")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCppPrefixEngine]:
    """Another server of the same model."""
    engine = engine_in(tmp_path_factory.mktemp("target") / "slots")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def stored(source: LlamaCppPrefixEngine, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A sound file of the story and what the source answered."""
    path = tmp_path_factory.mktemp("stored") / "prefix"
    ids = story(source)
    made = answer(source, ids).ids
    assert source.save_prefix((*ids, *made), path) == TOKENS + len(made) - 1
    return path.read_bytes()


def file_of(content: bytes, folder: Path) -> Path:
    path = folder / "prefix"
    path.write_bytes(content)
    return path


def reframed(content: bytes, change: Any) -> bytes:
    """A file with its header changed by change(document), and nothing made to fit."""
    length = int.from_bytes(content[:8], "little")
    document = json.loads(content[8 : 8 + length])
    change(document)
    header = json.dumps(document, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def refusal(engine: LlamaCppPrefixEngine, path: Path) -> str:
    with pytest.raises(PrefixRefused) as caught:
        engine.load_prefix(path)
    return str(caught.value)


# --- through a file and back


def test_the_engine_says_what_it_can(source: LlamaCppPrefixEngine) -> None:
    assert Capability.KV_PREFIXES in source.info.capabilities
    assert isinstance(source, PrefixEngine)


def test_a_loaded_prefix_is_not_computed_again_and_goes_on_alike(
    source: LlamaCppPrefixEngine, target: LlamaCppPrefixEngine, stored: bytes, tmp_path: Path
) -> None:
    ids = story(target)
    before = answer(target, ids)
    assert before.cached_tokens == 0
    covered = target.load_prefix(file_of(stored, tmp_path))
    again = answer(target, ids)
    assert covered == TOKENS + len(before.ids) - 1
    assert again == Answer(before.ids, TOKENS - 1)


def test_a_longer_prompt_computes_what_follows_alone(
    target: LlamaCppPrefixEngine, stored: bytes, tmp_path: Path
) -> None:
    covered = target.load_prefix(file_of(stored, tmp_path))
    longer = (*read_head(tmp_path / "prefix").ids, *target.encode("And then it rained."))
    assert answer(target, longer).cached_tokens == covered


def test_a_prompt_that_begins_otherwise_uses_what_is_alike(
    target: LlamaCppPrefixEngine, stored: bytes, tmp_path: Path
) -> None:
    ids = (*story(target, 80), *target.encode("But no."))
    prefilled = answer(target, ids)
    target.load_prefix(file_of(stored, tmp_path))
    assert answer(target, ids) == Answer(prefilled.ids, 80)


def test_a_file_is_used_once_and_a_sequence_without_one_reuses_nothing(
    target: LlamaCppPrefixEngine, stored: bytes, tmp_path: Path
) -> None:
    ids = story(target)
    target.load_prefix(file_of(stored, tmp_path))
    assert answer(target, ids).cached_tokens == TOKENS - 1
    for _ in range(target.info.slots + 1):
        assert answer(target, ids).cached_tokens == 0


def test_a_sequence_beside_it_does_not_take_the_slot_of_a_loaded_prefix(
    target: LlamaCppPrefixEngine, stored: bytes, tmp_path: Path
) -> None:
    target.load_prefix(file_of(stored, tmp_path))
    other = target.encode("What is the capital of France, and what does one eat there?")
    assert answer(target, other).cached_tokens == 0
    assert answer(target, story(target)).cached_tokens == TOKENS - 1


def test_prefixes_of_several_sequences_go_to_their_own_slots(
    source: LlamaCppPrefixEngine, target: LlamaCppPrefixEngine, tmp_path: Path
) -> None:
    prompts = [tuple(source.encode(f"Number {n}. " + STORY * 4)) for n in range(2)]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda ids: answer(source, ids), prompts))
    for number, (ids, made) in enumerate(zip(prompts, answers, strict=True)):
        path = tmp_path / str(number)
        assert source.save_prefix((*ids, *made.ids), path) >= len(ids)
    for number in range(2):
        target.load_prefix(tmp_path / str(number))
    with ThreadPoolExecutor(2) as pool:
        again = list(pool.map(lambda ids: answer(target, ids), reversed(prompts)))
    assert [found.cached_tokens for found in again] == [len(ids) - 1 for ids in reversed(prompts)]


def test_a_prefix_that_nothing_holds_is_not_saved(source: LlamaCppPrefixEngine, tmp_path: Path) -> None:
    assert source.save_prefix(source.encode(f"Nobody asked this. {STORY}"), tmp_path / "none") == 0
    assert not (tmp_path / "none").exists()


def test_what_another_sequence_has_overwritten_is_not_saved(source: LlamaCppPrefixEngine, tmp_path: Path) -> None:
    ids = story(source)
    answer(source, ids)
    for number in range(source.info.slots + 1):
        answer(source, source.encode(f"{number}: " + STORY * 5))
    assert source.save_prefix(ids, tmp_path / "gone") == 0
    assert not (tmp_path / "gone").exists()


def test_a_file_is_private_and_nothing_is_left_in_the_slot_folder(
    source: LlamaCppPrefixEngine, target: LlamaCppPrefixEngine, tmp_path: Path
) -> None:
    ids = story(source)
    answer(source, ids)
    path = tmp_path / "prefix"
    assert source.save_prefix(ids, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert target.load_prefix(path)
    assert answer(target, ids).cached_tokens == TOKENS - 1
    assert not list(source._folder.iterdir())
    assert not list(target._folder.iterdir())


def test_an_adapter_has_prefixes_of_its_own(tmp_path: Path) -> None:
    targets = [f"blk.{layer}.attn_{part}.weight" for layer in (3, 9, 15) for part in ("q", "v", "output")]
    one = write_adapter(tmp_path / "one.gguf", smollm2(), seed=1, targets=targets, size=0.12)
    adapters = {"one": AdapterTable(path=one)}
    engine, fresh = (engine_in(tmp_path / name, adapters=adapters) for name in ("a", "b"))
    try:
        ids = story(engine, 160)
        plain, adapted = answer(engine, ids), answer(engine, ids, adapter="one")
        assert plain.ids != adapted.ids
        assert engine.prefix_fingerprint(None) != engine.prefix_fingerprint("one")
        for name, made in ((None, plain), ("one", adapted)):
            path = tmp_path / f"prefix-{name}"
            assert engine.save_prefix((*ids, *made.ids), path, adapter=name)
            assert fresh.load_prefix(path)
            # One of the other adapter does not use it, and is right.
            assert answer(fresh, ids, adapter=None if name else "one").cached_tokens == 0
            fresh.load_prefix(path)
            assert answer(fresh, ids, adapter=name) == Answer(made.ids, len(ids) - 1)
    finally:
        engine.close()
        fresh.close()


# --- what is refused


def check_right(engine: LlamaCppPrefixEngine) -> None:
    """After a refusal: the answer is that of a prompt which was read."""
    ids = story(engine)
    assert answer(engine, ids).cached_tokens == 0


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_is_refused_wherever_it_is(
    data: st.DataObject, target: LlamaCppPrefixEngine, stored: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    header = 8 + int.from_bytes(stored[:8], "little")
    at = data.draw(st.one_of(st.integers(0, header + 8 * TOKENS), st.integers(header, len(stored) - 1)))
    flipped = bytearray(stored)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    path = file_of(bytes(flipped), tmp_path_factory.mktemp("flipped"))
    refusal(target, path)
    assert not list(target._folder.iterdir())


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_truncated_file_is_refused(
    data: st.DataObject, target: LlamaCppPrefixEngine, stored: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    length = data.draw(st.one_of(st.integers(0, 4096), st.integers(0, len(stored) - 1)))
    refusal(target, file_of(stored[:length], tmp_path_factory.mktemp("short")))
    assert not list(target._folder.iterdir())


def test_a_refused_file_leaves_answers_right(target: LlamaCppPrefixEngine, stored: bytes, tmp_path: Path) -> None:
    expected = answer(target, story(target))
    flipped = bytearray(stored)
    flipped[len(stored) // 2] ^= 1
    assert "damaged" in refusal(target, file_of(bytes(flipped), tmp_path))
    assert answer(target, story(target)) == expected


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("weights_digest", "0" * 64, "made with weights digest"),
        ("engine", "xllamacpp 2025.1.1", 'engine "xllamacpp 2025.1.1", this model has "xllamacpp 2026'),
        ("cache", "q8_0 q8_0", 'cache "q8_0 q8_0", this model has "f16 f16"'),
        ("adapter_scaling", 2.0, "adapter scaling 2.0, this model has null"),
    ],
)
def test_a_file_of_another_model_or_build_is_refused(
    part: str, value: object, said: str, target: LlamaCppPrefixEngine, stored: bytes, tmp_path: Path
) -> None:
    def change(document: Any) -> None:
        metadata = document["__metadata__"]
        fingerprint = json.loads(metadata["fingerprint"])
        fingerprint[part] = value
        metadata["fingerprint"] = json.dumps(fingerprint, sort_keys=True)

    assert said in refusal(target, file_of(reframed(stored, change), tmp_path))
    check_right(target)


def test_a_file_of_another_real_model_is_refused(stored: bytes, tmp_path: Path) -> None:
    other = engine_in(tmp_path / "slots", cache_type_k="q8_0", flash_attention="on", cache_type_v="q8_0")
    try:
        assert 'cache "f16 f16", this model has "q8_0 q8_0"' in refusal(other, file_of(stored, tmp_path))
    finally:
        other.close()


def test_a_file_of_more_tokens_than_a_slot_holds_is_refused(stored: bytes, tmp_path: Path) -> None:
    small = engine_in(tmp_path / "slots", context_tokens=64)
    try:
        assert re.search(r"covers \d+ tokens, and this cache holds 64", refusal(small, file_of(stored, tmp_path)))
    finally:
        small.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "too few for its header"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{" * (MAX_HEADER_BYTES + 1), "the limit is"),
        ((1 << 63).to_bytes(8, "little") + b"{}", "too few for its header"),
        ((2).to_bytes(8, "little") + b"[]", "not a JSON object"),
        ((40_000).to_bytes(8, "little") + b"[" * 40_000, "not JSON"),
    ],
)
def test_a_hostile_header_is_refused(content: bytes, said: str, target: LlamaCppPrefixEngine, tmp_path: Path) -> None:
    assert said in refusal(target, file_of(content, tmp_path))


@pytest.mark.parametrize(
    ("shape", "said"),
    [([1 << 60], "has the shape"), ([-1], "has the shape"), (["x"], "has the shape"), ([10, 10], "has the shape"),
     ([1 << 40], "not written as this format asks")],
)  # fmt: skip
def test_a_header_that_lies_about_the_slot_is_refused(
    shape: list[Any], said: str, target: LlamaCppPrefixEngine, stored: bytes, tmp_path: Path
) -> None:
    changed = reframed(stored, lambda document: document["slot"].update(shape=shape))
    assert said in refusal(target, file_of(changed, tmp_path))


def test_ids_that_llamacpp_would_take_otherwise_are_refused(
    target: LlamaCppPrefixEngine, stored: bytes, tmp_path: Path
) -> None:
    """Whole, with a right digest, but made by somebody else."""
    from headpond_workers.engines.llamacpp.slot_file import write_slot_file

    sound = file_of(stored, tmp_path)
    ids = read_head(sound).ids
    start = 8 + int.from_bytes(stored[:8], "little") + 8 * len(ids)
    fingerprint: Any = read_fingerprint(sound)
    body = tmp_path / "body"
    for content, named, said in (
        (stored[start:], (5, *ids[1:]), "not those that it names"),
        (struct.pack("<3I", 1, 2, 3) + bytes(100), ids, "no file of this llama.cpp"),
        (b"short", ids, "no file of this llama.cpp"),
    ):
        body.write_bytes(content)
        forged = tmp_path / "forged"
        write_slot_file(forged, fingerprint=fingerprint, ids=named, body=body)
        assert said in refusal(target, forged)
        assert not list(target._folder.iterdir())


def test_a_name_that_is_no_file_is_refused(target: LlamaCppPrefixEngine, tmp_path: Path) -> None:
    assert "No such file" in refusal(target, tmp_path / "missing")
    assert "regular" in refusal(target, tmp_path)
