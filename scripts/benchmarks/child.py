"""A program of this folder as a child process that answers requests: JSON, one line each.

The parent writes a set-up line and then requests to its standard input; the child answers each with one line. It
ends when its standard input does, so it does not outlive a parent that is killed. Secrets travel in the set-up
line: argv is world-readable.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from headpond.errors import HeadpondError
from headpond_workers.supervision.private_files import last_lines

Answer = dict[str, Any]
END_TIMEOUT_S = 10.0
START_TIMEOUT_S = 300.0
_FOLDER = Path(__file__).resolve().parent


class BenchmarkError(HeadpondError):
    """A measurement could not be made, or its two sides did not do the same work."""


class Child:
    """The parent's end. A context manager: the process has ended when it is left, however it is left."""

    def __init__(self, program: str, setup: dict[str, Any], *, log: Path) -> None:
        """Start FOLDER/program and wait until it is ready. log: where its standard error goes."""
        self._program, self._log = program, log
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(_FOLDER / program)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8",
            )  # fmt: skip
        threading.Thread(target=self._read, name=f"answers-{program}", daemon=True).start()
        try:
            self.ask(setup, timeout_s=START_TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: dict[str, Any], *, timeout_s: float) -> Answer:
        """Send one request and wait for its answer. Raises BenchmarkError."""
        try:
            self._pipe.write(json.dumps(request) + "\n")
            self._pipe.flush()
        except BrokenPipeError as error:
            raise self._ended() from error
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise BenchmarkError(
                f"{self._program} did not answer within {timeout_s:g} s. Is the machine busy? The end of its log:\n"
                f"{last_lines(self._log)}"
            ) from None
        if line is None:
            raise self._ended()
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(f"{self._program}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process: it goes by itself when its input ends, or is killed after END_TIMEOUT_S."""
        # Broken: it has ended already, before it read all.
        with contextlib.suppress(BrokenPipeError):
            self._pipe.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """SIGKILL, and return once the process is gone."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()  # its work is of no use any more, and it holds nothing that must be put away
        self.close()

    @property
    def _pipe(self) -> Any:
        return self._process.stdin

    def _ended(self) -> BenchmarkError:
        return BenchmarkError(
            f"{self._program} ended with status {self._process.wait(END_TIMEOUT_S)}. The end of its log:\n"
            f"{last_lines(self._log, 15)}"
        )

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._lines.put(line)
        self._lines.put(None)


Serving = Callable[[dict[str, Any]], Answer]


def serve(begin: Callable[[dict[str, Any]], AbstractContextManager[Serving]]) -> NoReturn:
    """The child's end: make the server from the set-up line, then answer until the input ends. Does not return.

    A HeadpondError becomes an answer; anything else ends the process with a traceback in its log.
    """
    # Ctrl-C goes to all processes of a terminal: the parent decides, and ends this one by its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever a library prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(document: Answer) -> None:
        answers.write(json.dumps(document) + "\n")
        answers.flush()

    try:
        with begin(json.loads(sys.stdin.readline())) as serving:
            answer({"ready": True})
            for line in sys.stdin:
                answer(serving(json.loads(line)))
    except HeadpondError as error:
        answer({"error": str(error)})
    except BrokenPipeError:
        pass  # the parent is gone
    except BaseException:  # noqa: BLE001 - written to the log, and the process ends
        sys.excepthook(*sys.exc_info())
        leave(1)
    leave(0)


def leave(code: int) -> NoReturn:
    """Flush and end at once: an engine's library may hang in its destructors."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
