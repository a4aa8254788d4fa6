"""exllamav2's dynamic generator as a BatchGenerator: what its jobs need so that nothing goes wrong without a word.

Resume: the prompt and the ids made so far are prefilled together, and as many draws of the job's random numbers are
thrown away as ids were made, since each id takes exactly one. The draws of a resumed sequence are those of an
undisturbed one. Where prefill and decode compute alike, so are its ids; the kernels of a GPU differ in the last
bits, so there the promise is that no id is lost or repeated.
"""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import Any

from headpond.errors import CapabilityMissing, EngineOutOfMemory, PromptTooLong, SequenceFailed
from headpond.sampling import Sampling
from headpond_workers.engines.exllama.batch_generator import SequenceCrashed, Step
from headpond_workers.engines.exllama.memory import is_out_of_memory
from headpond_workers.engines.exllama.results import step_of
from headpond_workers.engines.exllamav2.constraint import Constraints, failure_of
from headpond_workers.engines.exllamav2.loading import LoadedModel
from headpond_workers.engines.exllamav2.page_links import linked_job_class
from headpond_workers.engines.exllamav2.sampling import SettingsOfModel, settings_of
from headpond_workers.engines.protocol import Capability, Sequence

log = logging.getLogger(__name__)

_WARM_UP_PROMPT_TOKENS = 16
_WARM_UP_TOKENS = 2


