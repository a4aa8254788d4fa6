"""What an answer must look like, made into the rules of a grammar in a child process.

A schema or a grammar comes with a request: it may be wrong, or made to take all memory and time. The parsers bound
what they know of; the child bounds the rest, as the kernel does it. What kills the child costs one job.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from headpond.constraints import Constraint, ConstraintKind
from headpond.errors import EngineError, SequenceFailed
from headpond_workers.engines.grammar.gbnf import Grammar, Ranges
from headpond_workers.engines.grammar.gbnf_state import Program, program_of
from headpond_workers.engines.protocol import Verdict

_PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
"""What the child needs of the environment to find this very package."""
_ASK_EVERY_S = 0.5
_NAMES = {
    ConstraintKind.JSON_OBJECT: "response_format",
    ConstraintKind.JSON_SCHEMA: "JSON schema",
    ConstraintKind.GRAMMAR: "grammar",
}


@dataclass(frozen=True, slots=True)
class ConstraintLimits:
    """Of one constraint, for the start of the child as well. cpu_s: whole seconds, of processor time."""

    cpu_s: int = 10
    wall_s: float = 30.0
    memory_bytes: int = 1 << 29


class ConstraintCache:
    """Constraints that were checked, the last ones used; also those that were refused. Thread-safe."""

    def __init__(
        self,
        *,
        without: Ranges = (),
        entries: int = 256,
        elements: int = 1 << 18,
        limits: ConstraintLimits | None = None,
    ) -> None:
        """without: characters that an answer cannot have. entries, elements: how many constraints are kept, and of
        how many elements together.
        """
        self._without = without
        self._entries = entries
        self._elements = elements
        self._limits = limits or ConstraintLimits()
        self._kept: OrderedDict[Constraint, Program | str] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def program(self, constraint: Constraint, proceed: Callable[[], Verdict]) -> Program | None:
        """The rules of a constraint. proceed: asked twice a second; after STOP the answer is None.

        Raises SequenceFailed that says what is wrong with it, or which limit it passed.
        """
        with self._lock:
            known = self._kept.get(constraint)
            if known is not None:
                self._kept.move_to_end(constraint)
        if known is None:
            known = _checked(constraint, self._without, self._limits, proceed)
            if known is None:
                return None
            self._keep(constraint, known)
        if isinstance(known, str):
            raise SequenceFailed(f"The {_NAMES[constraint.kind]} of this request cannot be used: {known}.")
        return known

    def __len__(self) -> int:
        return len(self._kept)

    def _keep(self, constraint: Constraint, made: Program | str) -> None:
        with self._lock:
            before = self._kept.pop(constraint, None)
            self._held += _size(made) - (0 if before is None else _size(before))
            self._kept[constraint] = made
            while len(self._kept) > self._entries or (self._held > self._elements and len(self._kept) > 1):
                _, oldest = self._kept.popitem(last=False)
                self._held -= _size(oldest)


def _size(made: Program | str) -> int:
    return 1 if isinstance(made, str) else made.elements


def _checked(
    constraint: Constraint, without: Ranges, limits: ConstraintLimits, proceed: Callable[[], Verdict]
) -> Program | str | None:
    """The reason of a refusal instead of a program; None after a STOP."""
    task = {
        "kind": constraint.kind.value,
        "text": constraint.text,
        "without": without,
        "cpu_s": limits.cpu_s,
        "memory_bytes": limits.memory_bytes,
    }
    try:
        ended = _run(json.dumps(task).encode(), limits.wall_s, proceed)
    except subprocess.TimeoutExpired:
        return f"it takes more than {limits.wall_s:g} s to check"
    except OSError as error:
        raise EngineError(
            f"Cannot start a process to check a constraint in: {error.strerror or error}. "
            "Free some memory or processes on this machine."
        ) from error
    if ended is None:
        return None
    code, output, complaint = ended
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"it takes more than {limits.cpu_s} s of processor time to check"
    if code != 0:
        return f"it broke the process that checked it ({_end(code, complaint)})"
    reply = json.loads(output)
    if "refused" in reply:
        return str(reply["refused"]).rstrip(".")
    return program_of(Grammar(tuple(_rule(rule) for rule in reply["rules"])))


def _run(task: bytes, wall_s: float, proceed: Callable[[], Verdict]) -> tuple[int, bytes, bytes] | None:
    """Exit status, stdout and stderr of the child; None after a STOP. It is gone when this returns or raises."""
    left_s = wall_s
    given: bytes | None = task
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "headpond_workers.engines.grammar.constraint_probe"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
    ) as child:
        try:
            while True:
                try:
                    output, complaint = child.communicate(given, timeout=_ASK_EVERY_S)
                    return child.returncode, output, complaint
                except subprocess.TimeoutExpired:
                    left_s, given = left_s - _ASK_EVERY_S, None  # what was given is not given again
                    if left_s <= 0:
                        raise
                    if proceed() is Verdict.STOP:
                        return None
        finally:
            child.kill()


def _rule(rule: list[list[int | list[list[int]]]]) -> tuple[tuple[int | tuple[tuple[int, int], ...], ...], ...]:
    return tuple(
        tuple(part if isinstance(part, int) else tuple((low, high) for low, high in part) for part in alternative)
        for alternative in rule
    )


def _end(code: int, complaint: bytes) -> str:
    if code < 0:
        return signal.Signals(-code).name
    lines = complaint.decode("utf-8", "replace").strip().splitlines()
    return repr(lines[-1][:300]) if lines else f"status {code}"
