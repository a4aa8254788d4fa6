"""DB-GPT's model worker as a side of `peers`: its llama.cpp server provider, the one of its two that runs several jobs
at once."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from child import Child
from dbgpt_environment import Kernels, prepare_dbgpt, versions_of
from peer_prompts import CONTEXT_TOKENS
from peer_sides import MODEL, SLOTS, THREADS, Running, end_all, start, start_reader, wait_for

from headpond_workers.supervision.ports import free_ports
from headpond_workers.supervision.private_files import private_folder, write_private

NAMES = {Kernels.NATIVE: "DB-GPT", Kernels.PORTABLE: "DB-GPT with portable kernels"}
_COMPILED = {
    Kernels.NATIVE: "by pip on this machine for all instruction sets of its processor, as pip does by default",
    Kernels.PORTABLE: "for AVX2 and no more, as xllamacpp's wheel is",
}
PACKAGES = ("dbgpt", "dbgpt-ext", "llama-cpp-server-py-core")

_CONFIG = """\
[system]
language = "en"
api_keys = []
encrypt_key = "unused"

[service.model.worker]
host = "127.0.0.1"
port = {port}
standalone = true

[models]
[[models.llms]]
name = "{model}"
provider = "llama.cpp.server"
path = {path}
device = "cpu"
n_gpu_layers = 0
threads = {threads}
n_slots = {slots}
ctx_size = {context_tokens}
concurrency = {slots}
"""


class DbgptSide:
    program = "ask_dbgpt"

    def __init__(self, kernels: Kernels, python: Path, config: Path, port: int) -> None:
        """Starts it; `await_ready` waits for it."""
        self.name = NAMES[kernels]
        versions = versions_of(python, PACKAGES)
        of = ", ".join(f"{package} {version}" for package, version in versions.items())
        self.about = (
            f"DB-GPT's model worker with its controller in one process (`dbgpt start worker`, standalone; {of}), its "
            "llama.cpp server provider with the same slots, context and thread, which runs a llama.cpp server of its "
            f"own as a child process, compiled {_COMPILED[kernels]}; a program with Python's http.client, on "
            "/api/worker/generate_stream"
        )
        self._command = [str(python.with_name("dbgpt")), "start", "worker", "--config", str(config)]
        self._folder, self._port = config.parent, port
        self._left: list[psutil.Process] = []
        self._running = self._started()
        self.reader: Child

    def pids(self) -> list[int]:
        return [self._running.pid]

    def kill(self) -> None:
        """To the worker, which has the model in a child process: that one goes on, and so does what it computes."""
        self._left += self._running.kill()
        self._running = self._started()

    def await_ready(self) -> None:
        wait_for("DB-GPT's worker", self._answers, check=self._running.check)
        # What a killed worker leaves behind must not slow the next run; DB-GPT itself would leave it.
        end_all(self._left)
        self._left.clear()

    def close(self) -> None:
        self._running.end()
        end_all(self._left)

    def _started(self) -> Running:
        return start(self._command, {}, folder=self._folder, log=self._folder / "worker.log")

    def _answers(self) -> bool:
        """Whether the model has answered: the port is open long before it is loaded."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        body = {"model": MODEL, "messages": [{"role": "human", "content": "Hello"}], "max_new_tokens": 1}
        try:
            connection.request("POST", "/api/worker/generate", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            return False
        finally:
            connection.close()
        return response.status == http.client.OK and answer.get("error_code") == 0


@contextmanager
def dbgpt_side(kernels: Kernels, path: Path, folder: Path, *, progress: Callable[[str], None]) -> Iterator[DbgptSide]:
    """Raises HeadpondError if it cannot be installed or started."""
    python = prepare_dbgpt(kernels, progress=progress)
    progress(f"peers: starting DB-GPT's worker, {kernels.value} kernels")
    private_folder(folder)
    config, port = folder / "worker.toml", free_ports(1)[0]
    write_private(
        config,
        _CONFIG.format(
            port=port, model=MODEL, path=json.dumps(str(path)), threads=THREADS, slots=SLOTS,
            context_tokens=CONTEXT_TOKENS * SLOTS,
        ),
    )  # fmt: skip
    side = DbgptSide(kernels, python, config, port)
    try:
        side.await_ready()
        with start_reader(DbgptSide.program, {"DBGPT_PORT": str(port)}, folder) as side.reader:
            yield side
    finally:
        side.close()
