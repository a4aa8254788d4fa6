"""llama.cpp's own HTTP server with a real model, in a process of its own.

It is `python -m llama_http_server GGUF PORT KEY`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from conftest import eventually
from headpond_workers.models.prepare import prepare
from headpond_workers.supervision.ports import free_ports

SOURCE = "smollm2-135m:Q8_0"
CONTEXT_TOKENS = 512
SLOTS = 2
READY_S = 120.0


@dataclass
class LlamaHttpServer:
    """One port, and the process that serves it, if any."""

    model: Path
    key: str
    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "llama_http_server", str(self.model), str(self.port), self.key],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
            )  # fmt: skip
        eventually(self._answers, deadline_s=READY_S, what="llama.cpp's server")

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def llama_http_server(folder: Path, *, key: str) -> Iterator[LlamaHttpServer]:
    model = prepare(SOURCE, progress=lambda *_: None)
    server = LlamaHttpServer(model, key, free_ports(1)[0], folder / "llama-server.log")
    try:
        server.start()
        yield server
    finally:
        server.kill()


def main(model: str, port: str, key: str) -> None:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.n_parallel = SLOTS
    parameters.n_ctx = CONTEXT_TOKENS * SLOTS
    parameters.kv_unified = False
    parameters.n_gpu_layers = 0
    parameters.fit_params = False
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    parameters.cache_ram_mib = 0
    parameters.verbosity = -1
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = int(port)
    parameters.api_keys = [key]
    parameters.ui = False
    server = xllamacpp.Server(parameters)
    # Warm: one that has never run hangs when it is destroyed.
    server.handle_completions({"prompt": "Hello", "max_tokens": 1})
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