class ExLlamaV2Jobs:
    """A BatchGenerator over one loaded model. Handles are exllamav2's jobs. Used from one thread at a time."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        end_ids: Iterable[int],
        vocabulary: Seq[bytes] = (),
        constraints: Constraints | None = None,
    ) -> None:
        """end_ids: the tokens that end an answer; exllamav2 goes on past them unless it is told. vocabulary: the bytes
        of each token. constraints: None if sequences have none."""
        self._job_class = linked_job_class()
        parameters = inspect.signature(self._job_class).parameters.values()
        self._job_parameters = {each.name for each in parameters if each.kind is not each.VAR_KEYWORD}
        self._loaded = loaded
        self._generator = loaded.new_generator()
        self._end_ids = sorted(end_ids)
        self._adapter: str | None = None
        self._vocab_size: int = loaded.config.vocab_size
        self._constraints = constraints
        self.settings = SettingsOfModel(vocabulary, vocab_size=self._vocab_size)
        # A job under a draft model ends so many tokens before max_new_tokens, and needs room for them all the same.
        self._draft_tokens: int = self._generator.num_draft_tokens

    @property
    def generator(self) -> Any:
        """The ExLlamaV2DynamicGenerator at this moment; `recover` may replace it."""
        return self._generator

    @property
    def adapter(self) -> str | None:
        """The adapter in use. What the pages of the cache hold was made with it."""
        return self._adapter

    @property
    def context_tokens(self) -> int:
        """The most tokens of one sequence, prompt and answer together.

        The generator itself enforces no such limit: past the model's length it reads beyond the table of rotary
        positions.
        """
        longest: int = min(self._generator.max_seq_len, self._generator.max_total_tokens) - self._draft_tokens
        return min(longest, self._loaded.settings.context_tokens)

    def admit(self, sequence: Sequence) -> Any:
        """Queue a job; max_tokens is cut to what the context holds.

        Raises SequenceFailed for ids that are no tokens of this model or do not match the constraint, PromptTooLong
        without room for one more.
        """
        ids = (*sequence.prompt, *sequence.generated)
        self._check_ids(ids)
        wanted = min(sequence.max_tokens, self.context_tokens - len(ids))
        if wanted < 1:
            raise PromptTooLong(prompt_tokens=len(ids), context_tokens=self.context_tokens)
        job = self._new_job(
            input_ids=_batch_of_one(ids),
            max_new_tokens=wanted + self._draft_tokens,
            min_new_tokens=0,
            gen_settings=self.settings.new(sequence.sampling),
            seed=sequence.seed,
            filters=self._filters(sequence),
            # Ids alone. Stop strings are cut by the caller, who decodes the ids; here they would be matched on text
            # that is lossy for UTF-8.
            stop_conditions=self._end_ids,
            token_healing=False,
        )
        for _ in sequence.generated:
            job.rng.random()
        try:
            self._generator.enqueue(job)
        except AssertionError as error:
            raise SequenceFailed(f"exllamav2 refuses this sequence of {len(ids)} tokens ({error}).") from error
        return job

    def cancel(self, handle: Any) -> None:
        self._generator.cancel(handle)

    def step(self) -> list[Step]:
        """Raises SequenceCrashed, EngineOutOfMemory, or what exllamav2 raised."""
        try:
            results = self._generator.iterate()
        except Exception as error:
            guilty = self._guilty(error)
            # Its frames hold the tensors of the failed step, and whoever keeps the error keeps them.
            traceback.clear_frames(error.__traceback__)
            cause = self._explained(error)
            if guilty is not None:
                raise SequenceCrashed(guilty, cause) from error
            if cause is error:
                raise
            raise cause from error
        steps = [_checked(step) for result in results if (step := step_of(result, result["job"])) is not None]
        # One of them for each job, in order: with a draft a job has several results.
        for job in dict.fromkeys(result["job"] for result in results if result["stage"] == "streaming"):
            if held := _take_held(job):
                steps.append(Step(job, held))
        return steps

    def use_adapter(self, name: str | None) -> None:
        """name: None is the bare model; else one of the loaded adapters."""
        if name == self._adapter:
            return
        self._set_adapter(name)
        # Pages are found by their token ids alone: those of the adapter before must not be found again.
        self._generator.reset_page_table()

    def recover(self) -> None:
        """Drop all jobs, free all pages, and see that the model still answers. Raises what it answers with if not.

        No page is kept: the failed step has counted tokens as present whose keys and values it may not have written.
        """
        import torch

        if not self._clear():
            self._replace_generator()
        torch.cuda.empty_cache()
        # An error of the device, such as an illegal access, stays: every later call fails too.
        self.warm_up()

    def warm_up(self) -> None:
        """Generate a few tokens of nothing in particular, and forget them. Nothing may be admitted.

        Raises EngineOutOfMemory, or what exllamav2 raised.
        """
        job = self._new_job(
            input_ids=_batch_of_one([0] * min(_WARM_UP_PROMPT_TOKENS, self.context_tokens - _WARM_UP_TOKENS)),
            max_new_tokens=_WARM_UP_TOKENS + self._draft_tokens,
            gen_settings=settings_of(Sampling()),
        )
        try:
            self._generator.enqueue(job)
            while self._generator.num_remaining_jobs():
                self._generator.iterate()
        except Exception as error:
            traceback.clear_frames(error.__traceback__)
            cause = self._explained(error)
            if cause is error:
                raise
            raise cause from error
        self._generator.reset_page_table()

    def close(self) -> None:
        _end_threads(self._generator)
        self._loaded.unload()

    def _filters(self, sequence: Sequence) -> list[Any]:
        if sequence.constraint is None:
            return []
        if self._constraints is None:
            raise CapabilityMissing("exllamav2", Capability.JSON_SCHEMA.value)
        return [self._constraints.filter_for(sequence)]

    def _new_job(self, **arguments: Any) -> Any:
        """A job. Its class takes any keyword and drops those that it does not know: those are a TypeError here."""
        unknown = arguments.keys() - self._job_parameters
        if unknown:
            raise TypeError(f"ExLlamaV2DynamicJob has no parameter {', '.join(sorted(unknown))}")
        return self._job_class(**arguments)

    def _check_ids(self, ids: Seq[int]) -> None:
        """An id outside the table of embeddings is an assertion on the device, which ends the whole process."""
        if not ids:
            raise SequenceFailed("The prompt has no tokens. Give it at least one.")
        lowest, highest = min(ids), max(ids)
        if lowest < 0 or highest >= self._vocab_size:
            wrong = lowest if lowest < 0 else highest
            raise SequenceFailed(
                f"{wrong} is no token id of this model, which has {self._vocab_size}. "
                "Make the ids with this model's own tokenizer."
            )

    def _explained(self, error: Exception) -> Exception:
        """The error itself, but for a full device."""
        if not is_out_of_memory(error):
            return error
        full = EngineOutOfMemory(f"The device is out of memory. {self._loaded.what_fits()}")
        full.__cause__ = error
        return full

    def _guilty(self, error: BaseException) -> Any | None:
        """The job in whose methods the error arose, also in a thread of the sampling pool; None if in none's."""
        owners = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
        return next((owner for owner in owners if isinstance(owner, self._job_class)), None)

    def _clear(self) -> bool:
        """Drop all jobs and empty the page table. False if the generator cannot."""
        generator = self._generator
        try:
            generator.clear_queue()
            generator.reset_page_table()
        except Exception:
            log.exception("generator_not_cleared")
            return False
        return not generator.num_remaining_jobs() and len(generator.unreferenced_pages) == generator.max_pages

    def _replace_generator(self) -> None:
        log.warning("generator_replaced")
        _end_threads(self._generator)
        self._generator = self._loaded.new_generator()
        self._set_adapter(self._adapter)

    def _set_adapter(self, name: str | None) -> None:
        # Not set_loras: it turns None into an empty list, at which the next forward pass raises IndexError.
        self._generator.current_loras = None if name is None else [self._loaded.adapters[name]]
        self._adapter = name


def _checked(step: Step) -> Step:
    """The step itself, but for a sequence that was ended because its constraint could not be followed."""
    failure = None if step.finish is None else failure_of(step.handle)
    return step if failure is None else Step(step.handle, error=failure)


def _take_held(job: Any) -> tuple[int, ...]:
    """The ids that a running job holds back, which are then its caller's.

    exllamav2 holds them until their text is complete. One byte that is no UTF-8 can hold back all that follows, and
    ids need not wait: their text is made elsewhere.
    """
    if job.is_finished or not len(job.held_tokens):
        return ()
    ids = tuple(job.held_tokens.torch()[0].tolist())
    job.held_tokens.clear()
    job.held_text = ""
    return ids


def _batch_of_one(ids: Seq[int]) -> Any:
    """A tensor of int64 on the host, shape (1, n)."""
    import torch

    return torch.tensor([ids], dtype=torch.long)


def _end_threads(generator: Any) -> None:
    # It has no such attribute where one thread samples, that is, with one slot.
    pool = getattr(generator, "sampling_pool", None)
    if pool is not None:
        pool.shutdown()
