"""The CPU harness: what it refuses, and that the real exllamav2 on it computes what transformers and llama.cpp do."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conftest import eventually
from exllamav2_cpu.availability import require_exllamav2

require_exllamav2()

import torch  # noqa: E402 - not where exllamav2 was declined

from exllamav2_cpu import checkpoints, harness, reference, tiny_corpus  # noqa: E402
from exllamav2_cpu.processes import environment, run_python  # noqa: E402
from exllamav2_cpu.sampling import sample_basic  # noqa: E402

STAND_IN = harness.install()

from exllamav2_cpu import bare  # noqa: E402 - it imports exllamav2
from exllamav2_cpu.bare import greedy, hot, job, run  # noqa: E402

PROMPTS = ["The quick brown", "A worker binds", "One two three", tiny_corpus.rendered(tiny_corpus.RUNS_ON)]
LONG = tiny_corpus.STORY * 5
NEW_TOKENS = 40
TINY_LOGIT_BOUND = 0.05
"""Of the absolute difference from float32, where logits reach about 15: fp16 weights and activations."""
SMOLLM2_LOGIT_BOUND = 0.5
SMOLLM2_QUESTIONS = ["What is the capital of France?", "Write one sentence about the sea."]
TEXTS = [
    "plain words, and  two spaces   three",
    "it's we'll 12345 3.14 1,000,000 \u0663\u0664 \u00bd x2y",
    "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3002\u6f22\u5b57\u3068\u304b\u306a2024\u5e74",
    "\U0001f389\U0001f9d1\u200d\U0001f680\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1ef\U0001f1f5",
    "e\u0301 a\u0308\u0323 \u0930\u094d\u0930\u093f",
    "\t tab\r\nline\n\n  indented\u00a0\u3000wide ",
    " leading and trailing ",
    "def f(x):\n    return x  # <tag>&amp;",
]

INSTALL = "from exllamav2_cpu import harness; harness.install()\n"
GENERATE = (
    INSTALL
    + "from exllamav2_cpu import bare, checkpoints\n"
    + "loaded = bare.load(checkpoints.tiny())\n"
    + "[o] = bare.run(loaded.generator(), bare.job(loaded.encode('The quick brown'), 8))\n"
    + "print(loaded.decode(o.ids))\n"
)

SAMPLED: list[tuple[dict[str, Any], list[tuple[int, float]]]] = [
    ({}, [(8, 0.05802), (33, 0.05475), (57, 0.01369)]),
    ({"temperature": 0.3}, [(11, 0.13595), (30, 0.13413), (61, 0.10117)]),
    ({"temperature": 0.0}, [(11, 1.0), (11, 1.0), (11, 1.0)]),
    ({"top_k": 5}, [(11, 0.20638), (36, 0.20381), (61, 0.18888)]),
    ({"top_p": 0.7}, [(11, 0.11394), (61, 0.10427), (21, 0.08429)]),
    ({"min_p": 0.2}, [(1, 0.04625), (36, 0.0857), (23, 0.06763)]),
    ({"top_a": 0.4}, [(1, 0.04293), (14, 0.06355), (23, 0.06278)]),
    ({"tfs": 0.7}, [(30, 0.09241), (45, 0.08285), (1, 0.04945)]),
    ({"typical": 0.6}, [(1, 0.07155), (14, 0.10592), (43, 0.1271)]),
    ({"post_temperature": 0.5}, [(11, 0.10904), (30, 0.10817), (56, 0.00603)]),
    (
        {"min_temp": 0.3, "max_temp": 2.0, "temp_exponent": 0.7},
        [(8, 0.04999), (33, 0.04828), (57, 0.02096)],
    ),
    ({"smoothing_factor": 0.3}, [(8, 0.05804), (36, 0.05979), (57, 0.02363)]),
    ({"skew": 0.5}, [(43, 0.07527), (8, 0.05802), (57, 0.01369)]),
    (
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "post_temperature": 1.3},
        [(30, 0.0919), (45, 0.08273), (1, 0.05037)],
    ),
    ({"mirostat": True}, [(11, 1.0), (11, 1.0), (11, 1.0)]),
]
"""Settings -> token and its probability for the random numbers 0.1, 0.5, 0.9: said by exllamav2's sampling.cpp."""


