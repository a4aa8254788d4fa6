"""A checkpoint folder on its devices: model, cache, tokenizer, draft model and adapters.

Everything of it is loaded or nothing: what a failed attempt had put on the devices is given back before the error is
raised, and the error says what would fit.

Where the weights go: with tensor_parallel a part of every layer to each device; with gpu_split as many gigabytes of
layers to each device in turn, the cache beside them; else exllamav2 fills the devices in turn, with the cache, while
it runs the largest chunk through each layer, so that a device that is too full shows here and not in the first prompt.
A draft model is always placed in that last way, and first.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from headpond.errors import EngineUnavailable, HeadpondError
from headpond.tables import ExLlamaV2Model
from headpond_workers.engines.exllama.memory import (
    DEVICE_RESERVE_BYTES,
    Demand,
    KvShape,
    held_tokens,
    is_out_of_memory,
    readable,
    what_fits,
    what_frees,
)
from headpond_workers.engines.exllama.preflight import import_exllamav2, stdout_in_log
from headpond_workers.engines.exllamav2.adapters import load_adapter
from headpond_workers.engines.exllamav2.config import model_config, query_tokens
from headpond_workers.engines.exllamav2.holdings import Holdings, forget_frames
from headpond_workers.engines.formats.checkpoint_folder import CheckpointFolder

log = logging.getLogger(__name__)

OnLayer = Callable[[int, int], None]

_SAMPLING_THREADS = 16
_QUANTISED = (".q_weight", ".qweight")
"""What tensors of EXL2 and of GPTQ checkpoints end with."""
_CACHE_CLASSES = {
    "FP16": "ExLlamaV2Cache",
    "Q8": "ExLlamaV2Cache_Q8",
    "Q6": "ExLlamaV2Cache_Q6",
    "Q4": "ExLlamaV2Cache_Q4",
}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What a generator runs on. The cache holds settings.shared_cache_tokens for all slots together.

    With a draft model it holds one page more for each slot, and config.max_seq_len is draft.tokens more than
    context_tokens: guessed tokens are written behind a sequence, which may still grow to its full length.
    adapters: name -> ExLlamaV2Lora, loaded with its scaling.
    """

    settings: ExLlamaV2Model
    config: Any
    model: Any
    cache: Any
    tokenizer: Any
    draft_model: Any | None
    draft_cache: Any | None
    adapters: Mapping[str, Any]
    demand: Demand

    @property
    def computes_alike(self) -> bool:
        """Whether the same tokens give the same logits each time.

        The kernels of EXL2 and GPTQ weights add up with atomic operations, in whatever order their blocks end: the
        last bits differ from run to run, and with them now and then a token.
        """
        models = [self.model] if self.draft_model is None else [self.model, self.draft_model]
        return not any(name.endswith(_QUANTISED) for each in models for name in each.config.tensor_file_map)

    def new_generator(self) -> Any:
        """An ExLlamaV2DynamicGenerator over model and cache, with an empty page table. One at a time."""
        settings = self.settings
        # Every argument is given: by default the batch is max_input_len / 8, whose logits alone are a gigabyte of
        # host memory at a vocabulary of 128 thousand.
        return importlib.import_module("exllamav2.generator").ExLlamaV2DynamicGenerator(
            model=self.model,
            cache=self.cache,
            tokenizer=self.tokenizer,
            max_batch_size=settings.slots,
            max_seq_len=self.config.max_seq_len,
            max_chunk_size=self.config.max_input_len,
            max_q_size=query_tokens(settings),
            draft_model=self.draft_model,
            draft_cache=self.draft_cache,
            num_draft_tokens=0 if settings.draft is None else settings.draft.tokens,
            use_ngram_draft=False,
            max_ngram=4,
            max_sampling_threads=min(_SAMPLING_THREADS, settings.slots),
            min_sampling_threads=3,
            paged=settings.paged,
            filter_background_eval=False,
        )

    def what_fits(self) -> str:
        """Sentences for people, after a step that found no memory: what is loaded, what is free, what to change."""
        return what_frees(self.demand, _free_bytes(importlib.import_module("torch")))

    def unload(self) -> None:
        """Give the memory of the devices back. Whoever still holds this object or a generator holds none of it."""
        for adapter in self.adapters.values():
            adapter.unload()
        Holdings([self.model, self.draft_model], [self.cache, self.draft_cache]).free()


