"""exllamav2 on NVIDIA GPUs: one loaded model as an Engine.

What is promised of resuming: no id is lost or repeated. Draws are replayed, so a seeded sequence goes on with the
random numbers that it would have had; but prefill and decode run different kernels on a GPU, so that a token whose
runner-up is as likely to the last bit may come out differently. EXACT_RESUME is therefore not among the
capabilities. With EXL2 and GPTQ weights not even two runs of one sequence are alike, so SEEDED is not either.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import time
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass
from pathlib import Path

from headpond.errors import EngineOutOfMemory, EngineUnavailable, PrefixRefused, PromptTooLong, SequenceFailed
from headpond.jobs import FinishReason
from headpond.requests import Message
from headpond.tables import ExLlamaV2Model
from headpond_workers.engines.exllama.cuda_use import cuda_use
from headpond_workers.engines.exllama.job_loop import JobLoop
from headpond_workers.engines.exllama.loading_log import LoadingLog
from headpond_workers.engines.exllama.preflight import import_exllamav2
from headpond_workers.engines.exllamav2.constraint import Constraints, constraints_installed
from headpond_workers.engines.exllamav2.jobs import ExLlamaV2Jobs
from headpond_workers.engines.exllamav2.loading import LoadedModel, load_model
from headpond_workers.engines.exllamav2.prefixes import (
    PrefixFingerprint,
    TakenPrefix,
    fingerprint_of,
    held_tokens,
    place_prefix,
    read_prefix,
    save_prefix,
    take_prefix,
)
from headpond_workers.engines.exllamav2.sampling import SAMPLING
from headpond_workers.engines.formats.checkpoint_folder import CheckpointFolder, check_adapter, check_checkpoint
from headpond_workers.engines.formats.checkpoint_text import CheckpointText
from headpond_workers.engines.prefix_header import digest_of_parts
from headpond_workers.engines.protocol import (
    NO_ADAPTERS,
    Capability,
    DeviceUse,
    Emit,
    EngineInfo,
    Finish,
    PrefixCopy,
    Sequence,
)

log = logging.getLogger(__name__)


class ExLlamaV2Engine:
    """One checkpoint folder. Thread-safe; runs up to `info.slots` sequences together."""

    def __init__(self, settings: ExLlamaV2Model, *, digest_cache: Path) -> None:
        """Check, load and warm the model. digest_cache: folder of weight digests that are known already.

        Raises ModelFileError for a folder that is not sound, EngineUnavailable for what is missing or does not fit.
        """
        began = time.monotonic()
        self._devices = settings.devices
        # First: what is missing is said before gigabytes of weights are read for their digest.
        import_exllamav2(settings)
        folder = check_checkpoint(settings.local_path, digest_cache=digest_cache)
        adapters = {
            name: check_adapter(adapter.path, digest_cache=digest_cache) for name, adapter in settings.adapters.items()
        }
        draft = None if settings.draft is None else check_checkpoint(settings.draft.path, digest_cache=digest_cache)
        self._text = CheckpointText(folder.path)
        self._constraints = _constraints(self._text)
        loaded = load_model(settings, folder, adapters, on_layer=LoadingLog("exllamav2"))
        jobs = self._warm(loaded)
        self._jobs = jobs
        self._weights_digest = folder.digest
        self._draft_digest = None if draft is None else draft.digest
        self._adapters = {
            name: (name, checked.digest, settings.adapters[name].scaling) for name, checked in adapters.items()
        }
        capabilities = {Capability.KV_PREFIXES}
        if self._constraints is not None:
            capabilities |= {Capability.JSON_SCHEMA, Capability.GRAMMAR}
        if loaded.computes_alike:
            capabilities.add(Capability.SEEDED)
        if settings.adapters:
            capabilities.add(Capability.ADAPTERS)
        self.info = EngineInfo(
            engine="exllamav2",
            fingerprint=_fingerprint(settings, folder, adapters, template_sha256=self._text.template_sha256),
            context_tokens=jobs.context_tokens,
            slots=settings.slots,
            capabilities=frozenset(capabilities),
            adapters=tuple(sorted(settings.adapters)),
            sampling=SAMPLING,
            adapter_digests=tuple(adapters[name].digest for name in sorted(settings.adapters)),
            weights_digest=folder.digest,
            remedies={Capability.ADAPTERS: NO_ADAPTERS},
        )
        self._loop = JobLoop(jobs, slots=settings.slots, name="exllamav2")
        log.info(
            "engine_loaded engine=exllamav2 exllamav2=%s slots=%d context_tokens=%d cache=%s adapters=%d seconds=%.1f",
            importlib.metadata.version("exllamav2"),
            settings.slots,
            jobs.context_tokens,
            settings.cache,
            len(adapters),
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
        self._check_adapter(sequence.adapter)
        self._jobs.settings.check(sequence.sampling)
        present = len(sequence.prompt) + len(sequence.generated)
        if present >= self.info.context_tokens:
            if sequence.generated:
                return Finish(FinishReason.LENGTH)
            raise PromptTooLong(prompt_tokens=present, context_tokens=self.info.context_tokens)
        if (
            sequence.constraint is not None
            and self._constraints is not None
            and not self._constraints.prepare(sequence.constraint, lambda: emit(()))
        ):
            return Finish(FinishReason.CANCELLED)
        return self._loop.run(sequence, emit)

    def prefix_fingerprint(self, adapter: str | None) -> str | None:
        """See PrefixEngine. Pages are those of the adapter in use, and of no other."""
        self._check_adapter(adapter)
        if self._loop.call(lambda: self._jobs.adapter) != adapter:
            return None
        return digest_of_parts(asdict(self._kv_fingerprint(adapter)))

    def held_prefix(self, ids: Seq[int], *, adapter: str | None = None) -> int:
        """See PrefixEngine."""
        return self._loop.call(lambda: held_tokens(self._jobs.generator, ids) if self._jobs.adapter == adapter else 0)

    def take_prefix(self, ids: Seq[int], *, adapter: str | None = None) -> PrefixCopy | None:
        """See PrefixEngine. Running sequences wait only while keys and values are copied to host memory."""
        self._check_adapter(adapter)

        def take() -> TakenPrefix | None:
            # Pages are those of the adapter in use, and of no other.
            return take_prefix(self._jobs.generator, ids) if self._jobs.adapter == adapter else None

        taken = self._loop.call(take)
        return None if taken is None else _HostCopy(taken, self._kv_fingerprint(adapter))

    def save_prefix(self, ids: Seq[int], path: Path, *, adapter: str | None = None) -> int:
        """See PrefixEngine."""
        taken = self.take_prefix(ids, adapter=adapter)
        if taken is None:
            return 0
        taken.write(path)
        return len(taken.ids)

    def load_prefix(self, path: Path) -> int:
        """See PrefixEngine. The file must be of the adapter in use, which is that of the last sequence."""
        adapter = self._loop.call(lambda: self._jobs.adapter)
        stored = read_prefix(self._jobs.generator, path, fingerprint=self._kv_fingerprint(adapter))

        def place() -> int:
            if self._jobs.adapter != adapter:
                raise PrefixRefused(f"{path} was not loaded: another adapter came into use meanwhile. Prefill instead.")
            return place_prefix(self._jobs.generator, stored)

        return self._loop.call(place)

    def device_use(self) -> DeviceUse:
        return cuda_use(self._devices)

    def close(self) -> None:
        """Refuse those who still wait, and free the device."""
        self._loop.close()

    def _kv_fingerprint(self, adapter: str | None) -> PrefixFingerprint:
        return fingerprint_of(
            self._jobs.generator,
            weights_digest=self._weights_digest,
            adapter=None if adapter is None else self._adapters[adapter],
            draft_digest=self._draft_digest,
        )

    def _check_adapter(self, name: str | None) -> None:
        if name is None:
            return
        self.info.require(Capability.ADAPTERS)
        if name not in self.info.adapters:
            raise SequenceFailed(
                f"No adapter is named '{name[:100]}' (there are: {', '.join(self.info.adapters)}). "
                "Name one of these, or add it to the model's table."
            )

    def _warm(self, loaded: LoadedModel) -> ExLlamaV2Jobs:
        try:
            jobs = ExLlamaV2Jobs(
                loaded,
                end_ids=self._text.end_ids,
                vocabulary=self._text.vocabulary,
                constraints=self._constraints,
            )
            jobs.warm_up()
        except EngineOutOfMemory as error:
            loaded.unload()
            raise EngineUnavailable(f"The model was loaded and has no room to run. {error}") from error
        except BaseException:
            loaded.unload()
            raise
        return jobs


@dataclass(frozen=True, slots=True)
class _HostCopy:
    """A PrefixCopy, in host memory."""

    taken: TakenPrefix
    fingerprint: PrefixFingerprint

    @property
    def ids(self) -> tuple[int, ...]:
        return self.taken.ids

    def write(self, path: Path) -> None:
        save_prefix(self.taken, path, fingerprint=self.fingerprint)

    def discard(self) -> None:
        """Nothing: it goes with the last reference to it."""


def _constraints(text: CheckpointText) -> Constraints | None:
    if not constraints_installed():
        log.warning("constraints_missing engine=exllamav2 advice='install llguidance to serve response formats'")
        return None
    return Constraints(text.vocabulary, end_ids=text.end_ids, encode=text.encode)


def _fingerprint(
    settings: ExLlamaV2Model,
    folder: CheckpointFolder,
    adapters: Mapping[str, CheckpointFolder],
    *,
    template_sha256: str,
) -> str:
    """Slots, chunks and the split over devices are left out: they change no promise of this engine."""
    decisive = {
        "engine": "exllamav2",
        "exllamav2": importlib.metadata.version("exllamav2"),
        "llguidance": importlib.metadata.version("llguidance") if constraints_installed() else None,
        "torch": importlib.metadata.version("torch"),
        "checkpoint": folder.digest,
        "chat_template_sha256": template_sha256,
        "context_tokens": settings.context_tokens,
        "cache": settings.cache,
        "paged": settings.paged,
        "tensor_parallel": settings.tensor_parallel,
        "rope_scale": settings.rope_scale,
        "rope_alpha": settings.rope_alpha,
        "adapters": {
            name: {"checkpoint": checkpoint.digest, "scaling": settings.adapters[name].scaling}
            for name, checkpoint in adapters.items()
        },
        "draft": settings.draft is not None,
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