@pytest.fixture
def stand_in() -> Iterator[harness.Harness]:
    """With nothing counted or planned, before and after."""
    STAND_IN.reset()
    yield STAND_IN
    STAND_IN.reset()


@pytest.fixture(scope="module")
def tiny() -> bare.Loaded:
    return bare.load(checkpoints.tiny())


@pytest.fixture(scope="module")
def tiny_reference(tiny: bare.Loaded) -> reference.Reference:
    prompts = [tiny.encode(prompt)[0].tolist() for prompt in [*PROMPTS, LONG]]
    return reference.reference(checkpoints.tiny(), prompts, new_tokens=NEW_TOKENS)


def logits_of(loaded: bare.Loaded, ids: torch.Tensor) -> torch.Tensor:
    """(n, vocabulary) in float32, in chunks as a prompt is read."""
    logits: torch.Tensor = loaded.model.forward(ids, cache=loaded.cache())[0].float()
    return logits[:, : loaded.model.config.vocab_size]


def sample(
    logits: torch.Tensor,
    point: float,
    *,
    allowed: torch.Tensor | None = None,
    top: tuple[torch.Tensor, torch.Tensor] | None = None,
    **settings: Any,
) -> tuple[int, float]:
    """One row of logits through sample_basic, with all that is not given switched off."""
    absent = torch.empty((1, 1), device="meta")
    token, probability = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1)
    top_tokens, top_probabilities = top or (absent, absent)
    mirostat = settings.pop("mirostat", False)
    off = {"temperature": 1.0, "top_k": 0, "top_p": 0.0, "top_a": 0.0, "min_p": 0.0, "tfs": 0.0, "typical": 0.0}
    sample_basic(
        logits,
        random=point,
        output_tokens=token,
        output_probs=probability,
        output_ktokens=top_tokens,
        output_kprobs=top_probabilities,
        logit_filter=absent if allowed is None else allowed,
        mirostat=mirostat,
        mirostat_mu=[0.0] if mirostat else [],
        mirostat_tau=1.5,
        mirostat_eta=0.1,
        xtc_mask=absent,
        **{"post_temperature": 1.0, **off, **settings},
    )
    return int(token), float(probability)


def iterate_to_the_end(generator: Any) -> None:
    while generator.num_remaining_jobs():
        generator.iterate()


# What it refuses


@pytest.mark.slow
def test_a_machine_with_a_cuda_device_is_left_alone() -> None:
    said = run_python(
        [
            "-c",
            "import sys, torch\ntorch.cuda.is_available = lambda: True\ncount = torch.cuda.device_count\n"
            "from exllamav2_cpu import harness\n"
            "try: harness.install()\n"
            "except RuntimeError as error: print(error)\n"
            "print(torch.cuda.device_count is count, 'exllamav2_ext' in sys.modules, harness.installed())",
        ]
    )
    assert "A CUDA device is there" in said
    assert said.splitlines()[-1] == "True False None"


@pytest.mark.slow
def test_it_comes_too_late_once_exllamav2_is_imported() -> None:
    said = run_python(
        [
            "-c",
            "import sys, types\nsys.modules['exllamav2'] = types.ModuleType('exllamav2')\n"
            "from exllamav2_cpu import harness\n"
            "try: harness.install()\n"
            "except RuntimeError as error: print(error)",
        ]
    )
    assert "exllamav2 is imported already" in said


def test_installing_it_again_gives_the_same_or_says_what_differs() -> None:
    assert harness.install() is STAND_IN is harness.installed()
    with pytest.raises(RuntimeError, match="is installed with"):
        harness.install(flash_attn=False)


def test_an_entry_without_a_stand_in_is_named(stand_in: harness.Harness) -> None:
    from exllamav2.ext import exllamav2_ext

    with pytest.raises(NotImplementedError, match=r"exllamav2_ext\.gemm_half_q_half has no CPU stand-in"):
        exllamav2_ext.gemm_half_q_half(1, 2)
    with pytest.raises(ValueError, match="no stand-in named 'gemm_half_q_half'"):
        stand_in.fail("gemm_half_q_half", RuntimeError())


# What it makes of torch