def load_model(
    settings: ExLlamaV2Model,
    folder: CheckpointFolder,
    adapters: Mapping[str, CheckpointFolder],
    *,
    on_layer: OnLayer,
) -> LoadedModel:
    """Load the checked folder and the checked adapters, named as in settings.adapters.

    on_layer(done, total): modules of the model, and of the draft model before it. Raises EngineUnavailable for what
    is missing, does not match or does not fit; nothing stays on the devices then.
    """
    exllamav2 = import_exllamav2(settings)
    began = time.monotonic()
    holdings = Holdings()
    loading = _Loading(exllamav2, settings, folder, holdings, on_layer)
    try:
        with stdout_in_log(log):
            loaded = loading.run(adapters)
    except HeadpondError as error:
        forget_frames(error)
        holdings.free()
        raise
    except Exception as error:
        # The frames of the error hold the tensors of the step that failed.
        forget_frames(error)
        holdings.free()
        raise loading.explained(error) from error
    log.info(
        "model_loaded layers=%d weights=%s cache=%s cache_tokens=%d adapters=%d draft=%s seconds=%.1f",
        loaded.config.num_hidden_layers,
        readable(loaded.demand.weight_bytes).replace(" ", ""),
        settings.cache,
        loaded.cache.max_seq_len,
        len(loaded.adapters),
        settings.draft is not None,
        time.monotonic() - began,
    )
    return loaded


class _Loading:
    """One attempt to load."""

    def __init__(
        self,
        exllamav2: ModuleType,
        settings: ExLlamaV2Model,
        folder: CheckpointFolder,
        holdings: Holdings,
        on_layer: OnLayer,
    ) -> None:
        self._exllamav2: Any = exllamav2
        self._torch: Any = importlib.import_module("torch")
        self._settings = settings
        self._folder = folder
        self._holdings = holdings
        self._on_layer = on_layer
        self._cache_class: Any = getattr(exllamav2, _CACHE_CLASSES[settings.cache])
        self._cache_tokens = held_tokens(
            settings.shared_cache_tokens, slots=settings.slots, drafting=settings.draft is not None
        )
        self._demand: Demand | None = None

    def run(self, adapters: Mapping[str, CheckpointFolder]) -> LoadedModel:
        settings = self._settings
        self._check_devices()
        config = model_config(self._exllamav2, self._folder.path, settings)
        model = self._exllamav2.ExLlamaV2(config)
        tokenizer = self._exllamav2.ExLlamaV2Tokenizer(config)
        draft_model = None
        if settings.draft is not None:
            draft_config = model_config(self._exllamav2, settings.draft.path, settings, draft=True)
            self._check_vocabulary(config, tokenizer, draft_config)
            draft_model = self._exllamav2.ExLlamaV2(draft_config)
        models = [model] if draft_model is None else [model, draft_model]
        self._holdings.models.extend(models)
        self._demand = _demand(settings, models)

        progress = _Progress(self._on_layer, [len(each.modules) for each in reversed(models)])
        draft_cache = None if draft_model is None else self._load_filling(draft_model, progress)
        progress.next_model()
        if settings.tensor_parallel:
            cache = self._load_parallel(model, progress)
        elif settings.gpu_split is not None:
            model.load(list(settings.gpu_split), callback=progress)
            cache = self._cache_class(model, max_seq_len=self._cache_tokens)
            self._holdings.caches.append(cache)
        else:
            cache = self._load_filling(model, progress)
        return LoadedModel(
            settings=settings,
            config=config,
            model=model,
            cache=cache,
            tokenizer=tokenizer,
            draft_model=draft_model,
            draft_cache=draft_cache,
            adapters={
                name: load_adapter(self._exllamav2, model, name, checked.path, scaling=settings.adapters[name].scaling)
                for name, checked in adapters.items()
            },
            demand=self._demand,
        )

    def explained(self, error: Exception) -> EngineUnavailable:
        """The error for people. The devices are free of this model again."""
        what = f"exllamav2 cannot load {self._folder.path}"
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if self._demand is not None and is_out_of_memory(error):
            return EngineUnavailable(f"{what}: {reason}. {what_fits(self._demand, _free_bytes(self._torch))}")
        if self._demand is not None and "Insufficient space in device allocation" in reason:
            weights, work = readable(self._demand.weight_bytes), readable(self._demand.work_bytes)
            return EngineUnavailable(
                f"{what}: gpu_split = {list(self._settings.gpu_split or ())} is too small. The weights need {weights}, "
                f"and work space about {work} on each device, in whole layers. Raise gpu_split, or leave it out: the "
                "devices are then filled in turn."
            )
        return EngineUnavailable(
            f"{what}: {type(error).__name__}: {reason}. The checkpoint is incomplete, or of a kind that exllamav2 does "
            "not know. Fetch it again, or choose an EXL2, GPTQ or FP16 checkpoint of a supported architecture."
        )

    def _check_devices(self) -> None:
        settings = self._settings
        count = self._torch.cuda.device_count()
        for name in ("gpu_split", "autosplit_reserve_mib"):
            given: Sequence[float] | None = getattr(settings, name)
            if given is None:
                continue
            # gpu_split may leave the last devices alone, unless they were asked for by number.
            exact = name != "gpu_split" or settings.devices is not None
            if len(given) > count or (exact and len(given) != count):
                raise EngineUnavailable(
                    f"{name} has {len(given)} entries, and the model has {count} device(s) "
                    f"(devices = {list(settings.devices) if settings.devices else 'all'}). Write one for each device."
                )

    def _check_vocabulary(self, config: Any, tokenizer: Any, draft_config: Any) -> None:
        """Ids go from one model to the other as they are."""
        draft_tokenizer = self._exllamav2.ExLlamaV2Tokenizer(draft_config)
        same = _token_ids(tokenizer) == _token_ids(draft_tokenizer) and config.vocab_size == draft_config.vocab_size
        if not same:
            raise EngineUnavailable(
                f"The draft model {draft_config.model_dir} has another vocabulary ({draft_config.vocab_size} tokens) "
                f"than {self._folder.path} ({config.vocab_size}). Choose a draft model of the same family, or leave "
                "draft out."
            )

    def _load_filling(self, model: Any, progress: _Progress) -> Any:
        """Fill the devices in turn, the cache beside the layers. Returns the cache."""
        reserve = self._settings.autosplit_reserve_mib
        cache = self._cache_class(model, max_seq_len=self._cache_tokens, lazy=True)
        self._holdings.caches.append(cache)
        model.load_autosplit(
            cache,
            reserve_vram=None if reserve is None else [mib << 20 for mib in reserve],
            last_id_only=True,
            callback=progress,
        )
        return cache

    def _load_parallel(self, model: Any, progress: _Progress) -> Any:
        """A part of every layer on each device. Returns the cache, split likewise."""
        split = self._settings.gpu_split
        if split is None:
            free = _free_bytes(self._torch)
            split = tuple(max(0, each - DEVICE_RESERVE_BYTES) / (1 << 30) for each in free)
        model.load_tp(
            list(split),
            callback=progress,
            expect_cache_tokens=self._cache_tokens,
            expect_cache_base=self._cache_class,
        )
        cache = self._exllamav2.ExLlamaV2Cache_TP(model, base=self._cache_class, max_seq_len=self._cache_tokens)
        self._holdings.caches.append(cache)
        return cache


