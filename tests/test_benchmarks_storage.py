"""`scripts/bench storage`: what is reported of its samples, and that a quick run moves the bytes that it says."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from benchmark_modules import judged, modules
from headpond_workers.engines.formats.safetensors_header import read_safetensors_header

__all__ = ["modules"]


@pytest.mark.parametrize(
    ("kind", "headpond", "peer", "expected"),
    [
        ("push", {"bytes": 90, "seconds": 1.0}, {"bytes": 100, "seconds": 1.0}, [(0.9, "met")]),
        ("push", {"bytes": 89, "seconds": 1.0}, {"bytes": 100, "seconds": 1.0}, [(0.89, "missed")]),
        (
            "pull",
            {"bytes": 100, "seconds": 2.0},
            {"bytes": 100, "seconds": 1.7, "memory_s": 1.0},
            [(0.85, "met"), (0.5, None)],
        ),
        ("pull", {"bytes": 84, "seconds": 1.0}, {"bytes": 100, "seconds": 1.0, "memory_s": 1.0},
         [(0.84, "missed"), (0.84, None)]),
        ("changed", {"bytes": 105, "grown_bytes": 106, "changed_bytes": 100, "grown_changed_bytes": 100}, {},
         [(1.05, "met"), (1.06, "missed")]),
        ("push_again", {"seconds": 0.1, "first_s": 1.0}, {}, [(10.0, "met")]),
        ("push_again", {"seconds": 0.1, "first_s": 0.9}, {}, [(9.0, "missed")]),
        # One slow move in fifty is above the p99 of a run.
        ("alias", {"switch_ms": [10.0] * 50}, {"switch_ms": [1.0]}, [(10.0, "met")]),
        ("alias", {"switch_ms": [10.0] * 49 + [500.0]}, {"switch_ms": [1.0]}, [(259.9, "missed")]),
        (
            "rollover",
            {"least_tokens_per_s": 50.0, "before_tokens_per_s": 100.0, "first_s": 3.0, "load_s": 2.0,
             "all_changed_s": 6.0},
            {},
            [(0.5, "met"), (1.0, "met"), (2.0, None), (6.0, None)],
        ),
        (
            "rollover",
            {"least_tokens_per_s": 49.0, "before_tokens_per_s": 100.0, "first_s": 3.1, "load_s": 2.0,
             "all_changed_s": 6.0},
            {},
            [(0.49, "missed"), (1.1, "missed"), (2.0, None), (6.0, None)],
        ),
        ("persisting_scripted", {"tokens": 990, "seconds": 10}, {"tokens": 100, "seconds": 1}, [(0.99, "met")]),
        ("persisting_scripted", {"tokens": 989, "seconds": 10}, {"tokens": 100, "seconds": 1}, [(0.989, "missed")]),
        ("persisting_llamacpp", {"tokens": 97, "seconds": 1}, {"tokens": 100, "seconds": 1}, [(0.97, "met")]),
        ("persisting_llamacpp", {"tokens": 96, "seconds": 1}, {"tokens": 100, "seconds": 1}, [(0.96, "missed")]),
        ("outage_scripted", {"tokens": 97, "seconds": 1, "waiting_entries": 9, "caught_up_s": 1.0},
         {"tokens": 100, "seconds": 1}, [(0.97, "met")]),
        ("outage_llamacpp", {"tokens": 96, "seconds": 1, "waiting_entries": 9, "caught_up_s": 1.0},
         {"tokens": 100, "seconds": 1}, [(0.96, "missed")]),
        ("loss_window", {"window_s": [0.2, 1.04]}, {"commit_s": [0.1]}, [(0.9316, "met")]),
        ("loss_window", {"window_s": [1.11]}, {"commit_s": [0.1]}, [(1.01, "missed")]),
        ("puts", {"puts": 20, "seconds": 10.0}, {}, [(2.0, "met")]),
        ("puts", {"puts": 21, "seconds": 10.0}, {}, [(2.1, "missed")]),
        ("restore", {"jobs": 1000, "seconds": 110.0, "persister_peak_bytes": 1 << 20}, {"jobs": 100, "seconds": 10.0},
         [(10.0, "met"), (110.0, None), (1.1, "met")]),
        ("restore", {"jobs": 1000, "seconds": 121.2, "persister_peak_bytes": 1 << 20}, {"jobs": 100, "seconds": 10.1},
         [(10.1, "missed"), (121.2, None), (1.2, "missed")]),
        ("stored_prefix", {"local_s": 0.5, "storage_s": 1.25}, {"prefill_s": 5.0}, [(10.0, "met"), (4.0, "missed")]),
    ],
)  # fmt: skip
def test_each_figure_is_compared_with_its_goal(
    modules: Any, kind: str, headpond: dict[str, Any], peer: dict[str, Any], expected: list[tuple[float, str | None]]
) -> None:
    assert judged(modules, kind, headpond, peer) == expected


def test_every_measurement_has_its_rows_and_its_name(modules: Any) -> None:
    suite, report = modules.storage_suite, modules.report
    assert tuple(kind.value for kind in suite.MEASUREMENTS) == report.STORAGE_NAMES
    assert tuple(kind.value for kind in suite.STATE_MEASUREMENTS) == report.STATE_NAMES


def test_a_changed_model_differs_in_the_chosen_tensors_alone(modules: Any, tmp_path: Path) -> None:
    models = modules.storage_models
    shape = models.draw_shape(3 << 20, random.Random(1))
    changed = models.draw_changed(shape, 0.05, random.Random(2))
    assert 0.05 * shape.size_bytes <= sum(shape.tensors[n] for n in changed) < shape.size_bytes
    plain = models.write_model(tmp_path / "a.safetensors", shape, seed="s")
    other = models.write_model(tmp_path / "b.safetensors", shape, seed="s", changed=changed, notes=["longer"])
    ours, theirs = read_safetensors_header(plain), read_safetensors_header(other)
    assert theirs.data_start > ours.data_start
    a, b = plain.read_bytes()[ours.data_start :], other.read_bytes()[theirs.data_start :]
    places = list(ours.tensors.values())
    differing = tuple(n for n, place in enumerate(places) if a[place.begin : place.end] != b[place.begin : place.end])
    assert differing == changed


def test_the_least_throughput_is_that_of_the_emptiest_window(modules: Any) -> None:
    tokens = [n / 10 + 0.05 for n in range(100) if not 40 <= n < 50]  # ten a second, none from 4 s to 5 s
    assert modules.storage_rollover.least_rate(tokens, 0.0, 8.0) == 5.0
    assert modules.storage_rollover.least_rate(tokens, 0.0, 1.0) == 10.0


VERSIONS = ("push", "pull", "changed", "push_again", "alias", "rollover")
STATE = ("persisting_scripted", "outage_scripted", "loss_window", "puts", "restore", "stored_prefix")
SAME_ON_LLAMACPP = {"persisting_llamacpp", "outage_llamacpp"}
"""The same programs with another model. On a busy machine a quick run of them has too few tokens to compare."""


@pytest.mark.slow
def test_a_quick_run_has_samples_of_every_figure_of_versions(modules: Any, tmp_path: Path) -> None:
    said: list[str] = []
    made = modules.storage_suite.measure_storage(
        pairs=1, seed=3, quick=True, only=(), folder=tmp_path, progress=said.append
    )
    assert tuple(measurement.kind for measurement in made) == VERSIONS
    rows = {(m.kind.value, row.what): row for m in made for row in modules.report.rows_of(m)}
    assert all(row.headpond > 0 for row in rows.values())
    changed = rows["changed", "bytes"]
    assert 1.0 <= changed.estimate.median < 1.5, "what was changed has to be sent, and not the whole model"
    assert any("pair 1/1" in line for line in said)
    assert not list(tmp_path.iterdir()), "gigabytes of a whole run would stay"


@pytest.mark.slow
@pytest.mark.parametrize("kind", STATE)
def test_a_quick_run_has_samples_of_every_figure_of_state(modules: Any, tmp_path: Path, kind: str) -> None:
    said: list[str] = []
    (made,) = modules.storage_suite.measure_state(
        pairs=2, seed=3, quick=True, only=(kind,), folder=tmp_path, progress=said.append
    )
    rows = modules.report.rows_of(made)
    assert all(row.headpond > 0 for row in rows if row.estimate)
    assert len(made.pairs) == 2
    assert any("pair 2/2" in line for line in said)
    assert not list(tmp_path.iterdir())


def test_every_measurement_is_tried_by_a_quick_run(modules: Any) -> None:
    assert VERSIONS == modules.report.STORAGE_NAMES
    assert {*STATE, *SAME_ON_LLAMACPP} == set(modules.report.STATE_NAMES)
