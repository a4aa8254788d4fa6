"""One model served twice on this machine: through headpond, and by the engine alone. Both stay loaded; one at a time
is given work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from child import BenchmarkError, Child
from runs import Run

from headpond.connections import RedisAddress
from headpond.queue import Server
from headpond.workers import WorkerState
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess
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
        return ask_for(self._producer, prompts, max_tokens)

    def direct(self, prompts: list[str], *, max_tokens: int) -> Run:
        """Call the engine with all prompts at once."""
        return ask_for(self._direct, prompts, max_tokens)

    def cpu_s(self) -> dict[str, float]:
        times = {name: process.cpu_times() for name, process in self._processes.items()}
        return {name: of.user + of.system for name, of in times.items()}


@contextmanager
def both_sides(table: str, folder: Path) -> Iterator[BothSides]:
    """Serve `table`, the lines of a [models.NAME] table, on both sides. folder: private, for this model alone.

    Raises HeadpondError. Every process has ended when the context is left.
    """
    with served(table, folder) as model:
        alone = {"config": str(model.config), "model": MODEL}
        with Child("direct_engine.py", alone, log=folder / "direct.log") as direct:
            yield BothSides(direct, model.producer, model.worker, model.valkey.pid)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model behind a queue that nobody keeps elsewhere. producer: runs producer.py."""

    config: Path
    valkey: ValkeyProcess
    worker: subprocess.Popen[bytes]
    producer: Child

    def run(self, prompts: list[str], *, max_tokens: int) -> Run:
        """Submit all prompts at once and read their streams to the end."""
        return ask_for(self.producer, prompts, max_tokens)


@contextmanager
def served(table: str, folder: Path) -> Iterator[ServedModel]:
    """Serve `table` with a Valkey and a worker. folder: private, for this alone. Raises HeadpondError."""
    private_folder(folder)
    config = folder / "headpond.toml"
    with ExitStack() as stack:
        valkey = stack.enter_context(running_valkey(folder / "state"))
        write_config(config, valkey, table)
        worker = stack.enter_context(worker_process(config, folder / "worker.log"))
        await_ready(worker, valkey.url, folder / "worker.log")
        yield ServedModel(config, valkey, worker, stack.enter_context(start_producer(valkey.url, folder)))


def start_producer(url: str, folder: Path) -> Child:
    """A program that submits and reads. Raises BenchmarkError."""
    return Child("producer.py", {"url": url, "model": MODEL}, log=folder / "producer.log")


def write_config(config: Path, valkey: ValkeyProcess, table: str, *, seaweed: SeaweedProcess | None = None) -> None:
    """A headpond.toml, and the servers' secrets in files beside it; all 0600. seaweed: where state is kept."""
    password = _secret_file(config, "redis-password", urlsplit(valkey.url).password or "")
    text = f'[redis]\nurl = "redis://127.0.0.1:{valkey.port}/0"\npassword = {password}\n'
    if seaweed is not None:
        access = _secret_file(config, "access-key", seaweed.access_key)
        secret = _secret_file(config, "secret-key", seaweed.secret_key)
        text += (
            f'\n[storage]\nendpoint_url = "{seaweed.url}"\nbucket = "{seaweed.bucket}"\nregion = "{seaweed.region}"\n'
            f"access_key = {access}\nsecret_key = {secret}\n"
        )
    write_private(config, f"{text}\n[models.{MODEL}]\n{table}")


def _secret_file(config: Path, name: str, secret: str) -> str:
    """Write it beside the configuration; what the configuration says in its place."""
    path = config.with_name(name)
    write_private(path, secret)
    # A string of JSON is one of TOML.
    return f"{{file = {json.dumps(str(path))}}}"


@contextmanager
def worker_process(config: Path, log: Path, *, packages: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process as `headpond up` starts it, but for supervisord. It ends with this one.

    packages: a folder of packages that it finds besides those that are installed.
    """
    arguments = ["headpond_workers.worker", "--config", str(config), "--model", MODEL, "--instance", f"{MODEL}-0"]
    with _launched(arguments, config.parent, log, packages=packages) as process:
        yield process


@contextmanager
def persister_process(config: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A persister process as `headpond up` starts it, but for supervisord. It ends with this one."""
    with _launched(["headpond_workers.persister", "--config", str(config)], config.parent, log) as process:
        yield process


@contextmanager
def _launched(
    module: Sequence[str], folder: Path, log: Path, *, packages: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | ({} if packages is None else {"PYTHONPATH": str(packages)})
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "headpond_workers.supervision.launcher", "--", sys.executable, "-m", *module],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, env=environment,
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


def ask_for(child: Child, prompts: list[str], max_tokens: int) -> Run:
    """All prompts at once, of a program that answers with a Run. Raises BenchmarkError."""
    return Run(**child.ask({"prompts": prompts, "max_tokens": max_tokens}, timeout_s=RUN_TIMEOUT_S))