class _Progress:
    """Counts the modules of several models as one. Called by exllamav2 with (done, total) of the present one."""

    def __init__(self, on_layer: OnLayer, modules: Sequence[int]) -> None:
        self._on_layer = on_layer
        self._total = sum(modules)
        self._before = 0
        self._modules = list(modules)

    def next_model(self) -> None:
        if len(self._modules) > 1:
            self._before += self._modules.pop(0)

    def __call__(self, done: int, total: int) -> None:
        self._on_layer(self._before + done, self._total)


def _demand(settings: ExLlamaV2Model, models: Sequence[Any]) -> Demand:
    """What the models ask for, from the headers of their weight files."""
    return Demand(
        # The first module is the embedding, which stays in host memory.
        weight_bytes=sum(module.weight_footprint() for model in models for module in model.modules[1:]),
        work_bytes=max(module.scratch_space() for model in models for module in model.modules),
        shapes=tuple(
            KvShape(model.config.num_hidden_layers, model.config.num_key_value_heads, model.config.head_dim)
            for model in models
        ),
        cache=settings.cache,
        slots=settings.slots,
        context_tokens=settings.context_tokens,
        cache_tokens=settings.shared_cache_tokens,
    )


def _free_bytes(torch: Any) -> list[int]:
    """Of each visible device."""
    return [torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())]


def _token_ids(tokenizer: Any) -> dict[str, int]:
    ids: dict[str, int] = tokenizer.tokenizer_model.hf_tokenizer.get_vocab(with_added_tokens=True)
    return ids