@pytest.mark.slow
def test_a_cuda_build_of_torch_without_a_gpu_works_too() -> None:
    as_built_for_cuda = "import torch\ntorch.version.cuda = '12.8'\ntorch.backends.cuda.is_built = lambda: True\n"
    said = run_python(["-c", as_built_for_cuda + GENERATE + "print(torch.version.cuda)"])
    text, version = said.splitlines()[-2:]
    assert (text, version) == (" fox jumps over the", "12.8")


def test_torch_tells_of_the_stand_in_devices_and_touches_no_real_one(stand_in: harness.Harness) -> None:
    assert torch.cuda.is_available()
    assert isinstance(torch.version.cuda, str)
    assert torch.cuda.mem_get_info(0) == (24 << 30, 24 << 30)
    assert torch.cuda.get_device_properties(0).major >= 8
    assert torch.cuda.memory_allocated(0) == 0
    assert isinstance(torch.cuda.Stream, type)
    assert issubclass(torch.OutOfMemoryError, RuntimeError)
    torch.manual_seed(1)
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    assert not torch.cuda.is_initialized()


def test_devices_are_hidden_as_cuda_hides_them(stand_in: harness.Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in.resized(devices=3, vram_bytes=1 << 30):
        for visible, count in ((None, 3), ("1", 1), ("2,0", 2), ("0,7,1", 1), ("", 0)):
            if visible is None:
                monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
            else:
                monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
            assert torch.cuda.device_count() == count
            assert torch.cuda.is_available() == (count > 0)
        assert torch.cuda.mem_get_info(2) == (1 << 30, 1 << 30)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert torch.cuda.device_count() == 1


# What enters the stand-ins


def test_entries_are_counted(tiny: bare.Loaded, stand_in: harness.Harness) -> None:
    run(tiny.generator(), job(tiny.encode("One two three"), 5))
    layers = tiny.model.config.num_hidden_layers
    # One pass reads the prompt without its last token, up to the last layer's keys and values; five decode.
    assert stand_in.calls["flash_attn_with_kvcache"] == 6 * layers
    assert stand_in.calls["rms_norm"] == 5 * (2 * layers + 1) + 2 * layers - 1
    assert stand_in.calls["sample_basic"] == 5
    assert stand_in.entries.missing(["rope_", "layer_norm"]) == ["layer_norm"]


def test_a_planned_failure_comes_at_its_entry_and_once(tiny: bare.Loaded, stand_in: harness.Harness) -> None:
    generator = tiny.generator()
    stand_in.fail("sample_basic", torch.OutOfMemoryError("CUDA out of memory."), after=3)
    generator.enqueue(job(tiny.encode("One two three"), 9))
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        iterate_to_the_end(generator)
    assert stand_in.calls["sample_basic"] == 3
    generator.clear_queue()
    assert len(run(tiny.generator(), job(tiny.encode("One two three"), 9))[0].ids) == 9


def test_a_slow_stand_in_takes_its_time(tiny: bare.Loaded, stand_in: harness.Harness) -> None:
    generator = tiny.generator()
    stand_in.slow(0.05)
    began = time.monotonic()
    run(generator, job(tiny.encode("One"), 1))
    assert time.monotonic() - began >= 0.05 * stand_in.calls["rms_norm"] > 0
    stand_in.slow(0)


def test_a_counted_entry_keeps_the_signature_that_exllamav2_looks_at() -> None:
    from exllamav2 import attn

    assert {"window_size", "softcap"} <= set(inspect.signature(attn.flash_attn_func).parameters)
    assert attn.has_flash_attn_with_paged


# Beside transformers and llama.cpp


@pytest.mark.slow
def test_tiny_logits_are_those_of_transformers(tiny: bare.Loaded, tiny_reference: reference.Reference) -> None:
    for prompt, expected in zip([*PROMPTS, LONG], tiny_reference.logits, strict=True):
        found = logits_of(tiny, tiny.encode(prompt))
        assert (found - expected).abs().max() < TINY_LOGIT_BOUND


@pytest.mark.slow
@pytest.mark.parametrize("paged", [True, False])
def test_tiny_decodes_as_transformers_does(
    tiny: bare.Loaded, tiny_reference: reference.Reference, stand_in: harness.Harness, paged: bool
) -> None:
    generator = tiny.generator(paged=paged)
    jobs = [job(tiny.encode(prompt), NEW_TOKENS) for prompt in [*PROMPTS, LONG]]
    groups = [jobs] if paged else [[each] for each in jobs]
    outcomes = [outcome for group in groups for outcome in run(generator, *group)]
    assert [outcome.ids for outcome in outcomes] == list(tiny_reference.greedy)
    assert stand_in.calls["flash_attn_with_kvcache" if paged else "flash_attn_func"]


@pytest.mark.parametrize("question", tiny_corpus.ANSWERS)
def test_tiny_answers_by_heart_and_ends(tiny: bare.Loaded, question: str) -> None:
    asked = job(tiny.encode(tiny_corpus.rendered(question)), 100, stop_conditions=[tiny.tokenizer.eos_token_id])
    [outcome] = run(tiny.generator(), asked)
    assert tiny.decode(outcome.ids) == tiny_corpus.ANSWERS[question]
    assert outcome.last["eos_reason"] == "stop_token"


def test_tiny_runs_on_where_it_was_taught_to(tiny: bare.Loaded) -> None:
    asked = job(tiny.encode(PROMPTS[-1]), 300, stop_conditions=[tiny.tokenizer.eos_token_id])
    [outcome] = run(tiny.generator(), asked)
    assert outcome.last["eos_reason"] == "max_new_tokens"
    assert (tiny_corpus.STORY * 9).startswith(tiny.decode(outcome.ids[:150]))


@pytest.mark.slow
def test_an_adapter_decodes_as_its_merged_weights_do(tiny: bare.Loaded) -> None:
    from exllamav2 import ExLlamaV2Lora

    adapter = checkpoints.tiny_adapter(seed=1)
    ids = tiny.encode("The quick brown")
    plain = run(tiny.generator(), job(ids, 12))[0].ids
    lora = ExLlamaV2Lora.from_directory(tiny.model, str(adapter))
    generator = tiny.generator()
    generator.set_loras([lora])
    try:
        adapted = run(generator, job(ids, 12))[0].ids
    finally:
        lora.unload()
    prompt = ids.tolist()[0]
    answers = [[*prompt, *made] for made in (adapted, plain)]
    merged = reference.reference(checkpoints.tiny(), answers, new_tokens=0, adapter=adapter)
    behind = [behind_the_likeliest(*each, known=len(prompt)) for each in zip(merged.logits, answers, strict=True)]
    # The likeliest of the merged weights, but for rounding: processors do that differently, and two may be as likely.
    assert behind[0].max() < TINY_LOGIT_BOUND
    assert behind[1].max() > 1.0


def behind_the_likeliest(logits: torch.Tensor, ids: list[int], *, known: int) -> torch.Tensor:
    """How much smaller the logit of each id after the first `known` ones is than the largest; shape (n - known,)."""
    before = logits[known - 1 : -1]
    return before.max(-1).values - before.gather(1, torch.tensor(ids[known:])[:, None])[:, 0]


@pytest.mark.slow
def test_smollm2_computes_what_transformers_does(stand_in: harness.Harness) -> None:
    loaded = bare.load(checkpoints.smollm2())
    rendered = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in SMOLLM2_QUESTIONS]
    prompts = [loaded.encode(text) for text in rendered]
    expected = reference.reference(checkpoints.smollm2(), [ids[0].tolist() for ids in prompts], new_tokens=20)
    for ids, logits in zip(prompts, expected.logits, strict=True):
        assert (logits_of(loaded, ids) - logits).abs().max() < SMOLLM2_LOGIT_BOUND
    outcomes = run(loaded.generator(), *(job(ids, 20) for ids in prompts))
    assert [outcome.ids for outcome in outcomes] == list(expected.greedy)
    loaded.model.unload()


