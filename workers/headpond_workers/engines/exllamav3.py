"""exllamav3 on NVIDIA GPUs: one EXL3 checkpoint as an Engine. Experimental.

Nothing of this ran on a device: no weights were loaded, no kernel was started. What the tests do run, on a CPU, is
the package's own generator, jobs, page table and samplers over a stand-in for the model, and every call made here is
bound to the signature of exllamav3 1.6.5. So no capability is claimed. What the code does all the same: draws follow
from the seed, and those of a resumed sequence are replayed, one for each id.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import random
import time
import traceback
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from pathlib import Path
from types import ModuleType
from typing import Any

from headpond.errors import (
    CapabilityMissing,
    EngineOutOfMemory,
    EngineUnavailable,
    HeadpondError,
    PromptTooLong,
    SequenceFailed,
)
from headpond.jobs import FinishReason
from headpond.requests import Message
from headpond.sampling import Sampling
from headpond.tables import PAGE_TOKENS, ExLlamaV3Model
from headpond_workers.engines.exllama.batch_generator import SequenceCrashed, Step
from headpond_workers.engines.exllama.cuda_use import cuda_use
from headpond_workers.engines.exllama.job_loop import JobLoop
from headpond_workers.engines.exllama.loading_log import LoadingLog
from headpond_workers.engines.exllama.memory import is_out_of_memory
from headpond_workers.engines.exllama.preflight import select_devices, stdout_in_log
from headpond_workers.engines.exllama.results import step_of
from headpond_workers.engines.formats.checkpoint_folder import CheckpointFolder, check_checkpoint
from headpond_workers.engines.formats.checkpoint_text import CheckpointText
from headpond_workers.engines.protocol import Capability, DeviceUse, Emit, EngineInfo, Finish, Sequence

log = logging.getLogger(__name__)

TESTED_VERSION = "1.6.5"

_GREEDY_TEMPERATURE = 1e-3
"""At this temperature and below the most likely token is taken: dividing by less is all that would change."""
SAMPLING = frozenset({"top_k", "min_p", "logit_bias"})
"""Of `Sampling`, beyond the basic fields. Penalties, DRY and XTC are kernels that never ran here, and are refused."""
_LARGEST_DRAW = (1 << 32) - 1
_PROBE_PROMPT_TOKENS = 16
_PROBE_TOKENS = 2
_WHAT_FREES = "Lower cache_tokens, slots, context_tokens or chunk_tokens in the model's table, or set cache_bits."
_INSTALL = (
    "Install PyTorch for CUDA, then exllamav3 with its compiled part, from the project's releases on GitHub: the name "
    "of a wheel says for which versions of Python, torch and CUDA it is. The wheel on PyPI compiles it at the first "
    "import, for which it needs the CUDA toolkit, a C++ compiler and some minutes."
)


class ExLlamaV3Engine:
    """One checkpoint folder. Thread-safe; runs up to `info.slots` sequences together."""

    def __init__(self, settings: ExLlamaV3Model, *, digest_cache: Path) -> None:
        """Check, load and warm the model. digest_cache: folder of weight digests that are known already.

        Raises ModelFileError for a folder that is not sound, EngineUnavailable for what is missing or does not fit.
        """
        began = time.monotonic()
        self._devices = settings.devices
        package = _import_exllamav3(settings)
        folder = check_checkpoint(settings.local_path, digest_cache=digest_cache)
        self._text = CheckpointText(folder.path)
        jobs = _load(package, settings, folder, self._text)
        self.info = EngineInfo(
            engine="exllamav3",
            fingerprint=_fingerprint(settings, folder, template_sha256=self._text.template_sha256),
            context_tokens=jobs.context_tokens,
            slots=settings.slots,
            sampling=SAMPLING,
            weights_digest=folder.digest,
        )
        self._loop = JobLoop(jobs, slots=settings.slots, name="exllamav3")
        log.info(
            "engine_loaded engine=exllamav3 exllamav3=%s slots=%d context_tokens=%d cache_bits=%s seconds=%.1f",
            importlib.metadata.version("exllamav3"),
            settings.slots,
            jobs.context_tokens,
            settings.cache_bits,
            time.monotonic() - began,
        )

    def render(self, messages: Seq[Message]) -> list[int]:
        return self._text.render(messages)

    def encode(self, text: str) -> list[int]:
        return self._text.encode(text)

    def token_bytes(self, token_id: int) -> bytes:
        return self._text.token_bytes(token_id)

    def generate(self, sequence: Sequence, emit: Emit) -> Finish:
        self.info.require_for(sequence)
        present = len(sequence.prompt) + len(sequence.generated)
        if present >= self.info.context_tokens:
            if sequence.generated:
                return Finish(FinishReason.LENGTH)
            raise PromptTooLong(prompt_tokens=present, context_tokens=self.info.context_tokens)
        return self._loop.run(sequence, emit)

    def device_use(self) -> DeviceUse:
        return cuda_use(self._devices)

    def close(self) -> None:
        """Refuse those who still wait, and free the device."""
        self._loop.close()


class ExLlamaV3Jobs:
    """A BatchGenerator over a loaded model and its cache; handles are exllamav3's jobs. Used from one thread."""

    def __init__(
        self,
        package: ModuleType,
        settings: ExLlamaV3Model,
        *,
        model: Any,
        cache: Any,
        tokenizer: Any,
        end_ids: Iterable[int],
        vocab_size: int,
    ) -> None:
        """end_ids: the tokens that end an answer. vocab_size: ids from 0 that the model has an embedding for."""
        self._package: Any = package
        self._torch: Any = importlib.import_module("torch")
        self._settings = settings
        self._model = model
        self._cache = cache
        self._tokenizer = tokenizer
        self._end_ids = sorted(end_ids)
        self._vocab_size = vocab_size
        self._generator = self._new_generator()

    @property
    def context_tokens(self) -> int:
        """The most tokens of one sequence, prompt and answer together; the generator keeps one of its cache unused."""
        limits: list[int] = [self._settings.context_tokens, self._cache.max_num_tokens - 1]
        longest: int | None = self._model.config.max_position_embeddings
        return min([*limits, longest] if longest else limits)

    def admit(self, sequence: Sequence) -> Any:
        """Queue a job; max_tokens is cut to what the context holds.

        Raises SequenceFailed for ids that are no tokens of this model, PromptTooLong without room for one more.
        """
        ids = (*sequence.prompt, *sequence.generated)
        if not ids or min(ids) < 0 or max(ids) >= self._vocab_size:
            raise SequenceFailed(
                f"The prompt is empty, or holds a number that is no token id of this model ({self._vocab_size} ids). "
                "Make the ids with this model's own tokenizer."
            )
        wanted = min(sequence.max_tokens, self.context_tokens - len(ids))
        if wanted < 1:
            raise PromptTooLong(prompt_tokens=len(ids), context_tokens=self.context_tokens)
        unknown = [token for token in sequence.sampling.logit_bias if int(token) >= self._vocab_size]
        if unknown:
            raise SequenceFailed(
                f"logit_bias names {unknown[0]}, which is no token id of this model ({self._vocab_size} ids). "
                "Make the ids with this model's own tokenizer."
            )
        job = self._new_job(ids, wanted, sampling=sequence.sampling, seed=sequence.seed)
        skip_draws(job.rng, len(sequence.generated))
        try:
            self._generator.enqueue(job)
        except AssertionError as error:
            raise SequenceFailed(f"exllamav3 refuses this sequence of {len(ids)} tokens ({error}).") from error
        return job

    def cancel(self, handle: Any) -> None:
        self._generator.cancel(handle)

    def step(self) -> list[Step]:
        try:
            results = self._generator.iterate()
        except Exception as error:
            guilty = self._guilty(error)
            # Its frames hold the tensors of the failed step, and whoever keeps the error keeps them.
            traceback.clear_frames(error.__traceback__)
            cause = self._explained(error)
            if guilty is not None and not _is_of_the_device(error):
                raise SequenceCrashed(guilty, cause) from error
            if cause is error:
                raise
            raise cause from error
        for result in results:
            if result["stage"] == "error":
                traceback.clear_frames(result["error"].__traceback__)
                if _is_of_the_device(result["error"]):
                    # It shows in the job that touched the device next, which need not have caused it.
                    raise result["error"]
        return [step for result in results if (step := step_of(result, result["job"])) is not None]

    def use_adapter(self, name: str | None) -> None:
        if name is not None:
            raise CapabilityMissing("exllamav3", Capability.ADAPTERS.value)

    def recover(self) -> None:
        """Go on with a new generator over the same cache, which forgets every page, and see that the model answers."""
        self._generator.close()
        self._generator = self._new_generator()
        self._torch.cuda.empty_cache()
        # An error of the device, such as an illegal access, stays: every later call fails too.
        self.probe()

    def probe(self) -> None:
        """Generate a few tokens of nothing in particular. Nothing may be admitted. Raises what it fails with."""
        self._generator.enqueue(self._new_job((0,) * _PROBE_PROMPT_TOKENS, _PROBE_TOKENS, sampling=Sampling(), seed=0))
        while self._generator.num_remaining_jobs():
            for result in self._generator.iterate():
                if result["stage"] == "error":
                    raise result["error"]

    def close(self) -> None:
        self._generator.close()
        self._model.unload()
        self._torch.cuda.empty_cache()

    def _new_generator(self) -> Any:
        return self._package.Generator(
            model=self._model,
            cache=self._cache,
            tokenizer=self._tokenizer,
            max_batch_size=self._settings.slots,
            max_chunk_size=self._settings.chunk_tokens,
        )

    def _new_job(self, ids: Seq[int], max_new_tokens: int, *, sampling: Sampling, seed: int) -> Any:
        return self._package.Job(
            input_ids=self._torch.tensor([ids], dtype=self._torch.long),
            max_new_tokens=max_new_tokens,
            min_new_tokens=0,
            sampler=self._sampler(sampling),
            seed=seed,
            # Ids alone. Stop strings are cut by the caller, who decodes the ids; here they would be matched on text
            # that is lossy for UTF-8.
            stop_conditions=self._end_ids,
            token_healing=False,
        )

    def _sampler(self, sampling: Sampling) -> Any:
        """Bias, temperature, min_p, top_k, top_p, then a draw; nothing of the package's own defaults."""
        package = self._package
        bias = {int(token): value for token, value in sampling.logit_bias.items()}
        steps = [package.SS_LogitBias(bias)] if bias else []
        if sampling.temperature <= _GREEDY_TEMPERATURE:
            return package.CustomSampler([*steps, package.SS_Argmax()])
        steps.append(package.SS_Temperature(sampling.temperature))
        if sampling.min_p:
            steps.append(package.SS_MinP(sampling.min_p))
        if sampling.top_k:
            steps.append(package.SS_TopK(sampling.top_k))
        return package.CustomSampler([*steps, package.SS_TopP(sampling.top_p), package.SS_Sample()])

    def _guilty(self, error: BaseException) -> Any | None:
        """The job in whose methods the error arose; None if in none's."""
        owners = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
        return next((owner for owner in owners if isinstance(owner, self._package.Job)), None)

    def _explained(self, error: Exception) -> Exception:
        if not is_out_of_memory(error):
            return error
        full = EngineOutOfMemory(f"The device is out of memory. {_WHAT_FREES}")
        full.__cause__ = error
        return full


