"""Loading a checkpoint by exllamav2: what is configured, what is refused, and what is left after a failure."""

from __future__ import annotations

import gc
import inspect
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from exllamav2_cpu.availability import require_exllamav2

require_exllamav2()

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from exllamav2_cpu import checkpoints, harness  # noqa: E402
from exllamav2_cpu.processes import run_python  # noqa: E402
from headpond.errors import EngineUnavailable  # noqa: E402
from headpond.tables import ExLlamaV2Model  # noqa: E402
from headpond_workers.engines.exllamav2.loading import LoadedModel, load_model  # noqa: E402
from headpond_workers.engines.formats.checkpoint_folder import CheckpointFolder, check_adapter, check_checkpoint  # noqa: E402

PROMPT = "The quick brown fox"
OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 20.00 MiB."


@pytest.fixture(scope="module", autouse=True)
def installed() -> harness.Harness:
    return harness.install()


@pytest.fixture
def stand_in(installed: harness.Harness) -> Iterator[harness.Harness]:
    installed.reset()
    yield installed
    installed.reset()


def table(path: Path | None = None, **settings: Any) -> ExLlamaV2Model:
    small = {"context_tokens": 512, "chunk_tokens": 256, "slots": 2}
    return ExLlamaV2Model.model_validate(
        {"engine": "exllamav2", "path": path or checkpoints.tiny(), **small, **settings}
    )


def load(settings: ExLlamaV2Model, digest_cache: Path, *, progress: list[tuple[int, int]] | None = None) -> LoadedModel:
    adapters = {
        name: check_adapter(adapter.path, digest_cache=digest_cache) for name, adapter in settings.adapters.items()
    }
    folder = check_checkpoint(settings.path, digest_cache=digest_cache)
    seen = [] if progress is None else progress
    return load_model(settings, folder, adapters, on_layer=lambda done, total: seen.append((done, total)))


def copy_of(
    source: Path, folder: Path, *, name: str = "config.json", without: Sequence[str] = (), **changes: Any
) -> Path:
    """A copy of a checkpoint or an adapter with other values in one of its JSON files."""
    shutil.copytree(source, folder)
    config = json.loads((folder / name).read_text())
    config.update(changes)
    for key in without:
        del config[key]
    (folder / name).write_text(json.dumps(config))
    return folder


def token_ids(loaded: LoadedModel, text: str = PROMPT) -> Any:
    return loaded.tokenizer.encode(text)


def greedy_ids(generator: Any, ids: Any, tokens: int) -> list[int]:
    """Ids of a greedy continuation, with a draft model or without."""
    from exllamav2.generator import ExLlamaV2DynamicJob, ExLlamaV2Sampler

    job = ExLlamaV2DynamicJob(
        input_ids=ids,
        max_new_tokens=tokens + generator.num_draft_tokens,
        gen_settings=ExLlamaV2Sampler.Settings.greedy(),
    )
    generator.enqueue(job)
    made: list[int] = []
    while generator.num_remaining_jobs():
        for result in generator.iterate():
            if "token_ids" in result:
                made += result["token_ids"][0].tolist()
    return made


def live_tensor_bytes() -> int:
    """Bytes of all tensors that anything still refers to."""
    gc.collect()
    storages = {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
        for each in gc.get_objects()
        if issubclass(type(each), torch.Tensor) and each.device.type != "meta"
    }
    return sum(storages.values())


# What is configured


def test_a_loaded_model_continues_text_and_gives_its_memory_back(tmp_path: Path) -> None:
    load(table(), tmp_path).unload()
    before = live_tensor_bytes()

    loaded = load(table(), tmp_path)
    assert loaded.tokenizer.decode(torch.tensor([greedy_ids(loaded.new_generator(), token_ids(loaded), 6)]))[0]
    assert live_tensor_bytes() > before
    loaded.unload()

    assert live_tensor_bytes() <= before
    loaded.unload()


