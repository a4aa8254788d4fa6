"""A constraint, tried out in a child process before this one compiles it.

llguidance's own limits bound what it counts. The child bounds the rest, as the kernel does it: a schema whose parts
multiply, a compiler that crashes, memory. What takes too long there is killed there, and costs its own job alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass

from headpond.constraints import Constraint, ConstraintKind
from headpond.errors import EngineError, SequenceFailed
from headpond_workers.engines.protocol import Verdict

_PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
"""What the child needs of the environment to find this very package."""
_POLL_S = 0.05
_CHILDREN = threading.BoundedSemaphore(2)
"""How many are tried at once: a child may take all of its memory."""
WORDS = {
    ConstraintKind.JSON_OBJECT: "The response format",
    ConstraintKind.JSON_SCHEMA: "The JSON schema",
    ConstraintKind.GRAMMAR: "The grammar",
}


@dataclass(frozen=True, slots=True)
class ConstraintLimits:
    """For the start of the child and the compilation together. cpu_s: whole seconds, of processor time."""

    cpu_s: int = 5
    wall_s: float = 30.0
    memory_bytes: int = 1 << 30


def check_constraint(
    constraint: Constraint, proceed: Callable[[], Verdict], *, limits: ConstraintLimits | None = None
) -> bool:
    """Compile a constraint in a child process. False if `proceed`, which is asked all the while, said STOP.

    Raises SequenceFailed that says what is wrong with the constraint, or which limit it passed. The child is gone when
    this returns or raises.
    """
    bounds = limits or ConstraintLimits()
    while not _CHILDREN.acquire(timeout=_POLL_S):
        if proceed() is Verdict.STOP:
            return False
    try:
        return _try(constraint, proceed, bounds)
    finally:
        _CHILDREN.release()


def _try(constraint: Constraint, proceed: Callable[[], Verdict], bounds: ConstraintLimits) -> bool:
    what = WORDS[constraint.kind]
    task = {
        "kind": constraint.kind.value,
        "text": constraint.text,
        "cpu_s": bounds.cpu_s,
        "memory_bytes": bounds.memory_bytes,
    }
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        stdin.write(json.dumps(task).encode())
        stdin.seek(0)
        try:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "headpond_workers.engines.exllamav2.llguidance_probe"],
                stdin=stdin, stdout=stdout, stderr=stderr,
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            )  # fmt: skip
        except OSError as error:
            raise EngineError(
                f"Cannot start a process to try a constraint in: {error.strerror or error}. "
                "Free some memory or processes on this machine."
            ) from error
        try:
            waited_s = 0.0
            while True:
                try:
                    status = child.wait(_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    waited_s += _POLL_S
                if proceed() is Verdict.STOP:
                    return False
                if waited_s >= bounds.wall_s:
                    raise SequenceFailed(
                        f"{what} was stopped: to compile it takes more than {bounds.wall_s:g} s. Make it simpler."
                    )
        finally:
            child.kill()
            child.wait()
        stdout.seek(0)
        stderr.seek(0)
        reply, said = stdout.read(1 << 16), stderr.read(1 << 16)
    if status == -signal.SIGXCPU:
        raise SequenceFailed(
            f"{what} was stopped: to compile it takes more than {bounds.cpu_s} s of processor time. Make it simpler."
        )
    if status != 0:
        raise SequenceFailed(f"{what} broke the process that tried it ({_end(status, said)}). Make it simpler.")
    if problem := json.loads(reply)["failed"]:
        raise SequenceFailed(f"{what} cannot be used: {problem.rstrip('.')}. Correct it, or leave it out.")
    return True


def _end(status: int, said: bytes) -> str:
    if status < 0:
        return signal.Signals(-status).name
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return repr(lines[-1][:300]) if lines else f"status {status}"
