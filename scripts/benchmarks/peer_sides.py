"""The sides of `peers`: each serves the same model file on this machine, and is asked by its program of peer_code/.

All stay loaded; one at a time is given work. Every process ends with the context that started it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
from child import Answer, BenchmarkError, Child
from code_lines import count_code_lines
from peer_prompts import CONTEXT_TOKENS, Ask
from peer_reader import PROGRAMS

from headpond.connections import redis_of
from headpond.settings import load_settings
from headpond.workers import WorkerState
from headpond_workers.supervision.deployment import Deployment
from headpond_workers.supervision.embedded_valkey import running_valkey
from headpond_workers.supervision.ports import free_ports
from headpond_workers.supervision.private_files import last_lines, private_folder, write_private

MODEL = "bench"
SOURCE = "smollm2-135m:Q8_0"
SLOTS = 8
THREADS = 1
BATCH_TOKENS = 2048
"""Of a prompt that one step reads: what llama.cpp's own server takes. headpond's default hears a cancel sooner."""
RUN_TIMEOUT_S = 600.0
READY_TIMEOUT_S = 300.0
END_TIMEOUT_S = 15.0
POLL_S = 0.05


class Side(Protocol):
    """One way to the model. name: in tables. about: what it is, in words, with versions. program: of peer_code/."""

    name: str
    about: str
    program: str
    reader: Child

    def pids(self) -> list[int]:
        """Of the processes that serve, without those that they started and without the reader."""
        ...

    def kill(self) -> None:
        """SIGKILL to the process that has the model, and what starts it again where nothing does by itself."""
        ...

    def await_ready(self) -> None:
        """Until it serves again. Raises BenchmarkError."""
        ...


def run(side: Side, asks: Sequence[Ask]) -> Answer:
    """Ask everything at once; see peer_reader for the answer. Raises BenchmarkError."""
    return side.reader.ask({"asks": [(ask.prompt, ask.max_tokens) for ask in asks]}, timeout_s=RUN_TIMEOUT_S)


def cpu_s(side: Side) -> float:
    """Processor time so far of all its processes, the reader's included. It falls where a process ended."""
    found: dict[int, psutil.Process] = {}
    for pid in [*side.pids(), side.reader.pid]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            found |= {one.pid: one for one in (process, *process.children(recursive=True))}
    total = 0.0
    for process in found.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def code_lines(side: Side) -> int:
    return count_code_lines((PROGRAMS / f"{side.program}.py").read_text(encoding="utf-8"))


def start_reader(side_program: str, environment: dict[str, str], folder: Path) -> Child:
    setup = {"program": side_program, "environment": environment}
    return Child("peer_reader.py", setup, log=folder / f"{side_program}.log")


# ---- headpond


class HeadpondSide:
    name = "headpond"
    program = "ask_headpond"
    about = (
        "a deployment as `headpond up` makes it: Valkey (append-only file, synced each second), SeaweedFS, the "
        "persister, one worker of 8 slots with batch_tokens as llama.cpp's own server has it, supervisord; a "
        "program with headpond's Client"
    )

    def __init__(self, deployment: Deployment, reader: Child) -> None:
        self._deployment, self.reader = deployment, reader

    def pids(self) -> list[int]:
        supervisor = self._deployment.supervisor()
        if supervisor is None:
            raise BenchmarkError("supervisord has ended.")
        return [supervisor.pid(), *(process.pid for process in supervisor.processes().values() if process.pid)]

    def kill(self) -> None:
        (worker,) = self._deployment.status().workers
        os.kill(worker.pid, signal.SIGKILL)

    def await_ready(self) -> None:
        status = self._deployment.wait_ready(timeout_s=READY_TIMEOUT_S)
        if any(worker.state is not WorkerState.READY for worker in status.workers):
            raise BenchmarkError(f"headpond's worker did not come: {status.workers[0].last_error}")


@contextmanager
def headpond_side(folder: Path) -> Iterator[HeadpondSide]:
    private_folder(folder)
    config = folder / "headpond.toml"
    write_private(
        config,
        f'[models.{MODEL}]\nengine = "llamacpp"\nsource = "{SOURCE}"\nslots = {SLOTS}\n'
        f"context_tokens = {CONTEXT_TOKENS}\nthreads = {THREADS}\nbatch_tokens = {BATCH_TOKENS}\n",
    )
    settings = load_settings(config)
    deployment = Deployment(settings)
    try:
        deployment.up()
        deployment.wait_ready(timeout_s=READY_TIMEOUT_S)
        with start_reader(HeadpondSide.program, {"HEADPOND_REDIS_URL": redis_of(settings).url}, folder) as reader:
            side = HeadpondSide(deployment, reader)
            side.await_ready()
            yield side
    finally:
        deployment.down()


# ---- llama.cpp's own server