def test_progress_counts_the_modules_of_both_models_to_the_end(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    loaded = load(table(draft={"path": checkpoints.tiny()}), tmp_path, progress=progress)

    modules = len(loaded.model.modules)
    assert progress[-1] == (2 * modules, 2 * modules)
    assert [done for done, total in progress] == sorted(done for done, total in progress)
    loaded.unload()


def test_the_chunk_sets_the_input_length_and_the_attention_size(tmp_path: Path) -> None:
    loaded = load(table(chunk_tokens=256), tmp_path)

    assert (loaded.config.max_input_len, loaded.config.max_attention_size) == (256, 256**2)
    assert loaded.new_generator().max_chunk_size == 256
    loaded.unload()


def test_a_chunk_larger_than_the_context_is_cut_to_it(tmp_path: Path) -> None:
    # exllamav2 cuts it to the longest sequence, here 516 tokens: no multiple of a page, which a generator refuses.
    loaded = load(table(chunk_tokens=2048, context_tokens=512, draft={"path": checkpoints.tiny()}), tmp_path)

    assert loaded.new_generator().max_chunk_size == 512
    loaded.unload()


def test_the_cache_is_shared_by_all_slots_in_whole_pages(tmp_path: Path) -> None:
    loaded = load(table(slots=4, context_tokens=512, cache_tokens=768), tmp_path)
    generator = loaded.new_generator()

    assert loaded.cache.max_seq_len == 768
    assert (generator.max_pages, generator.page_size, generator.max_batch_size) == (3, 256, 4)
    assert generator.max_seq_len == 512
    loaded.unload()


def test_the_batch_is_as_large_as_the_slots_and_no_larger(tmp_path: Path) -> None:
    loaded = load(table(slots=3), tmp_path)
    logits = loaded.new_generator().logits_pinned

    assert logits.shape[:2] == (3, 1)
    loaded.unload()


def test_more_slots_than_tokens_in_a_chunk_are_served(tmp_path: Path) -> None:
    # Without a larger max_batch_size the generator refuses them.
    loaded = load(table(slots=300, context_tokens=256, cache_tokens=512), tmp_path)

    assert loaded.config.max_batch_size == 2
    assert loaded.new_generator().max_batch_size == 300
    loaded.unload()


def test_every_argument_of_a_generator_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import exllamav2.generator as package

    parameters = inspect.signature(package.ExLlamaV2DynamicGenerator).parameters
    named = {name for name, each in parameters.items() if each.kind is not each.VAR_KEYWORD}
    loaded = load(table(), tmp_path)
    given: dict[str, Any] = {}
    monkeypatch.setattr(package, "ExLlamaV2DynamicGenerator", lambda **arguments: given.update(arguments))
    loaded.new_generator()
    loaded.unload()

    assert given.keys() == named


def test_a_tensor_parallel_load_calls_what_exllamav2_has() -> None:
    # Nothing of it runs without a GPU: this much can be told from here.
    from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Cache_TP

    loading = inspect.signature(ExLlamaV2.load_tp)
    loading.bind(None, [1.0], callback=None, expect_cache_tokens=256, expect_cache_base=ExLlamaV2Cache)
    bound = inspect.signature(ExLlamaV2Cache_TP.__init__).bind(None, None, base=ExLlamaV2Cache, max_seq_len=256)

    assert bound.arguments["base"] is ExLlamaV2Cache


def test_rope_settings_replace_those_of_the_checkpoint_only_where_given(tmp_path: Path) -> None:
    linear = copy_of(
        checkpoints.tiny(),
        tmp_path / "linear",
        rope_scaling={"type": "linear", "factor": 4.0},
        max_position_embeddings=8192,
    )
    own = load(table(linear), tmp_path)
    assert (own.config.scale_pos_emb, own.config.scale_alpha_value) == (4.0, 1.0)
    own.unload()

    given = load(table(linear, rope_scale=2.0, rope_alpha=1.5), tmp_path)
    assert (given.config.scale_pos_emb, given.config.scale_alpha_value) == (2.0, 1.5)
    given.unload()


def test_the_rotary_base_of_transformers_5_is_read(tmp_path: Path) -> None:
    folder = copy_of(
        checkpoints.tiny(),
        tmp_path / "newer",
        without=["rope_theta"],
        rope_parameters={"rope_theta": 500000.0, "rope_type": "default"},
    )
    loaded = load(table(folder), tmp_path)

    assert loaded.config.rotary_embedding_base == 500000.0
    loaded.unload()


def test_scaled_positions_of_transformers_5_are_refused(tmp_path: Path) -> None:
    folder = copy_of(
        checkpoints.tiny(),
        tmp_path / "newer",
        without=["rope_theta"],
        rope_parameters={"rope_theta": 500000.0, "rope_type": "yarn", "factor": 4.0},
    )
    with pytest.raises(EngineUnavailable, match="rope_parameters of the type 'yarn'"):
        load(table(folder), tmp_path)


def test_the_overrides_of_an_architecture_are_applied_and_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    # Gemma 2's soft cap is not in every flash-attn; exllamav2 only looks when it is asked to.
    from exllamav2.architecture import ExLlamaV2ArchParams

    folder = copy_of(checkpoints.tiny(), tmp_path / "eager")
    plain = ExLlamaV2ArchParams.__init__

    def eager(self: Any, *arguments: Any) -> None:
        plain(self, *arguments)
        self.lm.eager_attn_only = True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExLlamaV2ArchParams, "__init__", eager)
        with pytest.raises(EngineUnavailable, match="cannot run with the installed flash-attn"):
            load(table(folder), tmp_path)
        with caplog.at_level("INFO"):
            loaded = load(table(folder, paged=False, slots=1), tmp_path)
    loaded.unload()

    assert (loaded.config.no_flash_attn, loaded.config.no_sdpa) == (True, True)
    assert "supports only eager attention" in caplog.text
    assert capsys.readouterr().out == ""


