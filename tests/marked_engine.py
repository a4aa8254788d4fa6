"""An engine of another package, for tests: the scripted one, whose text also depends on the model's mark, on the
adapter and on whoever's secret it was given.

So a job that ran on another model, with another adapter or with another job's settings has another text. `install`
makes it known to child processes as the engine "marked".
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from example_engine import python_path
from headpond.engine_kinds import EngineTable
from headpond.jobs import ADAPTER_NAME
from headpond.requests import Message
from headpond.sampling import Sampling
from headpond.tables import ScriptedModel, SecretRef
from headpond_workers.detokenizer import Detokenizer
from headpond_workers.engines.protocol import Capability, Emit, EngineInfo, Finish, Sequence, Verdict
from headpond_workers.engines.scripted import ScriptedEngine

logger = logging.getLogger(__name__)


class MarkedModel(EngineTable):
    """adapters: name -> a mark of its own."""

    host_keys: ClassVar[frozenset[str]] = frozenset({"tokens_per_s"})

    engine: Literal["marked"]
    mark: str
    tokens_per_s: float = 200.0
    adapters: dict[Annotated[str, Field(pattern=ADAPTER_NAME)], str] = Field(default_factory=dict)
    token: SecretRef | None = None

    def load_engine(self, *, workers_on_host: int) -> Any:
        return MarkedEngine(self)


class MarkedEngine(ScriptedEngine):
    """A SecretEngine too."""

    def __init__(self, settings: MarkedModel) -> None:
        self._table = settings
        self.renew_secrets()
        super().__init__(
            ScriptedModel(
                engine="scripted", tokens_per_s=settings.tokens_per_s, slots=settings.slots,
                context_tokens=settings.context_tokens,
            )
        )  # fmt: skip

    @property
    def info(self) -> EngineInfo:
        told = super().info
        fingerprint = hashlib.sha256(f"{told.fingerprint}:{self._table.model_dump_json()}".encode()).hexdigest()
        return replace(
            told, engine="marked", fingerprint=fingerprint, adapters=tuple(self._table.adapters),
            capabilities=told.capabilities | {Capability.ADAPTERS},
        )  # fmt: skip

    def renew_secrets(self) -> None:
        if self._table.token is not None:
            secret = self._table.token.resolve(where="the marked engine")
            logger.info("renewed sha256=%s", hashlib.sha256(secret.encode()).hexdigest())

    def generate(self, sequence: Sequence, emit: Emit) -> Finish:
        marks = self._table.mark
        if sequence.adapter is not None:
            marks += f"+{self._table.adapters[sequence.adapter]}"
        return super().generate(replace(sequence, prompt=(*marks.encode(), *sequence.prompt), adapter=None), emit)


def answer(
    engine: MarkedEngine, prompt: str, *, max_tokens: int, temperature: float, seed: int, adapter: str | None
) -> tuple[tuple[int, ...], str]:
    """Ids and text of a job that nothing disturbed."""
    ids: list[int] = []

    def emit(more: Any) -> Verdict:
        ids.extend(more)
        return Verdict.GO

    rendered = tuple(engine.render([Message(role="user", content=prompt)]))
    engine.generate(Sequence(rendered, (), max_tokens, Sampling(temperature=temperature), seed, adapter), emit)
    return tuple(ids), "".join(Detokenizer(engine.token_bytes).feed(ids).pieces)


def install(folder: Path) -> dict[str, str]:
    """The environment of a child process that knows the engine. folder: for what says so."""
    about = folder / "marked_engine-1.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: marked-engine\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[headpond.engines]\nmarked = marked_engine:MarkedModel\n")
    return python_path(folder, Path(__file__).parent)
