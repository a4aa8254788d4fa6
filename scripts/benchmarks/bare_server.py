"""llama.cpp's own HTTP server, as xllamacpp brings it, in a process of its own.

Set-up: {"path", "slots", "context_tokens", "threads", "port"}. What it is not told stays as llama.cpp has it. It
listens on 127.0.0.1 without a key until its input ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from child import Serving, serve


@contextmanager
def bare_server(setup: dict[str, Any]) -> Iterator[Serving]:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = setup["path"]
    parameters.n_parallel = setup["slots"]
    parameters.n_ctx = setup["context_tokens"] * setup["slots"]
    parameters.kv_unified = False
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = setup["threads"]
    parameters.cpuparams_batch.n_threads = setup["threads"]
    # Nothing is asked twice, so that a store of old prompts would only cost.
    parameters.cache_ram_mib = 0
    parameters.verbosity = -1
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = setup["port"]
    server = xllamacpp.Server(parameters)
    # A server that is destroyed before it has run anything hangs.
    server.handle_completions({"prompt": "Hello", "max_tokens": 1, "cache_prompt": False})
    yield lambda _request: {"address": server.listening_address}


if __name__ == "__main__":
    serve(bare_server)
