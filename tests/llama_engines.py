"""What tests of the llama.cpp engine share: loaded models, and sequences run on them."""

from __future__ import annotations

import json
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

from headpond.constraints import Constraint, ConstraintKind
from headpond.jobs import FinishReason
from headpond.requests import Message
from headpond.sampling import Sampling
from headpond.tables import LlamaCppModel
from headpond_workers.engines.llamacpp.engine import LlamaCppEngine
from headpond_workers.engines.protocol import Sequence, Verdict
from headpond_workers.models.prepare import prepare

SOURCE = "smollm2-135m:Q8_0"


def smollm2() -> Path:
    """The model, prepared once in the user's own cache."""
    return prepare(SOURCE, progress=lambda stage, done, total: None)


def table(path: Path, **more: Any) -> LlamaCppModel:
    return LlamaCppModel(
        **{"engine": "llamacpp", "path": path, "slots": 3, "context_tokens": 256, "threads": 1, **more}
    )


def prompt_of(engine: LlamaCppEngine, text: str) -> tuple[int, ...]:
    return tuple(engine.render([Message(role="user", content=text)]))


def run(
    engine: LlamaCppEngine,
    prompt: Seq[int],
    *,
    generated: Seq[int] = (),
    max_tokens: int = 24,
    seed: int = 7,
    adapter: str | None = None,
    constraint: Constraint | None = None,
    **sampling: Any,
) -> tuple[list[int], FinishReason]:
    """The ids that are emitted, and the end. Greedy, unless `sampling` has a temperature."""
    chosen = Sampling(**{"temperature": 0.0, **sampling})
    ids: list[int] = []

    def emit(made: Seq[int]) -> Verdict:
        ids.extend(made)
        return Verdict.GO

    asked = Sequence(tuple(prompt), tuple(generated), max_tokens, chosen, seed, adapter, constraint)
    return ids, engine.generate(asked, emit).reason


def text_of(engine: LlamaCppEngine, ids: Seq[int]) -> str:
    return b"".join(map(engine.token_bytes, ids)).decode("utf-8", "replace")


def grammar(text: str) -> Constraint:
    return Constraint(ConstraintKind.GRAMMAR, text)


def schema(value: object) -> Constraint:
    return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(value, ensure_ascii=False))