# Devices


def test_layers_go_to_the_devices_of_the_split(tmp_path: Path, stand_in: harness.Harness) -> None:
    with stand_in.resized(devices=2):
        loaded = load(table(gpu_split=(0.0019, 1.0)), tmp_path)

    assert {module.device_idx for module in loaded.model.modules} == {-1, 0, 1}
    assert greedy_ids(loaded.new_generator(), token_ids(loaded), 4)
    loaded.unload()


def test_the_next_device_is_filled_when_one_is_full(tmp_path: Path, stand_in: harness.Harness) -> None:
    stand_in.fail("stloader_read", torch.OutOfMemoryError(OUT_OF_MEMORY), after=12)
    with stand_in.resized(devices=2):
        loaded = load(table(autosplit_reserve_mib=(64, 0)), tmp_path)

    assert {module.device_idx for module in loaded.model.modules} == {-1, 0, 1}
    assert greedy_ids(loaded.new_generator(), token_ids(loaded), 4)
    loaded.unload()


def test_the_reserve_is_kept_free_on_each_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty, sizes = torch.empty, []

    def recorded(*arguments: Any, **keywords: Any) -> Any:
        sizes.append(arguments[0])
        return empty(*arguments, **keywords)

    monkeypatch.setattr(torch, "empty", recorded)
    load(table(autosplit_reserve_mib=(48,)), tmp_path).unload()

    assert (48 << 20,) in sizes


@pytest.mark.parametrize(
    ("devices", "settings", "words"),
    [
        (1, {"gpu_split": (1.0, 1.0)}, "gpu_split has 2 entries, and the model has 1 device"),
        (2, {"gpu_split": (1.0,), "devices": (0, 1)}, "gpu_split has 1 entries, and the model has 2 device"),
        (2, {"autosplit_reserve_mib": (64,)}, "autosplit_reserve_mib has 1 entries, and the model has 2 device"),
    ],
)
def test_a_split_for_other_devices_is_refused(
    devices: int,
    settings: dict[str, Any],
    words: str,
    tmp_path: Path,
    stand_in: harness.Harness,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with stand_in.resized(devices=devices), pytest.raises(EngineUnavailable, match=words):
        load(table(**settings), tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_split_that_is_too_small_says_what_the_weights_need(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"gpu_split = \[0.0015\] is too small. The weights need 0.6 MiB"):
        load(table(gpu_split=(0.0015,)), tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({}, "EXL2-quantised weights only"), ({"paged": False, "slots": 1}, "EXL2-quantised weights only")],
)
def test_tensor_parallel_of_plain_weights_is_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match=words):
        load(table(tensor_parallel=True, **settings), tmp_path)


