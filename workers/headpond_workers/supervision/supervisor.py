"""supervisord, started and commanded: XML-RPC over its Unix socket."""

from __future__ import annotations

import http.client
import logging
import os
import signal
import socket as sockets
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from headpond.errors import DeploymentError
from headpond_workers.supervision.private_files import FILE_MODE, cannot_write, last_lines
from headpond_workers.supervision.runtime_folder import check_runtime_folder
from headpond_workers.supervision.supervisord_process import CONF_NAME, MODULE, wait_for_end

logger = logging.getLogger(__name__)

REPLY_TIMEOUT_S = 10.0
START_TIMEOUT_S = 20.0
POLL_INTERVAL_S = 0.05
SHUTDOWN_STATE = 6
"""The fault of that name in supervisor.xmlrpc, whose import takes longer than most commands."""
_WITHOUT_WAITING = False
_HOLD_AND_RUN = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[2:], timeout=float(sys.argv[1])).returncode)"
"""Runs supervisord's start, and holds what it inherited until supervisord has forked, its socket open: whoever gets the
deployment next sees it. supervisord itself inherits nothing."""


class ProcessState(StrEnum):
    """supervisord's word for where a program stands."""

    STOPPED = "STOPPED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    BACKOFF = "BACKOFF"
    STOPPING = "STOPPING"
    EXITED = "EXITED"
    FATAL = "FATAL"
    UNKNOWN = "UNKNOWN"

    @property
    def alive(self) -> bool:
        """It runs, or will be started again."""
        return self in (ProcessState.STARTING, ProcessState.RUNNING, ProcessState.BACKOFF)

    @property
    def ended(self) -> bool:
        """Nothing runs, and nothing will be started."""
        return self in (ProcessState.STOPPED, ProcessState.EXITED, ProcessState.FATAL)


@dataclass(frozen=True, slots=True)
class Process:
    """One program as supervisord sees it. pid: 0 if it does not run. started_s: Unix time."""

    name: str
    state: ProcessState
    pid: int
    exit_status: int
    started_s: int