class ServerProcess:
    """llama.cpp's HTTP server. It comes back on the port that it had."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._log = private_folder(folder) / "server.log"
        self._port = free_ports(1)[0]
        self._setup = {
            "path": str(path), "slots": SLOTS, "context_tokens": CONTEXT_TOKENS, "threads": THREADS,
            "port": self._port,
        }  # fmt: skip
        self._child = self._started()

    @property
    def port(self) -> int:
        return self._port

    @property
    def pid(self) -> int:
        return self._child.pid

    def restart(self) -> None:
        """SIGKILL, and at once a new one."""
        self._child.kill()
        self._child.close()
        self._child = self._started()

    def close(self) -> None:
        self._child.kill()
        self._child.close()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Raises BenchmarkError."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise BenchmarkError(f"llama.cpp's server does not answer {path}: {error!r}") from error
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise BenchmarkError(f"llama.cpp's server refuses {path} with HTTP {response.status}: {answer}")
        return answer

    def count_tokens(self, text: str) -> int:
        return len(self.post("/tokenize", {"content": text})["tokens"]) if text else 0

    def _started(self) -> Child:
        child = Child("bare_server.py", self._setup, log=self._log)
        address = child.ask({}, timeout_s=READY_TIMEOUT_S)["address"]
        if not address.endswith(f":{self.port}"):
            child.close()
            raise BenchmarkError(f"llama.cpp's server listens on {address}, not on port {self.port}.")
        return child


class ServerSide:
    name = "the bare HTTP server"
    program = "ask_server"
    about = (
        "llama.cpp's own HTTP server, of the same xllamacpp and with the same slots, context and thread, in a process "
        "of its own; a program with Python's http.client, on /v1/chat/completions"
    )

    def __init__(self, server: ServerProcess, reader: Child) -> None:
        self._server, self.reader = server, reader

    def pids(self) -> list[int]:
        return [self._server.pid]

    def kill(self) -> None:
        self._server.restart()

    def await_ready(self) -> None:
        self._server.count_tokens("ready")


@contextmanager
def server_process(path: Path, folder: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(path, folder)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def server_side(server: ServerProcess, folder: Path) -> Iterator[ServerSide]:
    with start_reader(ServerSide.program, {"LLAMA_PORT": str(server.port)}, private_folder(folder)) as reader:
        yield ServerSide(server, reader)


# ---- the same server behind dramatiq


class DramatiqSide:
    name = "the server behind dramatiq"
    program = "ask_dramatiq"
    about = (
        "the same bare server behind dramatiq: its RedisBroker and result backend as they come, on an embedded Valkey "
        "(append-only file, synced each second), one worker process of 8 threads, an actor that asks the server and "
        "stores the text; a program that sends and waits for the text, which comes whole"
    )

    def __init__(self, server: ServerProcess, pids: list[int], reader: Child) -> None:
        self._server, self._pids, self.reader = server, pids, reader

    def pids(self) -> list[int]:
        return [self._server.pid, *self._pids]

    def kill(self) -> None:
        # The server, not the worker: that is the kinder one. RedisBroker misses a dead worker for a minute and more.
        self._server.restart()

    def await_ready(self) -> None:
        self._server.count_tokens("ready")


@contextmanager
def dramatiq_side(server: ServerProcess, folder: Path) -> Iterator[DramatiqSide]:
    private_folder(folder)
    with ExitStack() as stack:
        valkey = stack.enter_context(running_valkey(folder / "state"))
        environment = {"REDIS_URL": valkey.url, "LLAMA_PORT": str(server.port)}
        worker = stack.enter_context(
            running(
                [sys.executable, "-m", "dramatiq", DramatiqSide.program, "--processes", "1", "--threads", str(SLOTS)],
                environment
                | {"PYTHONPATH": os.pathsep.join([str(PROGRAMS), *filter(None, [os.environ.get("PYTHONPATH")])])},
                folder=folder,
                log=folder / "worker.log",
            )
        )
        reader = stack.enter_context(start_reader(DramatiqSide.program, environment, folder))
        yield DramatiqSide(server, [valkey.pid, worker.pid], reader)


# ---- processes of peers


@dataclass(slots=True)
class Running:
    """A peer's process. children: those that it has started, which may outlive it."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        """Raises BenchmarkError if it has ended."""
        if (status := self.process.poll()) is not None:
            raise BenchmarkError(f"It ended with status {status}. The end of its log:\n{last_lines(self.log, 15)}")

    def kill(self) -> list[psutil.Process]:
        """SIGKILL. Returns what it had started, which goes on."""
        children = self._children()
        self.process.kill()
        self.process.wait()
        return children

    def end(self) -> None:
        """SIGTERM, SIGKILL after END_TIMEOUT_S, and the same to what it started."""
        children = self._children()
        self.process.terminate()
        try:
            self.process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        end_all(children)

    def _children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


def end_all(processes: Sequence[psutil.Process]) -> None:
    """SIGKILL to each that still runs. psutil compares start times: a pid that was given anew is left alone."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(list(processes), END_TIMEOUT_S)


def start(command: Sequence[str], environment: dict[str, str], *, folder: Path, log: Path) -> Running:
    """Start a peer's process: `environment` and what any process needs, nothing of this one's beyond that. It gets a
    SIGTERM when this one dies."""
    allowed = [word for name in environment for word in ("--allow", name)]
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "headpond_workers.supervision.launcher", *allowed, "--", *command],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, env=os.environ | environment,
        )  # fmt: skip
    return Running(process, log)


@contextmanager
def running(command: Sequence[str], environment: dict[str, str], *, folder: Path, log: Path) -> Iterator[Running]:
    found = start(command, environment, folder=folder, log=log)
    try:
        yield found
    finally:
        found.end()


def wait_for(what: str, ready: Any, *, check: Any) -> None:
    """Until ready() is true. check(): raises when it never will be. Raises BenchmarkError."""
    until = time.monotonic() + READY_TIMEOUT_S
    while not ready():
        check()
        if time.monotonic() >= until:
            raise BenchmarkError(f"{what} was not ready within {READY_TIMEOUT_S:g} s.")
        time.sleep(POLL_S)
