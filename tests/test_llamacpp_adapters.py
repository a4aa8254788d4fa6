"""LoRA adapters on llama.cpp: they take effect, mix with none, survive a resume, and are checked before they load."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pytest

from headpond.errors import CapabilityMissing, EngineUnavailable, ModelFileError, SequenceFailed
from headpond.tables import AdapterTable
from headpond_workers.engines.formats.gguf_header import read_header
from headpond_workers.engines.llamacpp.adapters import checked_adapter
from headpond_workers.engines.llamacpp.engine import LlamaCppEngine
from headpond_workers.engines.protocol import Capability
from llama_engines import run, smollm2, table
from tiny_gguf import write_adapter, write_tiny_model

TARGETS = tuple(f"blk.{layer}.attn_{part}.weight" for layer in (3, 9, 15) for part in ("q", "v", "output"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[LlamaCppEngine]:
    path = smollm2()
    one = write_adapter(folder / "one.gguf", path, seed=1, targets=TARGETS, size=0.12)
    two = write_adapter(folder / "two.gguf", path, seed=2, targets=TARGETS, size=0.12)
    adapters = {
        "one": AdapterTable(path=one),
        "two": AdapterTable(path=two, scaling=0.8),
        "nothing": AdapterTable(path=one, scaling=0.0),
        "double": AdapterTable(path=one, scaling=2.0),
    }
    loaded = LlamaCppEngine(table(path, exact=True, adapters=adapters), path)
    yield loaded
    loaded.close()


@pytest.mark.slow
def test_an_adapter_changes_the_answer_as_far_as_it_is_scaled(engine: LlamaCppEngine) -> None:
    prompt = engine.encode("The best animal of all is the")
    names = (None, "one", "two", "nothing", "double")
    answers = {name: run(engine, prompt, adapter=name)[0] for name in names}
    assert answers["nothing"] == answers[None]
    assert len({tuple(ids) for ids in answers.values()}) == 4
    assert engine.info.adapters == ("one", "two", "nothing", "double")
    assert Capability.ADAPTERS in engine.info.capabilities


@pytest.mark.slow
def test_adapters_run_side_by_side_without_mixing(engine: LlamaCppEngine) -> None:
    prompt = engine.encode("The best animal of all is the")
    names = [None, "one", "two", "one", None, "two"]
    alone = {name: run(engine, prompt, adapter=name, max_tokens=12)[0] for name in set(names)}
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda name: run(engine, prompt, adapter=name, max_tokens=12)[0], names))
    assert together == [alone[name] for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_resumed_sequence_keeps_its_adapter(engine: LlamaCppEngine, temperature: float) -> None:
    prompt = engine.encode("The best animal of all is the")
    whole, finish = run(engine, prompt, adapter="one", temperature=temperature)
    for k in (1, 9, len(whole) - 1):
        rest, end = run(engine, prompt, generated=whole[:k], adapter="one", temperature=temperature, max_tokens=24 - k)
        assert (whole[:k] + rest, end) == (whole, finish)


@pytest.mark.slow
def test_an_adapter_that_is_not_there_is_refused_with_those_that_are(engine: LlamaCppEngine) -> None:
    with pytest.raises(SequenceFailed, match=r"no adapter 'three'\. It has: one, two, nothing, double"):
        run(engine, [1], adapter="three")


@pytest.mark.slow
def test_a_model_without_adapters_refuses_all(tiny: Path) -> None:
    engine = LlamaCppEngine(table(tiny), tiny)
    with pytest.raises(
        CapabilityMissing, match=r"cannot serve adapters .* names no adapters: add this one under its key `adapters`"
    ):
        run(engine, [104], adapter="one")
    engine.close()


@pytest.mark.slow
def test_the_fingerprint_names_the_adapters_and_their_scaling(tiny: Path, tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "one.gguf", tiny, seed=1)
    two = write_adapter(tmp_path / "two.gguf", tiny, seed=2)

    def fingerprint(**adapters: AdapterTable) -> str:
        engine = LlamaCppEngine(table(tiny, adapters=adapters), tiny)
        engine.close()
        return engine.info.fingerprint

    bare = fingerprint()
    assert bare == fingerprint()
    variants = [
        fingerprint(a=AdapterTable(path=one)),
        fingerprint(b=AdapterTable(path=one)),
        fingerprint(a=AdapterTable(path=one, scaling=0.5)),
        fingerprint(a=AdapterTable(path=two)),
    ]
    assert len({bare, *variants}) == 5
    assert fingerprint(a=AdapterTable(path=one)) == variants[0]


# Before llama.cpp sees it


def refusal(tiny: Path, path: Path) -> str:
    with pytest.raises((EngineUnavailable, ModelFileError)) as caught:
        checked_adapter("it", AdapterTable(path=path), read_header(tiny))
    assert str(path) in str(caught.value)
    return str(caught.value)


def _spoiled(name: str, values: Any) -> Any:
    values[0, 0] = numpy.nan
    return values


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"type": "model"}, "no LoRA adapter"),
        ({"kind": "dora"}, "no LoRA adapter"),
        ({"architecture": "qwen2"}, "the architecture 'qwen2', and the model's is 'llama'"),
        ({"alpha": float("nan")}, "adapter.lora.alpha is nan"),
        ({"rank": 5000}, "is 64x64 in the model"),
        ({"changed": lambda name, values: values[:, :-1] if name.endswith("lora_a") else values}, "63x4"),
        ({"changed": lambda name, values: values[:-1] if name.endswith("lora_b") else values}, "4x63"),
        ({"changed": lambda name, values: values[:2] if name.endswith("lora_a") else values}, "64x2 and 4x64"),
        ({"changed": _spoiled}, "numbers that are none"),
        ({"changed": lambda name, values: values.astype(numpy.float64)}, "other than F32 or F16"),
        ({"changed": lambda name, values: values.reshape(1, *values.shape)}, "no matrix"),
        ({"targets": ("token_embd.weight",)}, "embedding of tokens"),
        ({"targets": ()}, "changes no weights"),
    ],
    # Without addresses: each process that runs tests is to have the same names.
    ids=lambda part: part if isinstance(part, str) else ", ".join(part),
)
def test_an_adapter_that_does_not_go_with_the_model_is_refused(
    tiny: Path, tmp_path: Path, made: dict[str, Any], reason: str
) -> None:
    path = write_adapter(tmp_path / "it.gguf", tiny, **{"seed": 1, **made})
    message = refusal(tiny, path)
    assert "The adapter 'it'" in message
    assert reason in message


def test_an_adapter_for_a_model_of_another_shape_is_refused(tiny: Path, tmp_path: Path) -> None:
    larger = write_tiny_model(tmp_path / "larger.gguf", seed=2, layers=2)
    adapter = write_adapter(tmp_path / "it.gguf", larger, seed=1, targets=("blk.1.attn_q.weight",))
    assert "the model has no weights 'blk.1.attn_q.weight'" in refusal(tiny, adapter)


def test_a_damaged_adapter_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "it.gguf", tiny, seed=1)
    whole = path.read_bytes()
    for content, reason in (
        (b"", "too short"),
        (b"no adapter" * 10, "not a GGUF"),
        (whole[: len(whole) // 2], "truncated"),
        (whole[:200], "truncated"),
        (whole.replace(b"blk.0.attn_q.weight.lora_b", b"blk.0.attn_q.weight.lora_x"), "no half of a pair"),
        (whole.replace(b"blk.0.attn_q.weight.lora_b", b"blk.0.attn_k.weight.lora_b"), "without"),
        (whole.replace(b"blk.0.attn_q.weight.lora_b", b"blk.0.attn_q.weight.lora_a"), "twice"),
    ):
        path.write_bytes(content)
        assert reason in refusal(tiny, path)
    path.unlink()
    assert "No file" in refusal(tiny, path)
    os.mkfifo(path)
    assert "no regular file" in refusal(tiny, path)
