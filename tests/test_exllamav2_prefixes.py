"""Keys and values of a prompt go through a file into another cache, or are refused and change nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import eventually
from exllamav2_cpu.availability import require_exllamav2
from headpond.errors import EngineError, PrefixRefused

require_exllamav2()

import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402

import exllamav2_generators as exl  # noqa: E402
from exllamav2_cpu.processes import environment, run_python  # noqa: E402
from headpond_workers.engines.exllamav2.pages import PageTable  # noqa: E402
from headpond_workers.engines.exllamav2.prefix_file import TensorLayout, write_prefix_file  # noqa: E402
from headpond_workers.engines.exllamav2.prefixes import (  # noqa: E402
    PrefixFingerprint,
    export_prefix,
    import_prefix,
    place_prefix,
    read_prefix,
    save_prefix,
    take_prefix,
)
from headpond_workers.engines.prefix_header import MAX_HEADER_BYTES, read_fingerprint  # noqa: E402

PAGE = exl.PAGE_TOKENS
KINDS = list(exl.CACHES)
DOCUMENT = (Path(__file__).parents[1] / "docs" / "kv-format.md").read_text(encoding="utf-8")
DEADLINE_S = 30.0


def saved(path: Path, tokens: int, **made: Any) -> tuple[Path, exl.Answer]:
    """A file of the story's first tokens, and what a generator that held them answers."""
    generator = exl.generator(**made)
    ids = exl.story(tokens)
    exl.answer(generator, ids)
    assert export_prefix(generator, ids, path, fingerprint=exl.fingerprint(generator)) == tokens
    return path, exl.answer(generator, ids)


def load(generator: Any, path: Path) -> int:
    return import_prefix(generator, path, fingerprint=exl.fingerprint(generator))


def check_table(generator: Any) -> None:
    """exllamav2's own check of its page table, which it leaves out."""
    generator._ExLlamaV2DynamicGenerator___validate_cache()


def tensors_of(generator: Any) -> list[Any]:
    caches = [generator.cache] if generator.draft_cache is None else [generator.cache, generator.draft_cache]
    return [tensor for cache in caches for tensor in cache.all_tensors()]


def state(generator: Any) -> tuple[list[Any], list[Any]]:
    """The page table and the content of the cache."""
    table = [
        (
            page.page_index,
            page.phash,
            page.prev_hash,
            page.ref_count,
            page.access_serial,
            page.kv_position,
            page.sequence[0, : page.kv_position].tolist(),
            page.phash in generator.unreferenced_pages,
        )
        for page in generator.all_pages
    ]
    return [*table, generator.access_serial], [tensor.clone() for tensor in tensors_of(generator)]


def assert_unchanged(generator: Any, before: tuple[list[Any], list[Any]]) -> None:
    table, tensors = state(generator)
    assert table == before[0]
    assert all(torch.equal(now, then) for now, then in zip(tensors, before[1], strict=True))


