"""The two sides of `scripts/bench engine`: the same model, the same prompts, the same tokens."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from benchmark_modules import importable
from exllamav2_cpu.availability import require_exllamav2
from headpond.errors import HeadpondError

require_exllamav2()


@pytest.fixture
def engine_loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """scripts/benchmarks/engine_loop.py, whose neighbours import each other by file name."""
    with importable(monkeypatch):
        yield importlib.import_module("engine_loop")


@pytest.mark.slow
def test_both_sides_make_the_same_tokens_whether_alone_or_eight_at_once(
    engine_loop: ModuleType, tmp_path: Path
) -> None:
    from exllamav2_cpu import checkpoints

    load = engine_loop._tiny(24)
    with engine_loop._both(checkpoints.tiny(), tmp_path / "private") as sides:
        together = sides.headpond(load.prompts, max_tokens=load.max_tokens)
        assert together.tokens == 24 * 8
        assert len(set(together.digests)) > 1
        assert sides.direct(load.prompts, max_tokens=load.max_tokens).digests == together.digests
        for side in (sides.headpond, sides.direct):
            alone = side(load.prompts[:1], max_tokens=load.max_tokens)
            assert alone.digests == together.digests[:1]
            assert 0 < alone.first_token_s[0] <= alone.seconds
        assert sides.cpu_s().keys() == {"headpond", "direct"}


def test_a_missing_package_is_named_with_what_installs_it(
    engine_loop: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_loop, "NEEDED", ("torch", "no_such_package"))
    with pytest.raises(HeadpondError, match=r"Not installed: no_such_package.*scripts/bench engine"):
        engine_loop._checkpoints_module()
