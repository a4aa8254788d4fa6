"""Parameters of llama.cpp: each bad one is refused with its reason, before llama.cpp could abort over it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from conftest import Deployment
from headpond.errors import EngineUnavailable
from headpond_workers.engines.formats.gguf_header import read_header
from headpond_workers.engines.llamacpp.engine import LlamaCppEngine
from headpond_workers.engines.llamacpp.parameters import check_devices, check_parameters
from llama_engines import run, table
from tiny_gguf import write_tiny_model

ABORTING = [
    "n_batch=1",
    "n_batch=0",
    "n_ctx=1",
    "n_parallel=33",
    "embedding, p.pooling_type, p.n_parallel = True, xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN, 3",
    "cpuparams.n_threads=0",
    "cache_type_k=xllamacpp.ggml_type.GGML_TYPE_I8",
]
"""What ends a process in which llama.cpp is given it, with a signal or worse. None of it can be written in a table."""

BAD_TABLES: list[tuple[dict[str, Any], str]] = [
    ({"batch_tokens": 1}, "batch_tokens"),
    ({"batch_tokens": 0}, "batch_tokens"),
    ({"batch_tokens": -1}, "batch_tokens"),
    ({"batch_tokens": 1 << 20}, "batch_tokens"),
    ({"context_tokens": 0}, "context_tokens"),
    ({"context_tokens": 1}, "context_tokens"),
    ({"context_tokens": -5}, "context_tokens"),
    ({"context_tokens": 1 << 30}, "context_tokens"),
    ({"slots": 0}, "slots"),
    ({"slots": -2}, "slots"),
    ({"slots": 257}, "slots = 257"),
    ({"threads": 0}, "threads"),
    ({"threads": -1}, "threads"),
    ({"threads": 100_000}, "threads"),
    ({"cache_type_k": "i8"}, "cache_type_k"),
    ({"cache_type_k": "q2_k"}, "cache_type_k"),
    ({"cache_type_v": "q8_1"}, "cache_type_v"),
    ({"cache_type_v": "q4_0", "flash_attention": "off"}, "needs flash attention"),
    ({"flash_attention": "maybe"}, "flash_attention"),
    ({"rope_scaling": "longrope"}, "rope_scaling"),
    ({"rope_freq_base": -1.0}, "rope_freq_base"),
    ({"rope_freq_base": float("inf")}, "rope_freq_base"),
    ({"rope_freq_scale": 0.0}, "rope_freq_scale"),
    ({"rope_freq_scale": 1e-30}, "rope_freq_scale"),
    ({"rope_freq_scale": 0.5, "rope_scaling": "none"}, "rope_freq_scale goes with"),
    ({"context_tokens": 1024}, "trained for 512"),
    ({"context_tokens": 2048, "rope_freq_scale": 0.5}, "trained for 512"),
    ({"gpu_layers": -1}, "gpu_layers"),
    ({"gpu_layers": 99}, "finds no GPU"),
    ({"gpu_layers": 99, "exact": True}, "exact = true holds on CPUs only"),
    ({"main_gpu": 1}, "main_gpu goes with gpu_layers"),
    ({"main_gpu": -1}, "main_gpu"),
    ({"split_mode": "row"}, "split_mode goes with gpu_layers"),
    ({"split_mode": "tensor", "gpu_layers": 1}, "split_mode"),
    ({"tensor_split": [1.0]}, "tensor_split goes with gpu_layers"),
    ({"tensor_split": [], "gpu_layers": 1}, "tensor_split"),
    ({"tensor_split": [0.0, 0.0], "gpu_layers": 1}, "gives no GPU a share"),
    ({"tensor_split": [-1.0], "gpu_layers": 1}, "tensor_split"),
    ({"pooling": "mean"}, "pooling goes with"),
    ({"pooling": "rank", "task": "embed"}, "pooling"),
    ({"task": "rerank"}, "task"),
    ({"task": "embed", "exact": True}, "no use for exact"),
    ({"task": "embed", "batch_tokens": 64}, "no use for batch_tokens"),
    ({"exact": True, "batch_tokens": 64}, "remove batch_tokens"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.mark.parametrize(("keys", "reason"), BAD_TABLES, ids=lambda part: str(part))
def test_a_bad_parameter_is_refused_by_name_before_a_server_is_made(
    tiny: Path, keys: dict[str, Any], reason: str
) -> None:
    with pytest.raises((ValidationError, EngineUnavailable), match=reason):
        LlamaCppEngine(table(tiny, **keys), tiny)


@pytest.mark.slow
@pytest.mark.parametrize("parameter", ABORTING)
def test_llama_cpp_still_dies_of_what_is_kept_from_it(tiny: Path, parameter: str) -> None:
    # Should one of these end with an error one day, a check of ours could go.
    program = (
        "import os, sys, xllamacpp\n"
        "p = xllamacpp.CommonParams()\n"
        "p.model.path, p.n_ctx, p.n_batch, p.n_ubatch, p.verbosity = sys.argv[1], 128, 32, 32, -1\n"
        "p.fit_params = False\n"
        "p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1\n"
        f"p.{parameter}\n"
        "try:\n"
        "    server = xllamacpp.Server(p)\n"
        "except RuntimeError:\n"
        "    os._exit(3)\n"
        "server.handle_completions({'prompt': [104] * 50, 'max_tokens': 4})\n"
        "os._exit(0)\n"
    )
    # GDB, where there is one, would be called for a trace of the abort.
    environment = {"PATH": "/nowhere", "GGML_NO_BACKTRACE": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tiny)], capture_output=True, timeout=60, check=False, env=environment
    )
    assert ended.returncode < 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {"cache_type_k": "q8_0", "cache_type_v": "q8_0"},
        {"cache_type_k": "q4_0", "flash_attention": "off"},
        {"cache_type_k": "q5_1", "cache_type_v": "q4_1", "flash_attention": "on"},
        {"cache_type_k": "bf16", "cache_type_v": "bf16"},
        {"cache_type_k": "f32", "cache_type_v": "q5_0"},
        {"rope_scaling": "yarn", "rope_freq_scale": 0.25, "context_tokens": 1024, "slots": 1},
        {"rope_scaling": "linear", "rope_freq_base": 10_000.0},
        {"mmap": False},
        {"mlock": True},
        {"batch_tokens": 16},
        {"batch_tokens": 512},
        {"slots": 256, "context_tokens": 64},
        {"slots": 20, "context_tokens": 64, "exact": True},
    ],
    ids=lambda keys: " ".join(keys),
)
def test_a_parameter_within_its_bounds_runs_and_stands_in_the_fingerprint(tiny: Path, keys: dict[str, Any]) -> None:
    plain = LlamaCppEngine(table(tiny), tiny)
    engine = LlamaCppEngine(table(tiny, **keys), tiny)
    assert len(run(engine, [104] * 40, max_tokens=8)[0]) <= 8
    decides = any(key.startswith(("cache", "rope", "context", "exact")) for key in keys)
    assert (engine.info.fingerprint != plain.info.fingerprint) == decides
    engine.close()
    plain.close()


def test_values_that_do_not_fill_a_block_are_refused_a_quantised_cache(tiny: Path) -> None:
    header = read_header(tiny)
    header.metadata["llama.attention.key_length"] = 48
    with pytest.raises(EngineUnavailable, match=r"cache_type_k = .q8_0. stores 32 values together, and .* have 48"):
        check_parameters(table(tiny, cache_type_k="q8_0"), header, threads=1)
    check_parameters(table(tiny, cache_type_v="q8_0"), header, threads=1)


@pytest.mark.parametrize(
    ("keys", "gpus", "reason"),
    [
        ({"gpu_layers": 8}, 0, "gpu_layers = 8: the installed xllamacpp finds no GPU"),
        ({"gpu_layers": 8, "main_gpu": 2}, 2, "main_gpu = 2: the installed xllamacpp finds 2"),
        ({"gpu_layers": 8, "tensor_split": [1.0, 1.0, 1.0]}, 2, "tensor_split names 3 GPUs; xllamacpp finds 2"),
        ({"gpu_layers": 8, "main_gpu": 1, "tensor_split": [1.0, 3.0]}, 2, ""),
        ({}, 0, ""),
    ],
)
def test_gpus_that_are_not_there_are_refused(tiny: Path, keys: dict[str, Any], gpus: int, reason: str) -> None:
    devices = [{"name": "CPU", "type": "GGML_BACKEND_DEVICE_TYPE_CPU"}]
    devices += [{"name": f"CUDA{n}", "type": "GGML_BACKEND_DEVICE_TYPE_GPU"} for n in range(gpus)]
    if not reason:
        check_devices(table(tiny, **keys), devices)
        return
    with pytest.raises(EngineUnavailable, match=reason):
        check_devices(table(tiny, **keys), devices)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ("gpu_layers = 99", "finds no GPU"),
        ("slots = 257", "slots = 257"),
        ("batch_tokens = 1", "batch_tokens"),
        ('cache_type_v = "q4_0"\nflash_attention = "off"', "needs flash attention"),
        ('[models.chat.adapters.one]\npath = "missing.gguf"', "missing.gguf"),
    ],
)
def test_a_worker_with_a_bad_parameter_leaves_with_78_and_the_reason(
    deployment: Deployment, tiny: Path, keys: str, reason: str
) -> None:
    deployment.configure(f'[models.chat]\nengine = "llamacpp"\npath = "{tiny}"\ncontext_tokens = 64\n{keys}\n')
    child = deployment.start("chat", "chat-0", ready=False)
    assert child.wait() == 78
    assert reason in child.log.read_text()