@pytest.mark.slow
def test_smollm2_splits_text_as_llama_cpp_does() -> None:
    from tokenizers import Tokenizer

    from headpond.tables import LlamaCppModel
    from headpond_workers.engines.llamacpp.engine import LlamaCppEngine
    from headpond_workers.models.prepare import prepare

    tokenizer = Tokenizer.from_file(str(checkpoints.smollm2() / "tokenizer.json"))
    source = checkpoints.SMOLLM2_SOURCE
    settings = LlamaCppModel(engine="llamacpp", source=source, slots=1, context_tokens=256, threads=1)
    engine = LlamaCppEngine(settings, prepare(source, progress=lambda stage, done, total: None))
    try:
        for text in TEXTS:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            assert ids == engine.encode(text)
            assert tokenizer.decode(ids, skip_special_tokens=False) == text
    finally:
        engine.close()


# The sampler


@pytest.mark.parametrize(("settings", "chosen"), SAMPLED, ids=["-".join(each) or "plain" for each, _ in SAMPLED])
def test_the_sampler_chooses_what_exllamav2s_own_does(
    settings: dict[str, Any], chosen: list[tuple[int, float]]
) -> None:
    logits = torch.tensor([[[4 * math.sin(i * i) for i in range(64)]]])
    for point, (token, probability) in zip((0.1, 0.5, 0.9), chosen, strict=True):
        found, found_probability = sample(logits, point, **settings)
        assert found == token
        assert found_probability == pytest.approx(probability, abs=2e-5)


