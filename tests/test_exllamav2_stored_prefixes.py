"""Stored prefixes on exllamav2, the real package on the CPU: turns of a session over engines that come and go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import eventually
from exllamav2_cpu.availability import require_exllamav2
from headpond.tables import ExLlamaV2Model
from prefix_turns import Host, host_of

require_exllamav2()

from exllamav2_cpu import checkpoints, harness  # noqa: E402

STAND_IN = harness.install()

from exllamav2_cpu.tiny_corpus import STORY  # noqa: E402
from headpond_workers.engines.exllamav2.engine import ExLlamaV2Engine  # noqa: E402
from headpond_workers.engines.protocol import PrefixEngine  # noqa: E402

TOKENS = 600


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Each with a fresh engine."""
    made: list[Host] = []

    def host(folder: str = "state", **table: Any) -> Host:
        values = {"engine": "exllamav2", "path": checkpoints.tiny(), "context_tokens": 1024, "slots": 2} | table
        engine = ExLlamaV2Engine(
            ExLlamaV2Model.model_validate(values | {"chunk_tokens": 256}), digest_cache=tmp_path / "digests"
        )
        assert isinstance(engine, PrefixEngine)
        made.append(host_of(engine, tmp_path / folder, instance=f"chat-{len(made)}"))
        return made[-1]

    yield host
    STAND_IN.reset()
    for each in made:
        each.prefixes.stop()
        each.engine.close()


def story(host: Host, tokens: int = TOKENS) -> tuple[int, ...]:
    return tuple(host.engine.encode(STORY * 40)[:tokens])


def kept(host: Host, count: int = 1) -> None:
    eventually(lambda: host.counts().saved >= count, what=f"{count} saved prefixes")


def test_another_engine_goes_on_with_the_session_and_computes_only_what_is_new(hosts: Callable[..., Host]) -> None:
    first = hosts()
    ids = story(first)
    answer, cached = first.turn(ids)
    assert cached == 0
    kept(first)
    first.prefixes.stop()
    second = hosts()
    again, cached = second.turn(ids)
    assert again == answer
    # Pages of 256 tokens, and what is behind the last whole one.
    assert cached >= TOKENS - 2
    assert second.counts().hits == 1


def test_the_next_turn_on_the_same_engine_loads_nothing(hosts: Callable[..., Host]) -> None:
    host = hosts()
    ids = story(host)
    answer, _ = host.turn(ids)
    kept(host)
    assert host.engine.held_prefix(ids) >= TOKENS - 1
    again, cached = host.turn((*ids, *answer))
    assert cached >= TOKENS - 2
    assert host.counts().hits == 0
    assert len(again) == len(answer)


@pytest.mark.parametrize("place", [0.3, 0.999])
def test_a_damaged_file_is_refused_and_the_answer_is_the_same(place: float, hosts: Callable[..., Host]) -> None:
    first = hosts()
    ids = story(first)
    answer, _ = first.turn(ids)
    kept(first)
    first.prefixes.stop()
    (path,) = first.files()
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)
    second = hosts()
    assert second.turn(ids) == (answer, 0)
    assert second.counts().refused == 1


def test_another_cache_or_adapter_has_a_store_of_its_own(hosts: Callable[..., Host]) -> None:
    adapters = {"one": {"path": checkpoints.tiny_adapter(1)}}
    host = hosts(adapters=adapters)
    ids = story(host)
    plain, _ = host.turn(ids)
    kept(host)
    fingerprint = host.engine.prefix_fingerprint(None)
    # While the other adapter is in use, nothing of it can be loaded or told.
    assert host.engine.prefix_fingerprint("one") is None
    assert host.turn(ids, adapter="one")[1] == 0
    assert host.engine.prefix_fingerprint(None) is None
    assert host.engine.prefix_fingerprint("one") != fingerprint
    host.prefixes.stop()
    quantised = hosts(cache="Q8")
    assert quantised.engine.prefix_fingerprint(None) != fingerprint
    assert quantised.turn(ids)[1] == 0
    assert quantised.counts().missed == 1
    # One that was made alike finds it.
    fresh = hosts(adapters=adapters)
    again, cached = fresh.turn(ids)
    assert again == plain
    assert cached >= TOKENS - 2