# What is refused


def test_a_context_longer_than_the_checkpoint_is_refused_unless_it_is_stretched(tmp_path: Path) -> None:
    trained = json.loads((checkpoints.tiny() / "config.json").read_text())["max_position_embeddings"]
    longer = trained + 256
    with pytest.raises(EngineUnavailable, match=f"context_tokens = {longer}, and the checkpoint .* for {trained}"):
        load(table(context_tokens=longer), tmp_path)

    loaded = load(table(context_tokens=longer, slots=1, rope_alpha=2.5), tmp_path)
    assert loaded.config.max_seq_len == longer
    loaded.unload()


def test_a_quantised_cache_of_odd_heads_is_refused(tmp_path: Path) -> None:
    # exllamav2 would allocate room for too few scales, and write behind it.
    narrow = copy_of(checkpoints.tiny(), tmp_path / "narrow", num_attention_heads=8, num_key_value_heads=4, head_dim=16)
    with pytest.raises(EngineUnavailable, match=r'cache = "Q4" needs heads of a multiple of 32 .* have 16'):
        load(table(narrow, cache="Q4"), tmp_path)
    load(table(narrow), tmp_path).unload()


def test_a_checkpoint_without_a_layer_is_refused_with_its_name(tmp_path: Path) -> None:
    folder = copy_of(checkpoints.tiny(), tmp_path / "short", num_hidden_layers=3)
    with pytest.raises(EngineUnavailable, match=r"short: ValueError: .*model.layers.2.* Fetch it again"):
        load(table(folder), tmp_path)


def test_an_unknown_architecture_is_refused_with_its_name(tmp_path: Path) -> None:
    folder = copy_of(checkpoints.tiny(), tmp_path / "other", architectures=[])
    with pytest.raises(EngineUnavailable, match=r"other: AssertionError: .*architecture"):
        load(table(folder), tmp_path)


def test_a_folder_that_went_away_is_refused(tmp_path: Path) -> None:
    gone = CheckpointFolder(path=tmp_path / "gone", weight_files=(), weight_bytes=0, digest="")
    with pytest.raises(EngineUnavailable, match="gone: AssertionError: Can't find"):
        load_model(table(tmp_path / "gone"), gone, {}, on_layer=lambda done, total: None)


# What is left after a failure


@pytest.mark.parametrize("after", [2, 16])
@pytest.mark.parametrize("settings", [{}, {"gpu_split": (24.0,)}, {"draft": True}], ids=["auto", "split", "draft"])
def test_a_full_device_leaves_nothing_behind_and_says_what_would_fit(
    after: int, settings: dict[str, Any], tmp_path: Path, stand_in: harness.Harness
) -> None:
    if settings.get("draft"):
        settings = {"draft": {"path": checkpoints.tiny()}}
        after += 19  # in the second model
    load(table(**settings), tmp_path).unload()
    before = live_tensor_bytes()
    with stand_in.resized(vram_bytes=1 << 20):
        stand_in.fail("stloader_read", torch.OutOfMemoryError(OUT_OF_MEMORY), after=after)
        with pytest.raises(EngineUnavailable, match=r"The weights need .* MiB, the cache of 1024 tokens") as raised:
            load(table(**settings), tmp_path)

    # The error, which is still held here, holds none of what had been loaded.
    assert raised.value.__cause__ is not None
    assert live_tensor_bytes() <= before
    loaded = load(table(**settings), tmp_path)
    assert greedy_ids(loaded.new_generator(), token_ids(loaded), 4)
    loaded.unload()


def test_a_cache_that_finds_no_memory_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(table(), tmp_path).unload()
    before = live_tensor_bytes()
    zeros = torch.zeros
    allocated: list[int] = []

    def full(*arguments: Any, **keywords: Any) -> Any:
        if keywords.get("dtype") is torch.half and len(arguments[0]) == 4:
            allocated.append(1)
            if len(allocated) == 4:
                raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return zeros(*arguments, **keywords)

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(EngineUnavailable, match="By this count it fits"):
        load(table(gpu_split=(24.0,)), tmp_path)

    assert len(allocated) == 4
    assert live_tensor_bytes() <= before