def test_the_sampler_keeps_to_the_filter_and_tells_the_likeliest() -> None:
    logits = torch.tensor([[[1.0, 5.0, 3.0, 4.0]]])
    top = torch.zeros(1, 1, 3, dtype=torch.long), torch.zeros(1, 1, 3)
    allowed = torch.tensor([[True, False, True, False]])
    assert sample(logits, 0.5, allowed=allowed, top=top)[0] == 2
    assert top[0].tolist() == [[[2, 0, 1]]]
    assert top[1][0, 0].tolist() == pytest.approx([0.8808, 0.1192, 0.0], abs=1e-4)


def test_the_sampler_says_what_it_has_not() -> None:
    with pytest.raises(NotImplementedError, match="XTC"):
        sample(torch.zeros(1, 1, 8), 0.5, xtc_probability=0.5)


# The making of checkpoints


@pytest.mark.slow
def test_a_checkpoint_is_made_once_and_whole_after_a_kill_and_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (str(checkpoints.tiny()), "3")
    make = (
        "from exllamav2_cpu import checkpoints; from pathlib import Path\n"
        f"checkpoints.MODELS = Path({str(tmp_path)!r})\n"
        f"checkpoints.made('adapter', 'tiny_adapter', sources=(), arguments={arguments!r})"
    )
    killed = subprocess.Popen([sys.executable, "-c", make], env=environment())
    try:
        eventually(lambda: list(tmp_path.glob(".adapter.partial-*")), what="a maker at work")
    finally:
        killed.kill()
        killed.wait()
    monkeypatch.setattr(checkpoints, "MODELS", tmp_path)

    def made(_: int) -> Path:
        return checkpoints.made("adapter", "tiny_adapter", sources=(), arguments=arguments)

    with ThreadPoolExecutor(2) as pool:
        [folder, other] = pool.map(made, range(2))
    assert folder == other
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [folder.name]
    with pytest.raises(RuntimeError, match="left with 1"):
        checkpoints.made("broken", "tiny_adapter", sources=(), arguments=("nowhere", "3"))
    assert not list(tmp_path.glob("broken-*"))


# Caches and devices


@pytest.mark.parametrize("paged", [True, False])
@pytest.mark.parametrize("kind", ["Q8", "Q6", "Q4"])
def test_quantised_caches_run(tiny: bare.Loaded, stand_in: harness.Harness, kind: str, paged: bool) -> None:
    exact = run(tiny.generator(), job(tiny.encode(LONG), 20))[0].ids
    stand_in.reset()
    [outcome] = run(tiny.generator(kind, paged=paged), job(tiny.encode(LONG), 20))
    assert len(outcome.ids) == 20
    assert not stand_in.entries.missing(["fp16_to_q_kv", "q_to_fp16_kv"])
    if kind == "Q8":
        assert outcome.ids == exact


def test_a_model_split_over_two_devices_runs(tiny: bare.Loaded, stand_in: harness.Harness) -> None:
    from exllamav2 import ExLlamaV2

    with stand_in.resized(devices=2):
        [free] = ExLlamaV2(bare.configuration(checkpoints.tiny())).set_device_map([1.0])
        loaded = bare.load(checkpoints.tiny(), gpu_split=[(1.0 - free) * 0.9, 4.0])
        assert {module.device_idx for module in loaded.model.modules} == {-1, 0, 1}
        ids = loaded.encode("One two three")
        assert run(loaded.generator(), job(ids, 12))[0].ids == run(tiny.generator(), job(ids, 12))[0].ids