def skip_draws(rng: random.Random, ids: int) -> None:
    """Throw away the draws that so many ids took. One draw may use the generator of numbers more than once."""
    for _ in range(ids):
        rng.randint(0, _LARGEST_DRAW)


def _is_of_the_device(error: BaseException) -> bool:
    """An error of CUDA itself, other than a lack of memory: it is reported late, and by whoever comes next."""
    return type(error).__name__ == "AcceleratorError" or (
        isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error)
    )


def _import_exllamav3(settings: ExLlamaV3Model) -> ModuleType:
    """The package. Raises EngineUnavailable for the first thing that is missing. Sets CUDA_VISIBLE_DEVICES."""
    select_devices(settings.devices)
    for name in ("torch", "exllamav3"):
        if importlib.util.find_spec(name) is None:
            raise EngineUnavailable(
                f"The engine exllamav3 needs the package {name}, which is not installed. {_INSTALL}"
            )
    torch: Any = importlib.import_module("torch")
    if not torch.cuda.is_available():
        raise EngineUnavailable(
            f"PyTorch {torch.__version__} sees no CUDA device, and exllamav3 runs on GPUs only. See whether nvidia-smi "
            "shows one; if it does, correct devices in the model's table, CUDA_VISIBLE_DEVICES or the installed torch."
        )
    try:
        with stdout_in_log(log):
            package = importlib.import_module("exllamav3")
    except Exception as error:
        raise EngineUnavailable(f"exllamav3 is installed but cannot be imported: {_line(error)}. {_INSTALL}") from error
    log.warning(
        "engine_experimental engine=exllamav3 exllamav3=%s written_for=%s ran_on_a_device=no",
        importlib.metadata.version("exllamav3"),
        TESTED_VERSION,
    )
    return package


