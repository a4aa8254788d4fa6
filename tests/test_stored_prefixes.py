"""Stored prefixes on one machine: what is found, whether it pays, what is kept, and what a killed writer leaves."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from child_environment import with_test_modules
from conftest import eventually
from headpond.errors import PrefixRefused
from headpond.tables import LlamaCppModel
from headpond_workers.engines.llamacpp.prefixes import common_tokens
from headpond_workers.prefixes.blocks import BLOCK_TOKENS, block_hashes, prefix_name
from headpond_workers.prefixes.choice import Offer, Tier, choose
from headpond_workers.prefixes.counts import Counts, counts_in
from headpond_workers.prefixes.folders import OUTBOX, prefixes_in, slot_folder
from headpond_workers.prefixes.forgetting import forget_model
from headpond_workers.prefixes.index import PrefixIndex
from headpond_workers.prefixes.local import LocalPrefixes
from headpond_workers.prefixes.rates import RateBook, Rates
from paper_engine import TOKEN_BYTES, PaperEngine
from prefix_turns import MODEL, Host, host_of

FINGERPRINT = "a" * 64
PROMPT = tuple(range(400))
FAST_DISK = Rates(prefill_tokens_per_s=100.0, disk_bytes_per_s=1e9, storage_bytes_per_s=1e8)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def host(engine: PaperEngine | None = None, folder: str = "state", **table: Any) -> Host:
        made.append(host_of(engine or PaperEngine(), tmp_path / folder, **table))
        return made[-1]

    yield host
    for each in made:
        each.prefixes.stop()


def kept(host: Host, count: int) -> None:
    """Wait until so many prefixes are written."""
    eventually(lambda: host.counts().saved >= count, what=f"{count} saved prefixes")


# --- names of beginnings


@given(
    common=st.lists(st.integers(0, 3), max_size=3 * BLOCK_TOKENS),
    rests=st.tuples(st.lists(st.integers(0, 3), max_size=100), st.lists(st.integers(0, 3), max_size=100)),
)
def test_two_prompts_share_as_many_hashes_as_whole_blocks(
    common: list[int], rests: tuple[list[int], list[int]]
) -> None:
    one, other = common + rests[0], common + rests[1]
    alike = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    pairs = zip(block_hashes(FINGERPRINT, one), block_hashes(FINGERPRINT, other), strict=False)
    assert sum(a == b for a, b in pairs) == alike // BLOCK_TOKENS


def test_another_fingerprint_shares_no_name() -> None:
    assert not set(block_hashes("a" * 64, PROMPT)) & set(block_hashes("b" * 64, PROMPT))
    assert prefix_name("a" * 64, PROMPT) != prefix_name("b" * 64, PROMPT)


@given(
    stored=st.dictionaries(st.sampled_from("abcdef"), st.lists(st.integers(0, 1), min_size=1, max_size=6), max_size=6),
    prompt=st.lists(st.integers(0, 1), max_size=6),
    dropped=st.sets(st.sampled_from("abcdef")),
)
def test_the_index_finds_what_has_most_in_common(
    stored: dict[str, list[int]], prompt: list[int], dropped: set[str]
) -> None:
    """As a search through all of them does. A letter here stands for a block."""

    def chain(blocks: list[int]) -> list[bytes]:
        return [bytes(blocks[: end + 1]) for end in range(len(blocks))]

    index = PrefixIndex()
    for name, blocks in stored.items():
        index.put(name, chain(blocks), size_bytes=len(blocks))
    index.keep(stored.keys() - dropped)
    alike = {name: common_tokens(prompt, blocks) for name, blocks in stored.items() if name not in dropped}
    best = max(alike.values(), default=0)
    found = index.find(chain(prompt))
    if best == 0:
        assert found is None
    else:
        assert found is not None
        assert found.tokens == best * BLOCK_TOKENS
        assert alike[found.name] == best
        assert found.size_bytes == min(len(stored[name]) for name, count in alike.items() if count == best)


# --- the choice


def test_a_prefix_is_loaded_only_where_that_is_quicker() -> None:
    cheap = Offer(Tier.LOCAL, "n", tokens=1000, size_bytes=1_000_000)
    assert choose([cheap], FAST_DISK) == cheap
    # A device that reads a prompt in no time.
    assert choose([cheap], Rates(prefill_tokens_per_s=1e9, disk_bytes_per_s=1e9)) is None
    # 10 s of prefill against 100 s from a slow disk.
    assert choose([cheap], Rates(prefill_tokens_per_s=100.0, disk_bytes_per_s=1e4)) is None


def test_a_longer_prefix_from_storage_is_weighed_against_a_shorter_one_from_disk() -> None:
    here = Offer(Tier.LOCAL, "here", tokens=500, size_bytes=10_000_000)
    there = Offer(Tier.STORAGE, "there", tokens=1000, size_bytes=20_000_000)
    assert choose([here, there], FAST_DISK) == there
    slow = Rates(prefill_tokens_per_s=100.0, disk_bytes_per_s=1e9, storage_bytes_per_s=1e6)
    assert choose([here, there], slow) == here


def test_nothing_is_loaded_while_prefill_was_not_measured() -> None:
    assert choose([Offer(Tier.LOCAL, "n", tokens=1000, size_bytes=1)], Rates()) is None


def test_measured_rates_are_kept_for_the_next_process(tmp_path: Path) -> None:
    book = RateBook(tmp_path / "deep")
    book.prefilled(1000, 10.0)
    book.loaded(500, 1.0)
    book.fetched(300, 1.0)
    book.keep()
    assert RateBook(tmp_path / "deep").now == Rates(100.0, 500.0, 300.0)
    book.prefilled(1000, 5.0)
    assert book.now.prefill_tokens_per_s == pytest.approx(130.0)
    book.prefilled(10, 5.0)
    assert book.now.prefill_tokens_per_s == pytest.approx(130.0)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"prefill_tokens_per_s": -5, "disk_bytes_per_s": "x"}', b'{"disk_bytes_per_s": NaN}',
     b"[" * 100_000, b'{"prefill_tokens_per_s": 1e999}', b'{"storage_bytes_per_s": 0}', b"\xff" * 70_000],
)  # fmt: skip
def test_damaged_rates_count_as_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "rates.json").write_bytes(content)
    assert RateBook(tmp_path).now == Rates()


# --- turns of a session


def test_the_next_turn_of_a_session_computes_only_what_is_new(hosts: Callable[..., Host]) -> None:
    host = hosts()
    answer, cached = host.turn(PROMPT)
    assert cached == 0
    kept(host, 1)
    longer = (*PROMPT, *answer, 7, 7, 7)
    assert host.turn(longer)[1] == len(PROMPT) + len(answer) - 1
    assert host.counts().hits == 1


def test_another_process_of_the_host_finds_it(hosts: Callable[..., Host]) -> None:
    first = hosts()
    first.turn(PROMPT)
    kept(first, 1)
    first.prefixes.stop()
    second = hosts(instance="chat-1")
    assert second.turn(PROMPT)[1] == len(PROMPT) - 1
    second.prefixes.stop()
    counted = counts_in(second.local().folder)
    assert (counted.hits, counted.hit_tokens, counted.missed) == (1, len(PROMPT) - 1, 1)


def test_a_conversation_that_branches_off_uses_what_it_has_in_common(hosts: Callable[..., Host]) -> None:
    host = hosts()
    host.turn(PROMPT)
    kept(host, 1)
    assert host.turn((*PROMPT[:200], *range(9000, 9100)))[1] == 200
    assert host.turn((*PROMPT[: BLOCK_TOKENS - 1], *range(9000, 9100)))[1] == 0


def test_a_turn_that_adds_less_than_a_block_is_not_written_again(hosts: Callable[..., Host]) -> None:
    host = hosts()
    host.turn(PROMPT)
    kept(host, 1)
    host.turn(PROMPT)
    host.turn((*PROMPT, 5))
    host.turn((*PROMPT, *range(2 * BLOCK_TOKENS)))
    kept(host, 2)
    assert len(host.files()) == 2


def test_what_is_short_is_neither_kept_nor_looked_for(hosts: Callable[..., Host]) -> None:
    host = hosts(kv_min_tokens=500)
    host.turn(PROMPT)
    host.turn(PROMPT)
    assert host.counts() == Counts()
    assert host.files() == []


def test_a_prefix_that_did_not_take_is_counted_and_the_answer_is_right(hosts: Callable[..., Host]) -> None:
    host = hosts(PaperEngine(forgetful=True))
    answer, _ = host.turn(PROMPT)
    kept(host, 1)
    assert host.turn(PROMPT) == (answer, 0)
    assert (host.counts().not_taken, host.counts().hits) == (1, 0)


def test_what_the_device_holds_still_is_not_loaded_again(hosts: Callable[..., Host]) -> None:
    engine = PaperEngine()
    host = hosts(engine)
    host.turn(PROMPT)
    kept(host, 1)
    engine.holds = len(PROMPT) - 1
    host.turn(PROMPT)
    assert engine.loads == 0
    engine.holds = 100
    host.turn(PROMPT)
    assert engine.loads == 1


def test_a_damaged_file_is_refused_removed_and_the_prompt_computed(hosts: Callable[..., Host]) -> None:
    host = hosts()
    answer, _ = host.turn(PROMPT)
    kept(host, 1)
    (path,) = host.files()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert host.turn(PROMPT) == (answer, 0)
    assert host.counts().refused == 1
    # That turn has put a sound one in its place.
    kept(host, 2)
    assert host.turn(PROMPT)[1] == len(PROMPT) - 1


def test_a_file_of_another_model_in_the_folder_is_not_loaded(hosts: Callable[..., Host]) -> None:
    other, host = hosts(PaperEngine(weights="other"), folder="other"), hosts()
    other.turn(PROMPT)
    kept(other, 1)
    (theirs,) = other.files()
    host.local().path(theirs.stem).write_bytes(theirs.read_bytes())
    host.turn(PROMPT)
    assert host.turn((*PROMPT, 1))[1] in (0, len(PROMPT) + 9)
    assert host.counts().refused == 0


def test_a_file_that_is_none_is_removed_when_it_is_seen(hosts: Callable[..., Host]) -> None:
    host = hosts()
    hostile = host.local().path("0" * 32)
    hostile.write_bytes((1 << 40).to_bytes(8, "little") + b"{" * 100)
    assert host.turn(PROMPT)[1] == 0
    assert not hostile.exists()


def test_a_disk_that_refuses_costs_the_prefix_and_nothing_else(hosts: Callable[..., Host], tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "kv").write_bytes(b"no folder")
    host = hosts()
    answer, _ = host.turn(PROMPT)
    assert host.turn(PROMPT) == (answer, 0)


@pytest.mark.parametrize("call", ["prefix_fingerprint", "held_prefix", "take_prefix", "load_prefix"])
def test_an_engine_that_fails_at_it_costs_no_answer(
    call: str, hosts: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = PaperEngine()
    host = hosts(engine)
    answer, _ = host.turn(PROMPT)
    kept(host, 1)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine, call, fail)
    longer = (*PROMPT, *range(3 * BLOCK_TOKENS))
    assert host.turn(longer)[0] == answer
    monkeypatch.undo()
    assert host.turn(PROMPT)[1] == len(PROMPT) - 1


def test_copies_that_the_disk_cannot_follow_are_dropped(hosts: Callable[..., Host], tmp_path: Path) -> None:
    gate = threading.Event()

    class SlowDisk(PaperEngine):
        def take_prefix(self, ids: Any, *, adapter: str | None = None) -> Any:
            taken = super().take_prefix(ids, adapter=adapter)

            class Copy:
                ids = taken.ids  # type: ignore[union-attr]

                def write(self, path: Path) -> None:
                    gate.wait(30)
                    taken.write(path)  # type: ignore[union-attr]

                def discard(self) -> None:
                    pass

            return Copy()

    host = hosts(SlowDisk())
    for number in range(6):
        host.turn(tuple(range(1000 * number, 1000 * number + 200)))
    gate.set()
    eventually(lambda: host.counts().saved + host.counts().dropped == 6, what="all are saved or dropped")
    assert 2 <= host.counts().saved <= 3


# --- bounds


def test_the_disk_is_bounded_and_what_was_used_longest_ago_goes_first(hosts: Callable[..., Host]) -> None:
    tokens = 200
    # Of four files with their headers three fit.
    host = hosts(kv_max_gb=3.5 * tokens * (TOKEN_BYTES + 8) / 1e9)
    prompts = [tuple(range(1000 * n, 1000 * n + tokens)) for n in range(4)]
    for number, prompt in enumerate(prompts[:3]):
        host.turn(prompt)
        kept(host, number + 1)
    assert host.turn(prompts[0])[1] == tokens - 1
    host.turn(prompts[3])
    kept(host, 4)
    eventually(lambda: len(host.files()) == 3, what="one was removed")
    # The one that is gone last: it is computed and kept anew, and takes the place of another.
    assert [host.turn(prompts[number])[1] > 0 for number in (0, 2, 3, 1)] == [True, True, True, False]


def test_the_bound_is_of_all_builds_of_a_model_together(tmp_path: Path) -> None:
    stores = [LocalPrefixes(tmp_path, MODEL, letter * 64, max_bytes=250) for letter in "ab"]
    for at, store in enumerate(stores * 2):
        path = store.path(f"{at:032x}")
        path.write_bytes(b"x" * 100)
        os.utime(path, ns=(at, at))
    stores[1].make_room()
    assert sorted(found.path.name[:32] for store in stores for found in prefixes_in(store.folder)) == [
        f"{at:032x}" for at in (2, 3)
    ]


def test_the_outbox_is_bounded_too(tmp_path: Path) -> None:
    store = LocalPrefixes(tmp_path, MODEL, FINGERPRINT, max_bytes=250)
    for at in range(4):
        path = store.path(f"{at:032x}")
        path.write_bytes(b"x" * 100)
        os.utime(path, ns=(at, at))
        store.send(f"{at:032x}")
    assert len(prefixes_in(store.folder / OUTBOX)) == 2


def test_files_and_folders_are_private(hosts: Callable[..., Host]) -> None:
    host = hosts()
    host.turn(PROMPT)
    kept(host, 1)
    host.prefixes.stop()
    for path in host.kv.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_a_writer_that_is_killed_leaves_nothing_that_is_found(tmp_path: Path) -> None:
    """And its half file goes once it is old."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom paper_engine import PaperEngine\nfrom prefix_turns import host_of\n"
        "host = host_of(PaperEngine(), Path(sys.argv[1]))\nn = 0\n"
        "while True:\n    host.turn(tuple(range(n, n + 4000)))\n    n += 5000\n    print(n, flush=True)\n"
    )
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, env=with_test_modules()
        )
        assert child.stdout is not None
        for _ in range(5):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.wait(30)
        child.stdout.close()
    host = host_of(PaperEngine(), tmp_path)
    try:
        store = host.local()
        for path in host.files():
            assert host.engine.load_prefix(path) == 4009
        (store.folder / ".kv-old.partial").write_bytes(b"half")
        os.utime(store.folder / ".kv-old.partial", (1, 1))
        store.make_room()
        assert not (store.folder / ".kv-old.partial").exists()
    finally:
        host.prefixes.stop()