def test_an_automatic_split_goes_to_the_next_device_when_one_is_full(stand_in: harness.Harness) -> None:
    from exllamav2 import ExLlamaV2, ExLlamaV2Cache_Q6, ExLlamaV2Tokenizer

    with stand_in.resized(devices=2):
        config = bare.configuration(checkpoints.tiny())
        model = ExLlamaV2(config)
        cache = ExLlamaV2Cache_Q6(model, max_seq_len=1024, lazy=True)
        stand_in.fail("rms_norm", torch.OutOfMemoryError("CUDA out of memory."), after=3)
        steps: list[tuple[int, int]] = []
        model.load_autosplit(cache, last_id_only=True, callback=lambda done, total: steps.append((done, total)))
    assert steps[-1][0] == steps[-1][1] == len(model.modules)
    assert {module.device_idx for module in model.modules} == {-1, 0, 1}
    generator = bare.ExLlamaV2DynamicGenerator(model, cache, ExLlamaV2Tokenizer(config), max_batch_size=1)
    assert len(run(generator, job(torch.tensor([[5, 6, 7]]), 4, greedy()))[0].ids) == 4


# What an engine must know of exllamav2 itself


@pytest.mark.slow
@pytest.mark.parametrize("no_sdpa", [False, True])
def test_without_flash_attention_only_no_sdpa_is_causal(no_sdpa: bool) -> None:
    changed = run_python(
        [
            "-c",
            "from exllamav2_cpu import harness; harness.install(flash_attn=False)\n"
            "from exllamav2_cpu import bare, checkpoints, tiny_corpus\n"
            "loaded = bare.load(checkpoints.tiny())\n"
            f"loaded.model.config.no_sdpa = {no_sdpa}\n"
            "ids = loaded.encode(tiny_corpus.STORY)[:, :60]\n"
            "other = ids.clone(); other[0, -1] = 5\n"
            "a, b = (loaded.model.forward(x, cache=loaded.cache()).float()[:, :-1] for x in (ids, other))\n"
            "print((a - b).abs().max().item())",
        ]
    )
    earlier_logits_changed_by = float(changed)
    assert (earlier_logits_changed_by == 0.0) if no_sdpa else (earlier_logits_changed_by > 1.0)


def test_no_loras_is_none_and_not_an_empty_list(tiny: bare.Loaded) -> None:
    generator = tiny.generator()
    generator.set_loras(None)
    with pytest.raises(IndexError):
        run(generator, job(tiny.encode("One"), 2))
    generator.clear_queue()
    generator.current_loras = None
    assert len(run(generator, job(tiny.encode("One"), 2))[0].ids) == 2


def test_cached_pages_do_not_know_of_the_adapter(tiny: bare.Loaded) -> None:
    from exllamav2 import ExLlamaV2Lora

    generator = tiny.generator()
    run(generator, job(tiny.encode(LONG), 4))
    lora = ExLlamaV2Lora.from_directory(tiny.model, str(checkpoints.tiny_adapter(seed=1)))
    try:
        generator.set_loras([lora])
        assert run(generator, job(tiny.encode(LONG), 4))[0].last["cached_tokens"] > 0
        generator.reset_page_table()
        assert run(generator, job(tiny.encode(LONG), 4))[0].last["cached_tokens"] == 0
    finally:
        lora.unload()


def test_text_loses_characters_that_the_ids_hold(tiny: bare.Loaded) -> None:
    before, character, after = tiny_corpus.STORY.partition("\u65e5")
    [outcome] = run(tiny.generator(), job(tiny.encode(before), 30))
    assert (character + after).startswith(tiny.decode(outcome.ids[:-2]).strip())
    assert "\ufffd" in outcome.text


def test_tokens_held_at_a_stop_token_are_in_held_alone(tiny: bare.Loaded) -> None:
    eos = tiny.tokenizer.eos_token_id
    # "yes" could become "yes, sir" as long as the end token has not come.
    asked = job(tiny.encode(tiny_corpus.rendered("Say yes.")), 20, stop_conditions=[eos, "yes, sir"])
    [outcome] = run(tiny.generator(), asked)
    assert (outcome.ids, outcome.text) == ([], "")
    assert outcome.last["held"]["text"] == "yes"
    *held, last = outcome.last["held"]["token_ids"][0].tolist()
    assert (tiny.decode(held), last) == ("yes", eos)
    assert outcome.last["new_tokens"] == len(held) + 1