# Without flash-attn

_UNPAGED = """
import sys
from pathlib import Path
from exllamav2_cpu import checkpoints, harness
harness.install(flash_attn=False)
import torch
from test_exllamav2_loading import greedy_ids, load, table, token_ids
loaded = load(table(paged=False, slots=1), Path(sys.argv[1]))
from exllamav2 import ExLlamaV2Cache
def logits(ids):
    return loaded.model.forward(ids, cache=ExLlamaV2Cache(loaded.model, max_seq_len=256))
ids = token_ids(loaded)
other = ids.clone()
other[0, -1] = 5
print((logits(ids) - logits(other))[:, :-1].abs().max().item())
print(greedy_ids(loaded.new_generator(), ids, 24))
"""


@pytest.mark.slow
def test_prefill_without_flash_attn_is_causal(tmp_path: Path) -> None:
    difference, unpaged = run_python(["-c", _UNPAGED, str(tmp_path)]).split("\n")[:2]
    loaded = load(table(), tmp_path)
    paged = greedy_ids(loaded.new_generator(), token_ids(loaded), 24)
    loaded.unload()

    assert float(difference) == 0.0
    assert json.loads(unpaged) == paged


# Draft model


def test_a_draft_model_leaves_the_whole_context_to_a_sequence(tmp_path: Path) -> None:
    bare = load(table(slots=1), tmp_path)
    ids = token_ids(bare, PROMPT * 80)[:, :490]
    tokens = 512 - ids.shape[1]
    expected = greedy_ids(bare.new_generator(), ids, tokens)
    bare.unload()

    drafted = load(table(slots=1, draft={"path": checkpoints.tiny(), "tokens": 8}), tmp_path)
    made = greedy_ids(drafted.new_generator(), ids, tokens)
    drafted.unload()

    assert len(expected) == tokens
    assert made[:tokens] == expected
    assert drafted.cache.max_seq_len == 768
    assert drafted.draft_cache is not None
    assert drafted.draft_cache.max_seq_len == 768


def test_a_draft_model_works_unpaged(tmp_path: Path) -> None:
    bare = load(table(), tmp_path)
    expected = greedy_ids(bare.new_generator(), token_ids(bare), 24)
    bare.unload()
    drafted = load(table(paged=False, slots=1, draft={"path": checkpoints.tiny()}), tmp_path)
    made = greedy_ids(drafted.new_generator(), token_ids(drafted), 24)
    drafted.unload()

    assert made[:24] == expected


@pytest.mark.parametrize("cache", ["FP16", "Q8"])
def test_room_for_guesses_does_not_switch_long_positions_on(cache: str, tmp_path: Path) -> None:
    scaling = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 16,
        "long_factor": [8.0] * 16,
    }
    folder = copy_of(checkpoints.tiny(), tmp_path / "long", rope_scaling=scaling, original_max_position_embeddings=512)
    bare = load(table(folder, cache=cache), tmp_path)
    drafted = load(table(folder, cache=cache, draft={"path": folder}), tmp_path)
    plain, with_room = (each.model.device_context[0].sin[0][0, 0, :512] for each in (bare, drafted))

    assert torch.equal(plain, with_room)
    for each in (bare, drafted):
        each.unload()


def test_a_draft_model_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = copy_of(checkpoints.tiny(), tmp_path / "draft")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

    with pytest.raises(EngineUnavailable, match="another vocabulary"):
        load(table(draft={"path": folder}), tmp_path)


def test_a_draft_model_of_a_shorter_context_is_refused(tmp_path: Path) -> None:
    folder = copy_of(checkpoints.tiny(), tmp_path / "draft", max_position_embeddings=256)

    with pytest.raises(EngineUnavailable, match=r"the draft model .* was made for 256"):
        load(table(draft={"path": folder}), tmp_path)


# Adapters


def with_adapter(path: Path, **changes: Any) -> ExLlamaV2Model:
    return table(adapters={"poet": {"path": path, **changes}})