def test_several_processes_share_a_folder_and_its_bound(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom paper_engine import PaperEngine\nfrom prefix_turns import host_of\n"
        "host = host_of(PaperEngine(), Path(sys.argv[1]), instance=f'chat-{sys.argv[2]}', kv_max_gb=0.0005)\n"
        "for n in range(12):\n"
        "    base = n * 1000 + int(sys.argv[2]) * 100000 * (n % 2)\n"
        "    prompt = tuple(range(base, base + 300))\n"
        "    answer, _ = host.turn(prompt)\n    assert answer == tuple(range(10))\n"
        "host.prefixes.stop()\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), str(number)], stderr=subprocess.PIPE,
            env=with_test_modules(),
        )
        for number in range(3)
    ]  # fmt: skip
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors.decode()[-2000:]
    host = host_of(PaperEngine(), tmp_path, kv_max_gb=0.0005)
    try:
        host.local().make_room()
        assert 0 < sum(path.stat().st_size for path in host.files()) <= 500_000
        for path in host.files():
            assert host.engine.load_prefix(path) == 309
    finally:
        host.prefixes.stop()


# --- forgetting


def test_forgetting_a_model_leaves_nothing_of_its_prompts(hosts: Callable[..., Host]) -> None:
    host = hosts()
    host.turn(PROMPT)
    kept(host, 1)
    (path,) = host.files()
    host.local().send(path.stem)
    other = host.kv / "other" / FINGERPRINT
    other.mkdir(parents=True)
    (other / f"{'1' * 32}.kv").write_bytes(b"x")
    assert forget_model(host.kv, MODEL) == 1
    assert not [each for each in (host.kv / MODEL).rglob("*.kv")]
    assert (other / f"{'1' * 32}.kv").exists()
    # It goes on as before.
    assert host.turn(PROMPT)[1] == 0
    kept(host, 2)
    assert host.turn(PROMPT)[1] == len(PROMPT) - 1


