"""The engines that the conformance suite runs on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine_conformance import Subject
from example_engine import install_example, on_path
from exllamav2_cpu.availability import require_exllamav2
from exllamav2_cpu.tiny_corpus import RUNS_ON
from exllamav2_cpu.tiny_corpus import STORY as TINY_STORY
from headpond.settings import check_settings
from headpond.tables import AdapterTable, DraftTable, ExLlamaV2Model, LlamaCppModel, ScriptedModel
from headpond_workers.engines.formats.safetensors_header import read_safetensors_header
from headpond_workers.engines.protocol import Capability, Engine
from headpond_workers.loading import load_engine
from tiny_gguf import write_adapter, write_tiny_model

SEEDED = frozenset({Capability.SEEDED})
EXACT = SEEDED | {Capability.EXACT_RESUME}
STORY = "Tell me a long story about a river."
REPEATED = "\u65e5\u672c\u8a9e" * 10
"""Goes on as it is, in any model that has learnt to copy."""
GPU_MODEL = "HEADPOND_GPU_MODEL"
"""Environment variable: a checkpoint folder to load on a real GPU."""


def _scripted(folder: Path) -> Engine:
    return load_engine(
        ScriptedModel(
            engine="scripted",
            tokens_per_s=2000,
            prefill_tokens_per_s=20_000,
            answer_tokens=400,
            context_tokens=1024,
            slots=4,
        ),
        workers_on_host=1,
    )


def _echo(folder: Path) -> Engine:
    with on_path(install_example(folder)):
        table = {"engine": "echo", "token_s": 0.001, "context_tokens": 1024, "slots": 4}
        settings = check_settings({"models": {"parrot": table}}, file=folder / "headpond.toml")
        return load_engine(settings.model("parrot"), workers_on_host=1)


def _llamacpp(folder: Path, *, exact: bool) -> Engine:
    from headpond_workers.models.prepare import prepare

    source = "smollm2-135m:Q8_0"
    path = prepare(source, progress=lambda stage, done, total: None)
    targets = [f"blk.{layer}.attn_{part}.weight" for layer in (3, 9, 15) for part in ("q", "v", "output")]
    one = write_adapter(folder / "one.gguf", path, seed=1, targets=targets, size=0.12)
    table = LlamaCppModel(
        engine="llamacpp",
        source=source,
        slots=3,
        context_tokens=256,
        exact=exact,
        threads=1,
        adapters={"one": AdapterTable(path=one)},
    )
    return load_engine(table, workers_on_host=1)


def _llamacpp_embedder(folder: Path) -> Engine:
    path = write_tiny_model(folder / "tiny.gguf")
    table = LlamaCppModel(engine="llamacpp", path=path, task="embed", slots=3, context_tokens=256, threads=1)
    return load_engine(table, workers_on_host=1)


def _exllamav2(folder: Path, *, paged: bool = True, draft: bool = False) -> Engine:
    require_exllamav2()
    from exllamav2_cpu import checkpoints, harness

    harness.install()
    from headpond_workers.engines.exllamav2.engine import ExLlamaV2Engine

    table = ExLlamaV2Model(
        engine="exllamav2",
        path=checkpoints.tiny(),
        context_tokens=1024,
        slots=4 if paged else 1,
        chunk_tokens=256,
        paged=paged,
        adapters={"one": AdapterTable(path=checkpoints.tiny_adapter(1))} if paged and not draft else {},
        draft=DraftTable(path=checkpoints.tiny(), tokens=3) if draft else None,
    )
    return ExLlamaV2Engine(table, digest_cache=folder)


@contextmanager
def _slow_exllamav2() -> Iterator[None]:
    """Every chunk of a prompt takes a tenth of a second longer."""
    from exllamav2 import ExLlamaV2

    forward_chunk = ExLlamaV2.forward_chunk

    def slowly(*arguments: Any, **more: Any) -> Any:
        time.sleep(0.1)
        return forward_chunk(*arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExLlamaV2, "forward_chunk", slowly)
        yield


def _exllamav2_on_a_gpu(folder: Path) -> Engine:
    from exllamav2_cpu import harness

    if harness.installed() is not None:
        pytest.skip("gpu: the CPU harness is installed in this process, so no CUDA device can be told from it")
    path = Path(os.environ[GPU_MODEL])
    table = ExLlamaV2Model(engine="exllamav2", path=path, context_tokens=4096, slots=8, chunk_tokens=256)
    return load_engine(table, workers_on_host=1)


def _capabilities_on_a_gpu(folder: str | None) -> frozenset[Capability]:
    """Of the checkpoint in `folder`: EXL2 and GPTQ weights repeat no answer."""
    files = [] if folder is None else Path(folder).glob("*.safetensors")
    names = (name for path in files for name in read_safetensors_header(path).tensors)
    quantised = any(name.endswith((".q_weight", ".qweight")) for name in names)
    return EXLLAMAV2_ALONE - SEEDED if quantised else EXLLAMAV2_ALONE


SCRIPTED = Subject(
    name="scripted",
    load=_scripted,
    capabilities=EXACT,
    slots=4,
    context_tokens=1024,
    ends="Name a colour.",
    runs_on=STORY,
    multibyte=REPEATED,
)
ECHO = Subject(
    name="echo",
    load=_echo,
    capabilities=EXACT,
    slots=4,
    context_tokens=1024,
    ends="Name a colour.",
    runs_on="The river bends, and carries what it loosens. " * 10,
    multibyte=f"{REPEATED} \U0001f9d1\u200d\U0001f680 e\u0301",
)
LLAMACPP_ALWAYS = SEEDED | {Capability.JSON_SCHEMA, Capability.GRAMMAR, Capability.ADAPTERS}
LLAMACPP = Subject(
    name="llamacpp",
    load=lambda folder: _llamacpp(folder, exact=False),
    capabilities=LLAMACPP_ALWAYS,
    adapters=("one",),
    slots=3,
    context_tokens=256,
    ends="What is 2 + 2?",
    runs_on=STORY,
    multibyte=REPEATED,
)
LLAMACPP_EXACT = replace(
    LLAMACPP,
    name="llamacpp-exact",
    load=lambda folder: _llamacpp(folder, exact=True),
    capabilities=LLAMACPP_ALWAYS | EXACT,
)
EXLLAMAV2_ALONE = SEEDED | {Capability.KV_PREFIXES, Capability.JSON_SCHEMA, Capability.GRAMMAR}
"""Without adapters."""
EXLLAMAV2 = Subject(
    name="exllamav2",
    load=_exllamav2,
    capabilities=EXLLAMAV2_ALONE | {Capability.ADAPTERS},
    slots=4,
    context_tokens=1024,
    ends="Count to ten.",
    runs_on=RUNS_ON,
    multibyte=TINY_STORY * 2 + TINY_STORY[: TINY_STORY.index("Cafe")],
    adapters=("one",),
    hot=3.0,
    slowed=_slow_exllamav2,
)
EXLLAMAV2_UNPAGED = replace(
    EXLLAMAV2,
    name="exllamav2-unpaged",
    load=lambda folder: _exllamav2(folder, paged=False),
    capabilities=EXLLAMAV2_ALONE,
    slots=1,
    adapters=(),
)
EXLLAMAV2_WITH_DRAFT = replace(
    EXLLAMAV2,
    name="exllamav2-draft",
    load=lambda folder: _exllamav2(folder, draft=True),
    capabilities=EXLLAMAV2_ALONE,
    adapters=(),
)
EXLLAMAV2_ON_A_GPU = Subject(
    name="exllamav2-gpu",
    load=_exllamav2_on_a_gpu,
    capabilities=_capabilities_on_a_gpu(os.environ.get(GPU_MODEL)),
    slots=8,
    context_tokens=4096,
    ends="What is 2 + 2? Answer with the number only.",
    runs_on=STORY,
    multibyte=REPEATED,
    slowed=_slow_exllamav2,
)

LLAMACPP_EMBEDDER = Subject(
    name="llamacpp-embed",
    load=_llamacpp_embedder,
    capabilities=frozenset({Capability.EMBEDDINGS}),
    slots=3,
    context_tokens=256,
    ends="",
    runs_on="ab" * 10,
    multibyte="",
)

SUBJECTS = [
    pytest.param(SCRIPTED, id=SCRIPTED.name),
    pytest.param(ECHO, id=ECHO.name),
    pytest.param(LLAMACPP, id=LLAMACPP.name, marks=pytest.mark.slow),
    pytest.param(LLAMACPP_EXACT, id=LLAMACPP_EXACT.name, marks=pytest.mark.slow),
    pytest.param(EXLLAMAV2, id=EXLLAMAV2.name, marks=pytest.mark.slow),
    pytest.param(EXLLAMAV2_UNPAGED, id=EXLLAMAV2_UNPAGED.name, marks=pytest.mark.slow),
    pytest.param(EXLLAMAV2_WITH_DRAFT, id=EXLLAMAV2_WITH_DRAFT.name, marks=pytest.mark.slow),
]
EMBEDDERS = [pytest.param(LLAMACPP_EMBEDDER, id=LLAMACPP_EMBEDDER.name, marks=pytest.mark.slow)]
"""Engines that are loaded to embed, and do not generate."""
if GPU_MODEL in os.environ:
    SUBJECTS.append(pytest.param(EXLLAMAV2_ON_A_GPU, id=EXLLAMAV2_ON_A_GPU.name, marks=pytest.mark.gpu))