def _load(
    package: ModuleType, settings: ExLlamaV3Model, folder: CheckpointFolder, text: CheckpointText
) -> ExLlamaV3Jobs:
    """Load all of it or nothing. Raises EngineUnavailable."""
    exllamav3: Any = package
    model: Any = None
    try:
        with stdout_in_log(log):
            config = exllamav3.Config.from_directory(directory=str(folder.path))
            model = exllamav3.Model.from_config(config=config)
            # Before the model: loading it allocates the caches that are attached to it.
            cache = _new_cache(exllamav3, model, settings)
            model.load(
                use_per_device=None if settings.gpu_split is None else list(settings.gpu_split),
                max_chunk_size=settings.chunk_tokens,
                max_batch_size=settings.slots,
                callback=LoadingLog("exllamav3"),
            )
            failed = model.warmup(cache=cache, max_chunk_size=settings.chunk_tokens, max_batch_size=settings.slots)
            if failed:
                log.warning("warm_up_failed engine=exllamav3 passes=%s", ",".join(failed))
            jobs = ExLlamaV3Jobs(
                package,
                settings,
                model=model,
                cache=cache,
                tokenizer=exllamav3.Tokenizer.from_config(config=config),
                end_ids=text.end_ids,
                vocab_size=text.vocab_size,
            )
            jobs.probe()
            return jobs
    except Exception as error:
        # The frames of the error hold the tensors of the step that failed.
        traceback.clear_frames(error.__traceback__)
        if model is not None:
            model.unload()
        if isinstance(error, HeadpondError):
            raise
        advice = _WHAT_FREES if is_out_of_memory(error) else "Choose an EXL3 checkpoint that exllamav3 supports."
        raise EngineUnavailable(f"exllamav3 cannot load {folder.path}: {_line(error)}. {advice}") from error


