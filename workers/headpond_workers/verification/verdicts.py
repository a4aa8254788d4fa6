"""What a verification finds: one check a digest, and what they say together. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """What one check, or all together, came to."""

    SAME = "same"
    DIFFERS = "differs"
    UNKNOWN = "unknown"
    """It cannot be told: something is not stored, not known, or not here."""
    LEFT_OUT = "left out"
    """There was nothing to compare, or the engine cannot make the same twice. It counts for nothing."""


@dataclass(frozen=True, slots=True)
class Check:
    """stored: what the result names. found: what is there now. Both as people read them; '' where there is none."""

    name: str
    verdict: Verdict
    stored: str = ""
    found: str = ""
    reason: str = ""


def compare(name: str, stored: str | None, found: str | None, *, reason: str = "") -> Check:
    """stored: what the result names; None if it does not say. found: what there is now; None if that is not known, of
    which `reason` tells why."""
    if stored is None:
        return Check(name, Verdict.UNKNOWN, "", found or "", "the result does not name it")
    if found is None:
        return Check(name, Verdict.UNKNOWN, stored, "", reason)
    return Check(name, Verdict.SAME if stored == found else Verdict.DIFFERS, stored, found)


def unknown(name: str, reason: str, *, stored: str | None = None) -> Check:
    return Check(name, Verdict.UNKNOWN, stored or "", "", reason)


def together(checks: Iterable[Check]) -> Verdict:
    """DIFFERS if one differs, else UNKNOWN if one cannot be told, else SAME."""
    verdicts = {check.verdict for check in checks}
    if Verdict.DIFFERS in verdicts:
        return Verdict.DIFFERS
    # Nothing that was compared is no reason to call it the same.
    return Verdict.SAME if Verdict.SAME in verdicts and Verdict.UNKNOWN not in verdicts else Verdict.UNKNOWN


@dataclass(frozen=True, slots=True)
class Verification:
    """All of one job. state, version, tokens: of its result. died: the last lines of a process that ended without a
    word."""

    id: str
    checks: tuple[Check, ...]
    state: str = ""
    version: str = ""
    tokens: int = 0
    died: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        return together(self.checks)

    def document(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "id": self.id,
            "verdict": self.verdict.value,
            "state": self.state,
            "version": self.version,
            "tokens": self.tokens,
            "checks": [
                {
                    "name": check.name,
                    "verdict": check.verdict.value,
                    "stored": check.stored,
                    "found": check.found,
                    "reason": check.reason,
                }
                for check in self.checks
            ],
            "log": list(self.died),
        }