def reframed(content: bytes, change: Any) -> bytes:
    """A file with its header changed by change(document), and nothing made to fit."""
    length = int.from_bytes(content[:8], "little")
    document = json.loads(content[8 : 8 + length])
    change(document)
    header = json.dumps(document, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A sound file of 24 tokens."""
    path, _ = saved(tmp_path_factory.mktemp("prefix") / "small", 24)
    return path.read_bytes()


@pytest.fixture(scope="module")
def target() -> Any:
    """A generator that all refusals leave as it is."""
    generator = exl.generator(pages=4)
    exl.answer(generator, exl.story(300, skipped=31))
    return generator


@pytest.fixture
def untouched(target: Any) -> Iterator[Any]:
    before = state(target)
    yield target
    assert_unchanged(target, before)


# --- through a file and back


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [600, 512, 513, 20])
def test_a_loaded_prefix_is_not_computed_again_and_goes_on_identically(kind: str, tokens: int, tmp_path: Path) -> None:
    ids = exl.story(tokens)
    source = exl.generator(kind)
    first = exl.answer(source, ids)
    path = tmp_path / "prefix"
    covered = export_prefix(source, ids, path, fingerprint=exl.fingerprint(source))

    fresh = exl.generator(kind)
    assert load(fresh, path) == covered >= tokens - 1
    check_table(fresh)
    again = exl.answer(fresh, ids)

    assert first.cached_tokens == 0
    assert again.cached_tokens == tokens - 1
    assert again.ids == first.ids
    check_table(fresh)


@pytest.mark.slow
def test_a_process_started_later_goes_on_identically_with_every_cache(tmp_path: Path) -> None:
    tokens = 600
    made = {kind: saved(tmp_path / kind, tokens, kind=kind) for kind in KINDS}

    files = [f"{kind}={path}" for kind, (path, _) in made.items()]
    outcomes = json.loads(run_python(["-m", "exllamav2_generators", str(tokens), *files]).splitlines()[-1])

    assert outcomes == [
        {"kind": kind, "loaded": tokens, "cached_tokens": tokens - 1, "ids": list(answer.ids)}
        for kind, (_, answer) in made.items()
    ]


def test_a_conversation_goes_on_after_its_saved_answer(tmp_path: Path) -> None:
    source = exl.generator()
    prompt = exl.story(500)
    spoken = prompt + exl.answer(source, prompt, new=30).ids
    path = tmp_path / "prefix"

    covered = export_prefix(source, spoken, path, fingerprint=exl.fingerprint(source))

    # The last token was drawn and never computed.
    assert covered == len(spoken) - 1
    fresh = exl.generator()
    load(fresh, path)
    longer = exl.answer(fresh, spoken + exl.story(40))
    assert longer.cached_tokens == covered
    assert longer.ids == exl.answer(exl.generator(), spoken + exl.story(40)).ids


def test_the_file_has_what_the_document_says(tmp_path: Path) -> None:
    path, _ = saved(tmp_path / "prefix", 300, kind="Q4")
    generator = exl.generator("Q4")

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        shapes = {name: (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - it is no dict
        ids = file.get_tensor("ids")

    assert ids.tolist() == list(exl.story(300))
    assert set(metadata) == {"format", "version", "tokens", "digest", "fingerprint"}
    assert json.loads(metadata["fingerprint"]) == dataclasses.asdict(exl.fingerprint(generator))
    assert read_fingerprint(path) == dataclasses.asdict(exl.fingerprint(generator))
    kinds = {"key_states": ("U8", 16), "value_states": ("U8", 16), "key_scales": ("F16", 1), "value_scales": ("F16", 1)}
    assert shapes == {"ids": ("I64", [300])} | {
        f"{name}.{layer}": (dtype, [300, 2, items]) for name, (dtype, items) in kinds.items() for layer in range(2)
    }
    assert len(shapes) - 1 == len(generator.cache.all_tensors())
    table = re.findall(
        r"^\| (`[a-z_`, ]+`) \|", DOCUMENT.split("## The fingerprint")[1].split("\n## ")[0], re.MULTILINE
    )
    named = [name for row in table for name in re.findall("`([a-z_]+)`", row)]
    assert named == [field.name for field in dataclasses.fields(PrefixFingerprint)]


def test_what_is_not_held_is_not_saved(tmp_path: Path) -> None:
    generator = exl.generator()
    exl.answer(generator, exl.story(300))

    assert (
        export_prefix(generator, exl.story(300, skipped=7), tmp_path / "f", fingerprint=exl.fingerprint(generator)) == 0
    )
    assert list(tmp_path.iterdir()) == []


def test_only_the_leading_tokens_that_agree_are_saved(tmp_path: Path) -> None:
    generator = exl.generator()
    held = exl.story(560)
    exl.answer(generator, held)
    asked = (*held[:540], *exl.story(30, skipped=3))

    assert export_prefix(generator, asked, tmp_path / "f", fingerprint=exl.fingerprint(generator)) == 540

    assert load(exl.generator(), tmp_path / "f") == 540


def test_a_prefix_is_found_after_its_pages_were_moved(tmp_path: Path) -> None:
    ids = exl.story(800)
    generator = exl.generator(pages=8)
    generator.last_defrag_serial = 1 << 30  # not by itself
    exl.answer(generator, ids[: PAGE + 1])
    exl.answer(generator, exl.story(PAGE + 1, skipped=11))
    first = exl.answer(generator, ids)
    taken_at = [span.page.page_index for span in PageTable(generator).held(torch.tensor([ids]))]
    generator.last_defrag_serial = 0
    generator.defrag_cache()
    moved_to = [span.page.page_index for span in PageTable(generator).held(torch.tensor([ids]))]
    assert moved_to != taken_at

    export_prefix(generator, ids, tmp_path / "f", fingerprint=exl.fingerprint(generator))

    fresh = exl.generator()
    assert load(fresh, tmp_path / "f") == 800
    assert exl.answer(fresh, ids) == dataclasses.replace(first, cached_tokens=799)


def test_a_draft_model_has_its_keys_and_values_too(tmp_path: Path) -> None:
    ids = exl.story(600)
    path, warm = saved(tmp_path / "f", 600, draft=True)
    fresh = exl.generator(draft=True)

    assert load(fresh, path) == 600

    assert all(torch.any(tensor) for tensor in fresh.draft_cache.all_tensors())
    assert exl.answer(fresh, ids) == warm
    assert warm.cached_tokens == 599
    without = exl.generator()
    with pytest.raises(PrefixRefused, match=f'draft digest "{exl.WEIGHTS}", this model has null'):
        load(without, path)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unpaged_cache_is_one_page(kind: str, tmp_path: Path) -> None:
    ids = exl.story(600)
    path, warm = saved(tmp_path / "f", 600, kind=kind, paged=False, pages=4)
    fresh = exl.generator(kind, paged=False, pages=4)

    assert load(fresh, path) == 600
    assert exl.answer(fresh, ids) == warm
    assert warm.cached_tokens == 599

    running = exl.start(fresh, exl.story(40, skipped=5), new=8)
    fresh.iterate()
    assert load(fresh, path) == 0
    assert len(exl.finish(fresh, running)[0].ids) >= 7
    with pytest.raises(PrefixRefused, match="page tokens 1024, this model has 256"):
        load(exl.generator(kind), path)


# --- into a cache that is in use


def test_loading_twice_changes_nothing_the_second_time(tmp_path: Path) -> None:
    path, first = saved(tmp_path / "f", 600)
    generator = exl.generator()
    load(generator, path)
    pages = [(page.phash, page.prev_hash, page.kv_position) for page in generator.all_pages]
    contents = [tensor.clone() for tensor in tensors_of(generator)]

    assert load(generator, path) == 600

    assert [(page.phash, page.prev_hash, page.kv_position) for page in generator.all_pages] == pages
    assert all(torch.equal(now, then) for now, then in zip(tensors_of(generator), contents, strict=True))
    check_table(generator)
    assert exl.answer(generator, exl.story(600)) == first


def test_running_sequences_do_not_notice_a_load_or_a_save(tmp_path: Path) -> None:
    path, stored = saved(tmp_path / "f", 600)
    prompts = [exl.story(300, skipped=skipped) for skipped in (3, 5)]
    undisturbed = [exl.answer(exl.generator(), prompt, new=40, seed=seed) for seed, prompt in enumerate(prompts)]

    generator = exl.generator(pages=8)
    jobs = [exl.start(generator, prompt, new=40, seed=seed) for seed, prompt in enumerate(prompts)]
    tokens: dict[Any, list[int]] = {job: [] for job in jobs}
    steps = 0
    while generator.num_remaining_jobs():
        for result in generator.iterate():
            if "token_ids" in result:
                tokens[result["job"]] += result["token_ids"][0].tolist()
        steps += 1
        if steps in (1, 2, 20):
            # Amid prefill, and amid decoding.
            used = {page.page_index for page in generator.referenced_pages.values()}
            assert load(generator, path) == 600
            assert used == {page.page_index for page in generator.referenced_pages.values()}
            check_table(generator)
        if steps == 20:
            # Not those in the results: exllamav2 holds ids back until they are text.
            running = tuple(jobs[0].sequences[0].sequence_ids.torch()[0].tolist())
            assert 300 < len(running) < 340
            covered = export_prefix(generator, running, tmp_path / "of", fingerprint=exl.fingerprint(generator))
            assert covered == len(running) - 1

    assert [tuple(tokens[job]) for job in jobs] == [each.ids for each in undisturbed]
    assert exl.answer(generator, exl.story(600)) == stored
    fresh = exl.generator()
    load(fresh, tmp_path / "of")
    resumed = exl.start(fresh, running, new=40 - len(running) + 300, seed=0)
    for _ in running[300:]:
        resumed.rng.random()
    (rest,) = exl.finish(fresh, resumed)
    assert running[300:] + rest.ids == undisturbed[0].ids
    assert rest.cached_tokens == len(running) - 1


def test_a_sequence_that_goes_on_over_a_loaded_page_is_not_disturbed(tmp_path: Path) -> None:
    prompt = exl.story(500)
    source = exl.generator()
    undisturbed = exl.answer(source, prompt, new=40)
    whole = prompt + undisturbed.ids
    export_prefix(source, whole, tmp_path / "f", fingerprint=exl.fingerprint(source))
    generator = exl.generator()
    job = exl.start(generator, prompt, new=40)
    before = [result for _ in range(4) for result in generator.iterate() if "token_ids" in result]

    # The second whole page of the file holds tokens that the job is about to generate into a page of its own.
    assert load(generator, tmp_path / "f") == len(whole) - 1

    (rest,) = exl.finish(generator, job)
    ids = [token for result in before for token in result["token_ids"][0].tolist()]
    assert tuple(ids) + rest.ids == undisturbed.ids
    check_table(generator)


def test_a_page_that_a_running_sequence_is_about_to_fill_is_left_to_it(tmp_path: Path) -> None:
    path, warm = saved(tmp_path / "f", 1000)
    generator = exl.generator()
    job = exl.start(generator, exl.story(1000))
    generator.iterate()
    filled = sum(page.kv_position == PAGE for page in generator.referenced_pages.values())
    assert 0 < filled < 3

    assert load(generator, path) == filled * PAGE

    check_table(generator)
    assert exl.finish(generator, job)[0].ids == warm.ids


def test_pages_of_a_prefill_that_was_cut_off_are_filled(tmp_path: Path) -> None:
    path, warm = saved(tmp_path / "f", 1000)
    generator = exl.generator()
    job = exl.start(generator, exl.story(1000))
    generator.iterate()
    generator.cancel(job)

    assert load(generator, path) == 1000

    check_table(generator)
    assert exl.answer(generator, exl.story(1000)) == warm
    assert warm.cached_tokens == 999


@pytest.mark.parametrize(("free", "covered"), [(0, 0), (1, PAGE), (2, 2 * PAGE), (3, 600)])
def test_with_few_free_pages_the_leading_ones_are_loaded(free: int, covered: int, tmp_path: Path) -> None:
    path, _ = saved(tmp_path / "f", 600)
    generator = exl.generator(pages=4 + free)
    job = exl.start(generator, exl.story(10, skipped=9), new=4 * PAGE - 10)
    generator.iterate()
    assert len(generator.unreferenced_pages) == free

    assert load(generator, path) == covered

    check_table(generator)
    generator.cancel(job)
    assert exl.answer(generator, exl.story(600)).cached_tokens == (599 if covered == 600 else covered)


def test_the_end_of_a_prefix_makes_room_for_its_beginning(tmp_path: Path) -> None:
    path, warm = saved(tmp_path / "f", 1000)
    generator = exl.generator(pages=6)
    exl.answer(generator, exl.story(1000), new=4)
    # Takes the pages that were used longest ago: the first ones of the story.
    job = exl.start(generator, exl.story(10, skipped=9), new=4 * PAGE - 10)
    generator.iterate()
    hashes = [phash for _, phash in PageTable(generator).whole_pages(torch.tensor([exl.story(1000)]))]
    assert [phash in generator.unreferenced_pages for phash in hashes] == [False, False, True]
    assert len(generator.unreferenced_pages) == 2

    assert load(generator, path) == 2 * PAGE

    check_table(generator)
    generator.cancel(job)
    again = exl.answer(generator, exl.story(1000))
    assert again == dataclasses.replace(warm, cached_tokens=2 * PAGE)


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    path, _ = saved(tmp_path / "f", 300)
    generator = exl.generator(pages=6)
    old, recent = exl.story(300, skipped=40), exl.story(300, skipped=50)
    exl.answer(generator, old)
    exl.answer(generator, recent)
    exl.answer(generator, recent)

    assert load(generator, path) == 300

    assert exl.answer(generator, recent).cached_tokens == 299
    assert take_prefix(generator, old) is None or take_prefix(generator, old).ids != old


def test_a_load_that_breaks_off_leaves_no_page_with_the_wrong_content(tmp_path: Path) -> None:
    path, warm = saved(tmp_path / "f", 600)
    before = exl.story(700, skipped=17)
    generator = exl.generator(pages=3)
    exl.answer(generator, before)
    stored = read_prefix(generator, path, fingerprint=exl.fingerprint(generator))
    # Page 0 was used longest ago and is written first. The device fails within page 1, after its keys.
    values = generator.cache.value_states
    whole, values[-1] = values[-1], values[-1][:, : PAGE + 10]

    with pytest.raises(RuntimeError):
        place_prefix(generator, stored)

    values[-1] = whole
    check_table(generator)
    assert take_prefix(generator, before) is None
    pages = {page.page_index: page.kv_position for page in generator.all_pages}
    assert (pages[0], pages[1]) == (PAGE, 0)
    assert exl.answer(generator, exl.story(600)) == dataclasses.replace(warm, cached_tokens=PAGE)


# --- what is refused


def test_a_flipped_bit_anywhere_in_the_header_is_refused(small: bytes, untouched: Any, tmp_path: Path) -> None:
    path = tmp_path / "f"
    end = 8 + int.from_bytes(small[:8], "little")
    path.write_bytes(small)
    with path.open("r+b", buffering=0) as file:
        for position in range(end):
            bit = 1 << position % 8
            os.pwrite(file.fileno(), bytes([small[position] ^ bit]), position)
            with pytest.raises(PrefixRefused):
                load(untouched, path)
            os.pwrite(file.fileno(), small[position : position + 1], position)
    assert read_prefix(untouched, path, fingerprint=exl.fingerprint(untouched)).ids == exl.story(24)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_random_damage_is_refused_and_changes_nothing(
    data: st.DataObject, small: bytes, target: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged = bytearray(small)
    at = data.draw(st.integers(0, len(small) - 1))
    match data.draw(st.sampled_from(["flip", "overwrite", "cut", "remove", "insert"])):
        case "flip":
            damaged[at] ^= 1 << data.draw(st.integers(0, 7))
        case "overwrite":
            put = data.draw(st.binary(min_size=1, max_size=64))
            damaged[at : at + len(put)] = put
        case "cut":
            del damaged[at:]
        case "remove":
            del damaged[at : at + data.draw(st.integers(1, 64))]
        case _:
            damaged[at:at] = data.draw(st.binary(min_size=1, max_size=64))
    path = tmp_path_factory.getbasetemp() / "damaged-prefix"
    path.write_bytes(damaged)
    before = state(target)

    if damaged == small:
        read_prefix(target, path, fingerprint=exl.fingerprint(target))
    else:
        with pytest.raises(PrefixRefused):
            load(target, path)

    assert_unchanged(target, before)


def test_a_damaged_tensor_is_told_from_a_damaged_header(small: bytes, untouched: Any, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(small[:-1] + bytes([small[-1] ^ 1]))

    with pytest.raises(PrefixRefused, match="is damaged: its content has another digest") as refused:
        load(untouched, path)

    assert str(path) in str(refused.value)
    assert not refused.value.retry


@pytest.mark.parametrize("missing", [1, 100, 8000])
def test_a_truncated_file_is_refused_with_its_size(missing: int, small: bytes, untouched: Any, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(small[:-missing])

    with pytest.raises(PrefixRefused, match=f"has {len(small) - missing} bytes, and its header speaks of {len(small)}"):
        load(untouched, path)


HEADERS = {
    "another version": (lambda d: d["__metadata__"].update(version="2"), 'version is "2", and this headpond reads "1"'),
    "another format": (lambda d: d["__metadata__"].update(format="pt"), 'format is "pt"'),
    "no metadata": (lambda d: d.pop("__metadata__"), "no metadata"),
    "metadata of numbers": (lambda d: d["__metadata__"].update(tokens=24), "no metadata"),
    "no tokens": (lambda d: d["__metadata__"].update(tokens="0"), 'covers "0" tokens, which is no number'),
    "more tokens than the cache": (
        lambda d: d["__metadata__"].update(tokens="99999999999"),
        "covers 99999999999 tokens, and this cache holds 1024",
    ),
    "a number without end": (lambda d: d["__metadata__"].update(tokens="9" * 5000), "which is no number"),
    "no fingerprint": (lambda d: d["__metadata__"].pop("fingerprint"), "fingerprint is not JSON"),
    "a fingerprint that is a list": (lambda d: d["__metadata__"].update(fingerprint="[]"), "not a JSON object"),
    "no digest": (lambda d: d["__metadata__"].update(digest="x" * 64), "digest is not one of SHA-256"),
    "a missing tensor": (lambda d: d.pop("value_states.1"), "has no tensor value_states.1"),
    "one tensor too many": (lambda d: d.update(more=d["ids"]), "has 6 tensors, and this cache has 5"),
    "another type": (
        lambda d: d["key_states.0"].update(dtype="F32"),
        r'key_states.0 is "F32" \[24, 2, 32\], and this cache has F16 \[24, 2, 32\]',
    ),
    "another shape": (lambda d: d["key_states.1"].update(shape=[24, 8, 1 << 40]), r"key_states.1 is .* has F16"),
    "overlapping tensors": (lambda d: d["key_states.1"].update(data_offsets=[0, 9]), "not written as this format asks"),
    "an unknown key of a tensor": (lambda d: d["ids"].update(more=1), "not written as this format asks"),
    "unknown metadata": (lambda d: d["__metadata__"].update(more="x"), "not written as this format asks"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_hostile_header_is_refused_with_the_reason(what: str, small: bytes, untouched: Any, tmp_path: Path) -> None:
    change, reason = HEADERS[what]
    path = tmp_path / "f"
    path.write_bytes(reframed(small, change))

    with pytest.raises(PrefixRefused, match=reason):
        load(untouched, path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes, too few"),
        (b"\xff" * 8 + b"{}", "10 bytes, too few"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + bytes(MAX_HEADER_BYTES + 1), "limit is 1048576"),
        ((1000).to_bytes(8, "little") + b"[" * 1000, "header is not JSON"),
        (MAX_HEADER_BYTES.to_bytes(8, "little") + b"[" * MAX_HEADER_BYTES, "header is not JSON"),
        ((2).to_bytes(8, "little") + b"[]", "not a JSON object"),
        ((4).to_bytes(8, "little") + b'"\xff\xfe"', "header is not JSON"),
    ],
)
def test_what_is_no_such_file_is_refused(content: bytes, reason: str, untouched: Any, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(content)

    with pytest.raises(PrefixRefused, match=reason):
        load(untouched, path)


def test_a_refusal_allocates_no_more_than_a_header(small: bytes, untouched: Any, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(reframed(small, lambda document: document["__metadata__"].update(tokens="1024")))
    tracemalloc.start()
    try:
        with pytest.raises(PrefixRefused):
            load(untouched, path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 1 << 18


def test_what_is_no_regular_file_is_refused_at_once(untouched: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    for name, reason in (("pipe", "no regular file"), ("nothing", "No such file"), (".", "no regular file")):
        with pytest.raises(PrefixRefused, match=reason):
            load(untouched, tmp_path / name)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(PrefixFingerprint)])
def test_every_part_of_the_fingerprint_is_compared_and_named(
    field: str, small: bytes, untouched: Any, tmp_path: Path
) -> None:
    path = tmp_path / "f"
    path.write_bytes(small)
    own = exl.fingerprint(untouched)
    other: Any = {str: "other\n\x1b", type(None): 0.5, int: 7}[type(getattr(own, field))]

    with pytest.raises(PrefixRefused) as refused:
        import_prefix(untouched, path, fingerprint=dataclasses.replace(own, **{field: other}))

    assert f"made with {field.replace('_', ' ')} {json.dumps(getattr(own, field))}, this model has " in str(
        refused.value
    )
    assert str(refused.value).isprintable()


def test_a_part_that_is_not_known_is_refused(small: bytes, untouched: Any, tmp_path: Path) -> None:
    path = tmp_path / "f"

    def add(document: Any) -> None:
        parts = json.loads(document["__metadata__"]["fingerprint"])
        document["__metadata__"]["fingerprint"] = json.dumps(parts | {"window": 4096}, sort_keys=True)

    path.write_bytes(reframed(small, add))
    with pytest.raises(PrefixRefused, match='made with "window", which this headpond does not know'):
        load(untouched, path)


def test_another_cache_is_refused_by_name(tmp_path: Path) -> None:
    path, _ = saved(tmp_path / "f", 24, kind="Q4")
    generator = exl.generator()

    with pytest.raises(PrefixRefused, match='made with cache "Q4", this model has "FP16"'):
        load(generator, path)


def test_another_adapter_is_refused(small: bytes, untouched: Any, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(small)
    adapted = exl.fingerprint(untouched, adapter=("french", "a1" * 32, 0.5))

    with pytest.raises(PrefixRefused, match='made with adapter null, this model has "french"'):
        import_prefix(untouched, path, fingerprint=adapted)


def test_stretched_positions_are_another_fingerprint() -> None:
    generator = exl.generator()
    config = generator.model.config
    plain = exl.fingerprint(generator).rope
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "scale_alpha_value", 2.5)
        stretched = exl.fingerprint(generator).rope
        patch.setattr(config, "alt_rope_method", "yarn")
        long = exl.fingerprint(generator).rope

    assert plain == "base 10000.0, scale 1.0, alpha 1.0"
    assert stretched == "base 10000.0, scale 1.0, alpha 2.5"
    assert long == f"{stretched}, yarn for {config.max_seq_len} tokens"


# --- writing


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path, _ = saved(tmp_path / "f", 24)
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def noting_fsync(descriptor: int) -> None:
        fsync(descriptor)
        done.append(("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file", os.fstat(descriptor).st_ino))

    def noting_replace(source: str, target: Path) -> None:
        replace(source, target)
        done.append(("renamed", target.stat().st_ino))

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    path, _ = saved(tmp_path / "f", 24)

    inode = path.stat().st_ino
    assert done == [("file", inode), ("renamed", inode), ("folder", tmp_path.stat().st_ino)]


def full_disk() -> Iterator[memoryview]:
    yield memoryview(bytes(64))
    raise OSError(28, "No space left on device")


def test_a_write_that_fails_leaves_the_file_before_it(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"before")
    layout = [TensorLayout("key_states.0", "F16", (32,)), TensorLayout("value_states.0", "F16", (32,))]

    with pytest.raises(EngineError, match=r"No space left on device\. Make room there"):
        write_prefix_file(path, fingerprint={}, ids=[1], layout=layout, tensors=full_disk())

    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_an_error_that_says_so(tmp_path: Path) -> None:
    generator = exl.generator()
    exl.answer(generator, exl.story(24))
    taken = take_prefix(generator, exl.story(24))
    assert taken is not None

    with pytest.raises(EngineError, match="No such file or directory"):
        save_prefix(taken, tmp_path / "no" / "f", fingerprint=exl.fingerprint(generator))


HALF_WRITTEN = """
import sys
from pathlib import Path
from headpond_workers.engines.exllamav2.prefix_file import TensorLayout, write_prefix_file

def halves():
    yield memoryview(bytes(1 << 20))
    print("half", flush=True)
    sys.stdin.read()
    yield memoryview(bytes(1 << 20))

layout = [TensorLayout("key_states.0", "U8", (1 << 20,)), TensorLayout("value_states.0", "U8", (1 << 20,))]
write_prefix_file(Path(sys.argv[1]), fingerprint={}, ids=[1], layout=layout, tensors=halves())
"""


def test_a_writer_that_is_killed_leaves_no_file_of_that_name(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with subprocess.Popen(
        [sys.executable, "-c", HALF_WRITTEN, str(path)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
        eventually(lambda: list(tmp_path.glob(".kv-*.partial")), what="the temporary file")
        writer.kill()
        assert writer.wait(DEADLINE_S) == -9

    assert not path.exists()
    assert [left.name.startswith(".kv-") for left in tmp_path.iterdir()] == [True]


# --- pages are linked to the page before them


def test_pages_generated_after_a_cached_prompt_are_no_beginning_of_another() -> None:
    prompt = exl.story(2 * PAGE + 1)
    generator = exl.generator()
    exl.answer(generator, prompt, new=30)
    again = exl.answer(generator, prompt, new=30)
    assert again.cached_tokens == 2 * PAGE

    # What stands in the third page, taken for a prompt of its own.
    of_third_page = (prompt[-1], *again.ids)
    alone = exl.answer(generator, of_third_page)

    assert alone == exl.answer(exl.generator(), of_third_page)
    assert alone.cached_tokens == 0


def test_a_page_given_back_after_another_took_its_place_is_no_beginning() -> None:
    prompt = exl.story(3 * PAGE)
    generator = exl.generator(pages=8)
    exl.answer(generator, prompt, new=2)
    exl.answer(generator, exl.story(3 * PAGE, skipped=5), new=2)
    # Borrows the prompt's four pages, which were used longest ago, and writes to the first of them only.
    borrower = exl.start(generator, exl.story(10, skipped=9), new=4 * PAGE - 10)
    generator.iterate()
    again = exl.start(generator, prompt, new=2)
    while again in generator.pending_jobs or again in generator.active_jobs:
        generator.iterate()
    generator.cancel(borrower)

    of_third_page = prompt[2 * PAGE : 2 * PAGE + 40]
    alone = exl.answer(generator, of_third_page)

    check_table(generator)
    assert alone == exl.answer(exl.generator(), of_third_page)
    assert alone.cached_tokens == 0


def test_guesses_beyond_the_end_of_a_page_are_no_beginning() -> None:
    generator = exl.generator(draft=True)
    prompt = exl.story(PAGE - 1)

    # One token is kept. It and the first guess fill the page, the others lie on the next one.
    spoken = exl.answer(generator, prompt, new=1 + exl.DRAFT_TOKENS)

    assert len(spoken.ids) == 1
    (page,) = [page for page in generator.all_pages if page.kv_position]
    assert page.sequence[0, : PAGE - 1].tolist() == list(prompt)
    check_table(generator)
