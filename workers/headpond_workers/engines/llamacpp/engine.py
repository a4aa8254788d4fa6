"""llama.cpp, through xllamacpp, as an engine that generates.

What is promised of resuming: no id is lost or repeated. With `exact` prefill and decode take one numeric
path, so that greedy goes on with the same ids; seeded sampling too, by replaying the draws from the start,
which costs no more there. Without it, draws after a resume come from a seed of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from pathlib import Path

from headpond.errors import PromptTooLong, SequenceFailed
from headpond.jobs import FinishReason
from headpond.tables import LlamaCppModel
from headpond_workers.engines.formats.weights_digest import DigestOf, digest_of
from headpond_workers.engines.grammar.constraint_check import ConstraintCache
from headpond_workers.engines.grammar.gbnf_state import Program
from headpond_workers.engines.grammar.gbnf_writable import unwritable
from headpond_workers.engines.llamacpp.completion import Completion
from headpond_workers.engines.llamacpp.constraint import ConstrainedText
from headpond_workers.engines.llamacpp.id_recovery import IdRecovery
from headpond_workers.engines.llamacpp.model import LlamaModel
from headpond_workers.engines.llamacpp.sampling import HAS, sampling_fields
from headpond_workers.engines.llamacpp.slot_pool import Holding, Slot, Worth, least_missed
from headpond_workers.engines.protocol import Capability, Emit, Finish, Sequence, Verdict

log = logging.getLogger(__name__)

_CAN = frozenset({Capability.SEEDED, Capability.JSON_SCHEMA, Capability.GRAMMAR})


class LlamaCppEngine(LlamaModel):
    """One GGUF model. Thread-safe; runs up to `info.slots` sequences together."""

    def __init__(
        self,
        settings: LlamaCppModel,
        path: Path,
        *,
        threads: int | None = None,
        digest_of: DigestOf = digest_of,
        slot_folder: Path | None = None,
    ) -> None:
        """As `LlamaModel`."""
        can = _CAN | {Capability.EXACT_RESUME} if settings.exact else _CAN
        if slot_folder is not None:
            can |= {Capability.KV_PREFIXES}
        super().__init__(
            settings, path, threads=threads, capabilities=can, sampling=HAS, digest_of=digest_of,
            slot_folder=slot_folder,
        )  # fmt: skip
        self._recovery = IdRecovery(self.vocabulary.token_bytes)
        self._exact = settings.exact
        self._constraints = ConstraintCache(without=unwritable(self.vocabulary.token_bytes))

    def generate(self, sequence: Sequence, emit: Emit) -> Finish:
        self.info.require_for(sequence)
        fields = self._fields(sequence)
        present = len(sequence.prompt) + len(sequence.generated)
        if present >= self.info.context_tokens:
            if sequence.generated:
                return Finish(FinishReason.LENGTH)
            raise PromptTooLong(prompt_tokens=present, context_tokens=self.info.context_tokens)

        def emit_while_open(ids: Seq[int]) -> Verdict:
            self.open_server()
            return emit(ids)

        program: Program | None = None
        if sequence.constraint is not None:
            program = self._constraints.program(sequence.constraint, lambda: emit_while_open(()))
            if program is None:
                return Finish(FinishReason.CANCELLED)
        with self.slot(lambda: emit_while_open(()), worth=self.worth_for(sequence)) as slot:
            if slot is None:
                return Finish(FinishReason.CANCELLED)
            cached = self.begin_in(slot, sequence, fields["lora"])
            run = _Run(self, sequence, fields, program, slot.number, self._recovery, cached=cached)
            if self._exact and sequence.generated and sequence.sampling.temperature > 0:
                replay = _Replay(sequence.generated, emit_while_open)
                finish = run.complete(replay, from_start=True)
                if replay.done or (finish.reason is FinishReason.CANCELLED and not replay.diverged):
                    return finish
                log.warning("replay_diverged engine=llamacpp known_tokens=%d", len(sequence.generated))
            return run.complete(emit_while_open, from_start=False)

    def worth_for(self, sequence: Sequence) -> Worth:
        """Which of the free slots suits a sequence."""
        return least_missed

    def begin_in(self, slot: Slot, sequence: Sequence, lora: object) -> bool:
        """Note that a sequence begins in a slot. Returns whether it may go on from what the slot holds."""
        slot.hold(Holding.NOTHING)
        return False

    def lora_of(self, adapter: str | None) -> list[dict[str, object]]:
        """What a request says of adapters. Raises SequenceFailed for one that this model does not have."""
        if adapter is not None and adapter not in self.adapters:
            known = ", ".join(self.adapters)
            raise SequenceFailed(f"This model has no adapter '{adapter[:64]}'. It has: {known}.")
        chosen = None if adapter is None else self.adapters[adapter]
        # An adapter that is not named would have the scale at which it was loaded.
        return [{"id": n, "scale": scaling if n == chosen else 0.0} for n, scaling in enumerate(self.scalings)]

    def _fields(self, sequence: Sequence) -> dict[str, object]:
        """Those of a request that say how to draw, and with which adapter. Raises SequenceFailed."""
        lora = self.lora_of(sequence.adapter)
        drawing = sampling_fields(
            sequence.sampling,
            vocabulary=len(self.vocabulary.token_bytes),
            context_tokens=self.info.context_tokens,
        )
        return {**drawing, "lora": lora}


class _Run:
    """One sequence in its slot, from its start or from where earlier attempts left it."""

    def __init__(
        self,
        engine: LlamaCppEngine,
        sequence: Sequence,
        fields: dict[str, object],
        program: Program | None,
        slot: int,
        recovery: IdRecovery,
        *,
        cached: bool,
    ) -> None:
        self._engine = engine
        self._sequence = sequence
        self._fields = fields
        self._program = program
        self._slot = slot
        self._recovery = recovery
        self._cached = cached

    def complete(self, emit: Emit, *, from_start: bool) -> Finish:
        sequence, token_bytes = self._sequence, self._engine.vocabulary.token_bytes
        known = () if from_start else sequence.generated
        ids = (*sequence.prompt, *known)
        wanted = sequence.max_tokens + (len(sequence.generated) if from_start else 0)
        constraint = None if self._program is None else ConstrainedText(self._program, token_bytes, known)
        return Completion(
            self._engine.open_server(),
            slot=self._slot,
            token_bytes=token_bytes,
            recovery=self._recovery,
            prompt=ids,
            prior=len(known),
            max_tokens=min(wanted, self._engine.info.context_tokens - len(ids)),
            fields=self._fields,
            seed=sequence.seed,
            emit=emit,
            constraint=constraint,
            cached=self._cached,
        ).run()


class _Replay:
    """Takes the ids that earlier attempts emitted without passing them on, as long as they come out alike."""

    def __init__(self, known: Seq[int], emit: Emit) -> None:
        self._known = known
        self._emit = emit
        self._at = 0
        self.diverged = False

    @property
    def done(self) -> bool:
        return self._at == len(self._known)

    def __call__(self, ids: Seq[int]) -> Verdict:
        again = tuple(ids[: len(self._known) - self._at])
        if again != tuple(self._known[self._at : self._at + len(again)]):
            self.diverged = True
            return Verdict.STOP
        self._at += len(again)
        return self._emit(list(ids[len(again) :]))