def test_an_error_in_one_job_does_not_say_whose_it_is(tiny: bare.Loaded) -> None:
    from exllamav2.generator.filters import ExLlamaV2SelectFilter

    class Broken(ExLlamaV2SelectFilter):
        def get_next(self, mask: bool = False) -> None:
            raise RuntimeError("broken filter")

    generator = tiny.generator()
    guilty = job(tiny.encode("One"), 5, filters=[Broken(tiny.model, tiny.tokenizer, ["a"])])
    innocent = job(tiny.encode("A worker"), 5)
    generator.enqueue([guilty, innocent])
    with pytest.raises(RuntimeError, match=r"^broken filter$"):
        iterate_to_the_end(generator)
    assert set(generator.active_jobs) == {guilty, innocent}
    generator.clear_queue()
    assert len(run(generator, job(tiny.encode("A worker"), 5))[0].ids) == 5


def test_the_context_limit_is_not_enforced(tiny: bare.Loaded) -> None:
    generator = tiny.generator()
    assert tiny.model.config.max_seq_len == 2048
    generator.enqueue(job(tiny.encode("One"), 3000))
    assert generator.num_remaining_jobs() == 1
    generator.clear_queue()


def test_drafting_ends_a_job_early(tiny: bare.Loaded) -> None:
    ids = tiny.encode(LONG)
    whole = run(tiny.generator(), job(ids, 20, hot(), seed=5))[0].ids
    drafted = run(tiny.generator(use_ngram_draft=True, num_draft_tokens=4), job(ids, 20, hot(), seed=5))[0].ids
    assert drafted == whole[: 20 - 4]


def test_settings_carry_what_a_job_left_in_them(tiny: bare.Loaded) -> None:
    settings = hot()
    settings.mirostat, settings.dry_multiplier = True, 0.8
    run(tiny.generator(), job(tiny.encode(LONG), 5, settings, seed=5))
    assert settings.mirostat_mu
    assert settings.clone().ngram_trie is settings.ngram_trie is not None


@pytest.mark.parametrize("k", [1, 7, 23])
def test_a_job_resumes_exactly_from_its_ids_and_its_draws(tiny: bare.Loaded, k: int) -> None:
    ids = tiny.encode(LONG)
    [whole] = run(tiny.generator(), job(ids, NEW_TOKENS, hot(), seed=5))
    resumed = job(torch.cat((ids, torch.tensor([whole.ids[:k]])), -1), NEW_TOKENS - k, hot(), seed=5)
    for _ in range(k):
        resumed.rng.random()
    [rest] = run(tiny.generator(), resumed)
    assert whole.ids[:k] + rest.ids == whole.ids


def test_sequences_together_give_what_each_gives_alone(tiny: bare.Loaded) -> None:
    def asked(number: int) -> object:
        return job(tiny.encode(PROMPTS[number]), 30, hot(), seed=number)

    alone = [run(tiny.generator(), asked(number))[0].ids for number in range(len(PROMPTS))]
    together = run(tiny.generator(), *(asked(number) for number in range(len(PROMPTS))))
    assert [outcome.ids for outcome in together] == alone


def test_whole_pages_of_a_prefix_are_used_again(tiny: bare.Loaded) -> None:
    generator, ids = tiny.generator(), tiny.encode(LONG)
    first, second = (run(generator, job(ids, 8))[0] for _ in range(2))
    assert first.last["cached_pages"] == 0
    assert second.last["cached_pages"] == (ids.shape[1] - 1) // 256 > 0
    assert first.ids == second.ids


def test_tensor_parallel_refuses_weights_that_are_not_quantised(stand_in: harness.Harness) -> None:
    from exllamav2 import ExLlamaV2

    with stand_in.resized(devices=2), pytest.raises(AssertionError, match="quantized"):
        ExLlamaV2(bare.configuration(checkpoints.tiny())).load_tp([1.0, 1.0])


def test_a_split_without_room_and_an_empty_folder_are_assertions(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="Insufficient space"):
        bare.load(checkpoints.tiny(), gpu_split=[0.0001])
    with pytest.raises(AssertionError, match="Can't find"):
        bare.configuration(tmp_path)