def test_an_adapter_acts_by_its_scaling(tmp_path: Path) -> None:
    adapter = checkpoints.tiny_adapter()
    settings = table(adapters={"full": {"path": adapter}, "none": {"path": adapter, "scaling": 0.0}})
    loaded = load(settings, tmp_path)
    generator = loaded.new_generator()
    made = {}
    for name in (None, "full", "none"):
        generator.current_loras = None if name is None else [loaded.adapters[name]]
        generator.reset_page_table()
        made[name] = greedy_ids(generator, token_ids(loaded), 16)
    loaded.unload()

    assert made["full"] != made[None]
    assert made["none"] == made[None]


def test_a_pickle_beside_an_adapter_is_not_opened(tmp_path: Path) -> None:
    # The folder is refused before; a file that came later must not be read either. exllamav2 would prefer it.
    folder = tmp_path / "adapter"
    shutil.copytree(checkpoints.tiny_adapter(), folder)
    checked = check_adapter(folder, digest_cache=tmp_path)
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'exit 3'\ntR.")
    settings = with_adapter(folder)
    base = check_checkpoint(settings.path, digest_cache=tmp_path)

    loaded = load_model(settings, base, {"poet": checked}, on_layer=lambda done, total: None)

    assert loaded.adapters["poet"].lora_path.endswith("adapter_model.safetensors")
    loaded.unload()


def rewrite_adapter(folder: Path, change: Any) -> Path:
    shutil.copytree(checkpoints.tiny_adapter(), folder)
    weights = load_file(folder / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def _other_width(weights: dict[str, Any]) -> None:
    name = next(name for name in weights if name.endswith("lora_A.weight"))
    weights[name] = torch.zeros(8, 64)


def _other_layers(weights: dict[str, Any]) -> None:
    name = next(iter(weights))
    weights[name.replace("layers.0", "layers.7").replace("layers.1", "layers.7")] = weights.pop(name)


def _half_missing(weights: dict[str, Any]) -> None:
    del weights[next(name for name in weights if name.endswith("lora_B.weight"))]


def _other_rank(weights: dict[str, Any]) -> None:
    name = next(name for name in weights if name.endswith("lora_B.weight"))
    weights[name] = weights[name][:, :4].contiguous()


def _empty(weights: dict[str, Any]) -> None:
    weights.clear()
    weights["unrelated.original_module.weight"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_other_width, "ValueError: .*incompatible tensor shape"),
        (_other_layers, "KeyError: .*layers.7"),
        (_half_missing, "has lora_A without lora_B"),
        (_other_rank, "of different ranks"),
        (_empty, "it changes no layer"),
    ],
)
def test_an_adapter_of_another_base_is_refused_by_its_name(change: Any, words: str, tmp_path: Path) -> None:
    settings = with_adapter(rewrite_adapter(tmp_path / "adapter", change))
    load(table(), tmp_path).unload()
    before = live_tensor_bytes()

    with pytest.raises(EngineUnavailable, match=rf"The adapter 'poet' .* does not go with this model: .*{words}"):
        load(settings, tmp_path)
    assert live_tensor_bytes() <= before


def test_an_adapter_that_replaces_the_output_layer_is_refused(tmp_path: Path) -> None:
    def add_head(weights: dict[str, Any]) -> None:
        weights["base_model.model.lm_head.weight"] = torch.zeros(512, 128)

    with pytest.raises(EngineUnavailable, match="replaces the embedding or the output layer"):
        load(with_adapter(rewrite_adapter(tmp_path / "adapter", add_head)), tmp_path)


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_an_adapter_with_what_exllamav2_ignores_is_refused(key: str, tmp_path: Path) -> None:
    folder = copy_of(
        checkpoints.tiny_adapter(), tmp_path / "adapter", name="adapter_config.json", **{key: {"q_proj": 4}}
    )
    with pytest.raises(EngineUnavailable, match=f"'poet' .* uses {key}, which exllamav2 ignores"):
        load(with_adapter(folder), tmp_path)


def test_a_full_device_while_an_adapter_loads_says_what_would_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import exllamav2.lora

    def full(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    monkeypatch.setattr(exllamav2.lora, "safe_move_tensor", full)
    with pytest.raises(EngineUnavailable, match=r"CUDA out of memory.* The weights need"):
        load(with_adapter(checkpoints.tiny_adapter()), tmp_path)