def _new_cache(exllamav3: Any, model: Any, settings: ExLlamaV3Model) -> Any:
    quantised = {} if settings.cache_bits is None else {"k_bits": settings.cache_bits, "v_bits": settings.cache_bits}
    return exllamav3.Cache(
        model=model,
        # The generator wants room for one token more than a sequence holds: that is one more page for every slot.
        max_num_tokens=settings.shared_cache_tokens + settings.slots * PAGE_TOKENS,
        layer_type=exllamav3.CacheLayer_fp16 if settings.cache_bits is None else exllamav3.CacheLayer_quant,
        max_batch_size=settings.slots,
        **quantised,
    )


def _fingerprint(settings: ExLlamaV3Model, folder: CheckpointFolder, *, template_sha256: str) -> str:
    """Slots, chunks and the split over devices are left out: they change no promise of this engine."""
    decisive = {
        "engine": "exllamav3",
        "exllamav3": importlib.metadata.version("exllamav3"),
        "torch": importlib.metadata.version("torch"),
        "checkpoint": folder.digest,
        "chat_template_sha256": template_sha256,
        "context_tokens": settings.context_tokens,
        "cache_bits": settings.cache_bits,
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _line(error: BaseException) -> str:
    """An error on one line, bounded: a failed compilation prints pages."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
