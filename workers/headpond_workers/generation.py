"""A job on an engine of this process: its prompt, and the tokens or vectors that the engine makes of it."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import partial

from headpond.held import HeldLease
from headpond.jobs import FinishReason
from headpond.requests import JobRequest
from headpond_workers.continuation import continue_job
from headpond_workers.embedding import embed_job
from headpond_workers.engines.protocol import Engine, EngineInfo, Finish, Verdict
from headpond_workers.job_runs import JobRuns, Watch
from headpond_workers.prefix_use import PrefixUse
from headpond_workers.token_writer import JobStream


@dataclass(slots=True)
class Generation(JobRuns):
    """Runs jobs on one engine. Thread-safe up to the engine's slots."""

    engine: Engine = field(kw_only=True)
    prefixes: PrefixUse | None = None
    """None: each prompt is computed from its start."""

    def _answer(self, asked: JobRequest, stream: JobStream, watch: Watch) -> FinishReason:
        held = stream.held
        if asked.input is not None:
            return self._embed(asked, held, watch)
        prompt = self.engine.render(asked.chat())
        watch.prompt, watch.prompt_tokens = prompt, len(prompt)
        begun = continue_job(
            self.engine, asked, prompt, prior=stream.ids, prior_text=stream.text, seed=asked.seed_for(held.lease.id)
        )
        if isinstance(begun, Finish):
            return begun.reason
        sequence, text = begun.sequence, begun.text
        made: list[int] = []

        def emit(ids: Seq[int]) -> Verdict:
            self._note(watch, len(ids))
            if ids:
                made.extend(ids)
                released = text.feed(ids)
                if released.ids:
                    stream.push(released.ids, released.pieces)
            return Verdict.STOP if text.stopped or self._unwanted(held) else Verdict.GO

        prefixes = self.prefixes
        loaded = 0 if prefixes is None else prefixes.load(sequence, lambda: emit(()) is Verdict.GO)
        finish = self.engine.generate(sequence, emit)
        if prefixes is not None:
            prefixes.note(sequence, finish, loaded)
            watch.after = partial(prefixes.keep, sequence, made)
        if text.stopped:
            return FinishReason.STOP
        if finish.reason is not FinishReason.CANCELLED:
            rest = text.flush()
            if rest.ids:
                stream.push(rest.ids, rest.pieces)
        return finish.reason

    def _info(self) -> EngineInfo:
        return self.engine.info

    def _embed(self, asked: JobRequest, held: HeldLease, watch: Watch) -> FinishReason:
        def proceed() -> Verdict:
            self._note(watch, 0)
            return Verdict.STOP if self._unwanted(held) else Verdict.GO

        made = embed_job(self.engine, asked, proceed)
        if made is None:
            return FinishReason.CANCELLED
        watch.prompt_tokens, watch.vectors = made.tokens, made.vectors
        return FinishReason.STOP
