"""One model served twice on this machine: through headpond, and by the engine alone. Both stay loaded; one at a time
is given work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from child import BenchmarkError, Child
from runs import Run

from headpond.connections import RedisAddress
from headpond.queue import Server
from headpond.workers import WorkerState
from headpond_workers.supervision.embedded_valkey import ValkeyProcess, running_valkey
from headpond_workers.supervision.private_files import last_lines, private_folder, write_private

MODEL = "bench"
READY_TIMEOUT_S = 300.0
RUN_TIMEOUT_S = 600.0
DRAIN_TIMEOUT_S = 10.0


class BothSides:
    """Runs prompts on either side. cpu_s in what is noted of a run: seconds of processor time, of each process."""

    def __init__(self, direct: Child, producer: Child, worker: subprocess.Popen[bytes], valkey_pid: int) -> None:
        self._direct, self._producer = direct, producer
        self._processes = {
            "engine alone": psutil.Process(direct.pid),
            "producer": psutil.Process(producer.pid),
            "worker": psutil.Process(worker.pid),
            "valkey": psutil.Process(valkey_pid),
        }

    def headpond(self, prompts: list[str], *, max_tokens: int) -> Run:
        """Submit all prompts at once and read their streams to the end."""
        return _ask(self._producer, prompts, max_tokens)

    def direct(self, prompts: list[str], *, max_tokens: int) -> Run:
        """Call the engine with all prompts at once."""
        return _ask(self._direct, prompts, max_tokens)

    def cpu_s(self) -> dict[str, float]:
        times = {name: process.cpu_times() for name, process in self._processes.items()}
        return {name: of.user + of.system for name, of in times.items()}


@contextmanager
def both_sides(table: str, folder: Path) -> Iterator[BothSides]:
    """Serve `table`, the lines of a [models.NAME] table, on both sides. folder: private, for this model alone.

    Raises HeadpondError. Every process has ended when the context is left.
    """
    private_folder(folder)
    config = folder / "headpond.toml"
    with ExitStack() as stack:
        valkey = stack.enter_context(running_valkey(folder / "state"))
        write_config(config, valkey, table)
        worker = stack.enter_context(worker_process(config, folder / "worker.log"))
        await_ready(worker, valkey.url, folder / "worker.log")
        direct = stack.enter_context(
            Child("direct_engine.py", {"config": str(config), "model": MODEL}, log=folder / "direct.log")
        )
        producer = stack.enter_context(
            Child("producer.py", {"url": valkey.url, "model": MODEL}, log=folder / "producer.log")
        )
        yield BothSides(direct, producer, worker, valkey.pid)


def write_config(config: Path, valkey: ValkeyProcess, table: str) -> None:
    """A headpond.toml, and the server's password in a file beside it; both 0600."""
    password = config.with_name("redis-password")
    write_private(password, urlsplit(valkey.url).password or "")
    # A string of JSON is one of TOML.
    where = f"password = {{file = {json.dumps(str(password))}}}"
    write_private(config, f'[redis]\nurl = "redis://127.0.0.1:{valkey.port}/0"\n{where}\n\n[models.{MODEL}]\n{table}')


@contextmanager
def worker_process(config: Path, log: Path, *, packages: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process as `headpond up` starts it, but for supervisord. It ends with this one.

    packages: a folder of packages that it finds besides those that are installed.
    """
    environment = os.environ | ({} if packages is None else {"PYTHONPATH": str(packages)})
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "headpond_workers.supervision.launcher", "--",
             sys.executable, "-m", "headpond_workers.worker", "--config", str(config), "--model", MODEL,
             "--instance", f"{MODEL}-0"],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=config.parent, env=environment,
        )  # fmt: skip
    try:
        yield process
    except BaseException:
        process.kill()  # what it runs is of no use any more
        raise
    finally:
        process.terminate()
        try:
            process.wait(DRAIN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def await_ready(worker: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until the model is loaded and its queue is served. Raises BenchmarkError."""
    until = time.monotonic() + READY_TIMEOUT_S
    server = Server(RedisAddress(url, "the benchmark"))
    try:
        queue = server.queue(MODEL)
        while not any(row.pid == worker.pid and row.state is WorkerState.READY for row in queue.workers()):
            if worker.poll() is not None:
                raise BenchmarkError(
                    f"The worker ended with status {worker.returncode}. The end of its log:\n{last_lines(log, 15)}"
                )
            if time.monotonic() >= until:
                raise BenchmarkError(f"The worker was not ready within {READY_TIMEOUT_S:g} s:\n{last_lines(log, 15)}")
            time.sleep(0.05)
    finally:
        server.close()


def _ask(child: Child, prompts: list[str], max_tokens: int) -> Run:
    return Run(**child.ask({"prompts": prompts, "max_tokens": max_tokens}, timeout_s=RUN_TIMEOUT_S))