def test_one_fingerprint_can_be_forgotten_alone(tmp_path: Path) -> None:
    for letter in "ab":
        LocalPrefixes(tmp_path, MODEL, letter * 64, max_bytes=1).path("0" * 32).write_bytes(b"x")
    assert forget_model(tmp_path, MODEL, "a" * 64) == 1
    assert [path.parent.name for path in tmp_path.rglob("*.kv")] == ["b" * 64]
    assert forget_model(tmp_path, "unknown") == 0


def test_slot_folders_of_processes_that_are_gone_are_emptied(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(30)
    alive = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        for pid in (gone.pid, alive.pid):
            folder = tmp_path / MODEL / "slots" / f"chat-0-{pid}"
            folder.mkdir(parents=True)
            (folder / "a.slot").write_bytes(b"of a prompt")
        own = slot_folder(tmp_path, MODEL, "chat-0")
        assert sorted(own.parent.iterdir()) == sorted([own, own.parent / f"chat-0-{alive.pid}"])
        assert stat.S_IMODE(own.stat().st_mode) == 0o700
        assert slot_folder(tmp_path, MODEL, "chat-0") == own
    finally:
        alive.kill()
        alive.wait(30)


def test_the_exact_profile_refuses_stored_keys_and_values() -> None:
    with pytest.raises(ValueError, match='remove kv = "local", or exact'):
        LlamaCppModel(engine="llamacpp", path=Path("x.gguf"), exact=True, kv="local")


def test_a_fingerprint_that_is_none_names_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no fingerprint"):
        LocalPrefixes(tmp_path, MODEL, "../../etc", max_bytes=1)


def test_the_paper_engine_refuses_as_a_real_one_does(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"0" * 64)
    with pytest.raises(PrefixRefused):
        PaperEngine().load_prefix(tmp_path / "x")
