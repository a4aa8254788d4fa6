"""The engine of the step gap: the job loop over a batch whose steps take a set time. A worker process loads it by the
entry point that `step_gap` writes beside it, as it loads any engine of another package."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence as Seq
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from stepwise_batch import StepTimes, StepwiseBatch, TimedBatch, prompt_ids

from headpond.engine_kinds import EngineTable
from headpond.errors import PromptTooLong
from headpond.requests import Message
from headpond_workers.engines.exllama.job_loop import JobLoop
from headpond_workers.engines.protocol import Capability, Emit, EngineInfo, Finish, Sequence

ENTRY_POINT = "stepwise = stepwise_engine:StepwiseTable"


class StepwiseTable(EngineTable):
    engine: Literal["stepwise"]
    step_s: float
    most_gaps: int
    """Of one run of `slots` sequences."""
    times: Path
    """A line of JSON, a StepTimes, is written to the end of this file after each run."""

    def load_engine(self, *, workers_on_host: int) -> StepwiseEngine:
        return StepwiseEngine(self)


class StepwiseEngine:
    """Tokens are bytes. All of `generate` is the job loop's."""

    def __init__(self, settings: StepwiseTable) -> None:
        self.info = EngineInfo(
            "stepwise",
            "0" * 64,
            settings.context_tokens,
            settings.slots,
            frozenset({Capability.SEEDED, Capability.EXACT_RESUME}),
        )

        def write(times: StepTimes) -> None:
            line = json.dumps(asdict(times)) + "\n"
            with open(os.open(settings.times, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as file:
                file.write(line)

        batch = TimedBatch(
            StepwiseBatch(step_s=settings.step_s), sequences=settings.slots, most=settings.most_gaps, ended=write
        )
        self._loop = JobLoop(batch, slots=settings.slots, name="stepwise")

    def render(self, messages: Seq[Message]) -> list[int]:
        return self.encode("\n".join(message.content for message in messages))

    def encode(self, text: str) -> list[int]:
        return list(prompt_ids(text))

    def token_bytes(self, token_id: int) -> bytes:
        return bytes((token_id,))

    def generate(self, sequence: Sequence, emit: Emit) -> Finish:
        present = len(sequence.prompt) + len(sequence.generated)
        if present + sequence.max_tokens > self.info.context_tokens:
            raise PromptTooLong(prompt_tokens=present, context_tokens=self.info.context_tokens)
        return self._loop.run(sequence, emit)

    def close(self) -> None:
        self._loop.close()