@dataclass(frozen=True, slots=True)
class Changes:
    """Names of programs whose files differ from what supervisord runs."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]


class SupervisorGone(DeploymentError):
    """supervisord does not answer on its socket: it has ended, or never began."""


class SupervisorLeaving(DeploymentError):
    """supervisord was told to end, and takes no commands any more."""


class Supervisor:
    """A running supervisord. Every call may raise SupervisorGone; a refusal is a DeploymentError."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    def pid(self) -> int:
        return int(self._call("getPID"))

    def processes(self) -> dict[str, Process]:
        """Every program, by name."""
        found = (_process(info) for info in self._call("getAllProcessInfo"))
        return {process.name: process for process in found}

    def reload(self) -> Changes:
        """Read the files anew, without acting on what changed."""
        added, changed, removed = self._call("reloadConfig")[0]
        return Changes(tuple(added), tuple(changed), tuple(removed))

    def add(self, name: str) -> None:
        """Run a program whose file has been read."""
        self._call("addProcessGroup", name)

    def start(self, name: str) -> None:
        """Start a program that had ended."""
        self._call("startProcessGroup", name, _WITHOUT_WAITING)

    def remove(self, name: str) -> None:
        """Forget a program that has stopped."""
        self._call("removeProcessGroup", name)

    def begin_stop(self, name: str) -> None:
        """SIGTERM; supervisord follows with SIGKILL after the program's stop_wait_s."""
        self._call("stopProcessGroup", name, _WITHOUT_WAITING)

    def hang_up(self, name: str) -> None:
        """SIGHUP: a worker reads its configuration again."""
        self._call("signalProcess", f"{name}:{name}", "HUP")

    def stop(self, names: list[str], *, timeout_s: float, progress: Callable[[str], None]) -> None:
        """Stop programs together, and return once none of them runs. Raises DeploymentError after timeout_s."""
        deadline = time.monotonic() + timeout_s
        waiting = set(names)
        asked: set[str] = set()
        while True:
            known = self.processes()
            for name in sorted(waiting):
                process = known.get(name)
                if process is None or process.state.ended:
                    waiting.discard(name)
                    if name in asked:
                        progress(f"{name} stopped")
                # Asked again if it was about to be started again just when it was asked first.
                elif process.state.alive:
                    self.begin_stop(name)
                    if name not in asked:
                        asked.add(name)
                        progress(f"{name} stopping")
            if not waiting:
                return
            if time.monotonic() >= deadline:
                raise DeploymentError(
                    f"Still running after {timeout_s:.0f} s: {', '.join(sorted(waiting))}. Look at their logs with "
                    "headpond logs, then try again."
                )
            time.sleep(POLL_INTERVAL_S)

    def shutdown(self, *, timeout_s: float) -> None:
        """End supervisord and what it still runs, and return once its process is gone."""
        pid = self.pid()
        self._call("shutdown")
        wait_for_end(pid, timeout_s=timeout_s)

    def _call(self, method: str, *arguments: object) -> Any:
        # A connection for each call: supervisord may have been replaced since the last one.
        transport = _UnixTransport(self.socket)
        proxy = xmlrpc.client.ServerProxy("http://supervisor", transport=transport)
        try:
            return getattr(proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == SHUTDOWN_STATE:
                raise SupervisorLeaving(f"supervisord on {self.socket} is about to end.") from fault
            raise DeploymentError(f"supervisord refused {method}{arguments}: {fault.faultString}") from fault
        except (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError) as error:
            raise SupervisorGone(f"supervisord does not answer on {self.socket} ({error}).") from error
        finally:
            transport.close()


def find_supervisor(candidates: list[Path]) -> Supervisor | None:
    """The supervisord that answers on one of these sockets, if any does. Raises SupervisorLeaving."""
    for socket in candidates:
        if not socket.exists():
            continue
        check_runtime_folder(socket)
        supervisor = Supervisor(socket)
        try:
            supervisor.pid()
        except SupervisorGone as error:
            logger.debug("supervisor_socket_stale socket=%s reason=%s", socket, error)
            continue
        return supervisor
    return None


def start_supervisord(state_folder: Path, socket: Path, *, log_folder: Path, lock: int | None = None) -> Supervisor:
    """Start supervisord as a daemon on `state_folder`'s configuration, and return once it answers.

    lock: a descriptor that is held until it answers, also if this process is killed before.
    Raises DeploymentError with what it said if it does not. It inherits this process's environment, from which
    the launcher gives each program its part.
    """
    out = log_folder / "supervisord.out"
    argv = [sys.executable, "-X", "utf8", "-m", MODULE, "-c", str(state_folder / CONF_NAME)]
    try:
        handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        raise cannot_write(out, error) from error
    try:
        # In a session of its own, so that a Ctrl-C of the terminal does not meet it half started.
        starting = subprocess.Popen(
            [sys.executable, "-S", "-c", _HOLD_AND_RUN, str(START_TIMEOUT_S), *argv],
            cwd=state_folder,
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=handle,
            umask=0o077,
            start_new_session=True,
            pass_fds=() if lock is None else (lock,),
        )
    finally:
        os.close(handle)
    try:
        returncode = starting.wait(START_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        os.killpg(starting.pid, signal.SIGKILL)
        starting.wait()
        raise DeploymentError(
            f"supervisord did not start within {START_TIMEOUT_S:g} s. It said:\n{last_lines(out)}"
        ) from error
    supervisor = Supervisor(socket)
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            supervisor.pid()
        except SupervisorGone as error:
            if returncode != 0 or time.monotonic() >= deadline:
                said = last_lines(out) or last_lines(log_folder / "supervisord.log")
                raise DeploymentError(f"supervisord did not start. It said:\n{said}") from error
            time.sleep(POLL_INTERVAL_S)
        else:
            return supervisor


def _process(info: dict[str, Any]) -> Process:
    return Process(
        name=str(info["name"]),
        state=ProcessState(info["statename"]),
        pid=int(info["pid"]),
        exit_status=int(info["exitstatus"]),
        started_s=int(info["start"]),
    )


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=REPLY_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        connection = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
        try:
            connection.settimeout(self.timeout)
            connection.connect(str(self._path))
        except BaseException:
            connection.close()
            raise
        self.sock = connection


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._unix: _UnixConnection | None = None

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        self._unix = self._unix or _UnixConnection(self._path)
        return self._unix

    def close(self) -> None:
        if self._unix is not None:
            self._unix.close()
            self._unix = None
