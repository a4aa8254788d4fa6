"""A server as a child process: started, waited for, stopped, killed, restarted."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from headpond.errors import DeploymentError
from headpond_workers.supervision.ports import is_free
from headpond_workers.supervision.private_files import FILE_MODE, cannot_write, last_lines

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
"""A server with much data reads it first."""
STOP_TIMEOUT_S = 30.0
POLL_INTERVAL_S = 0.02


class ServerProcess:
    """Base of the embedded servers' processes, for tests and benchmarks; `headpond up` has supervisord.

    Ports and data outlive stop(), kill() and restart(). Not thread-safe.
    """

    name: str = "server"

    def __init__(self, argv: Sequence[str], *, ports: Sequence[int], log: Path, env: Mapping[str, str]) -> None:
        self._argv = tuple(argv)
        self._ports = tuple(ports)
        self._env = dict(env)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def answers(self) -> bool:
        """Whether the server is ready for work."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """Raises DeploymentError if it does not run."""
        if self._process is None:
            raise DeploymentError(f"This {self.name} does not run: call start() first.")
        return self._process.pid

    def start(self) -> None:
        """Start it, and return once it answers. Raises DeploymentError with the end of its log if it does not."""
        if self._process is not None:
            raise DeploymentError(f"This {self.name} runs already, with pid {self._process.pid}.")
        for port in self._ports:
            if not is_free(port):
                raise DeploymentError(f"Another process listens on port {port}; stop it, then try again.")
        try:
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, FILE_MODE)
        except OSError as error:
            raise cannot_write(self._log, error) from error
        try:
            # No process group of its own: what ends this process from a terminal ends the server too.
            self._process = process = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env, umask=0o077
            )
        except OSError as error:
            raise DeploymentError(f"Cannot start {self._argv[0]}: {error.strerror}.") from error
        finally:
            os.close(log)
        try:
            self._wait_ready(process, time.monotonic() + START_TIMEOUT_S)
        except BaseException:
            self.kill()
            raise
        logger.debug("server_started name=%s pid=%d", self.name, process.pid)

    def stop(self) -> None:
        """SIGTERM, and wait for an orderly end. Nothing to do if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, and wait. Nothing to do if it does not run."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop it if it runs, then start it, on the same ports and data."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _end(self, with_signal: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(with_signal)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            logger.warning("server_stop_timeout name=%s pid=%d seconds=%g", self.name, process.pid, STOP_TIMEOUT_S)
            process.kill()
            process.wait()

    def _wait_ready(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        while not self.answers():
            if (status := process.poll()) is not None:
                raise DeploymentError(
                    f"The {self.name} ended with status {status}. The end of {self._log}:\n{last_lines(self._log)}"
                )
            if time.monotonic() >= deadline:
                raise DeploymentError(
                    f"The {self.name} did not answer within {START_TIMEOUT_S:g} s; its log is {self._log}."
                )
            time.sleep(POLL_INTERVAL_S)
