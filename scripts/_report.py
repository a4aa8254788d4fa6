"""What pytest's report says about tests that did not run. Standard library only. Used by .ci/run."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ALLOWED_REASON = re.compile(r"gpu\b", re.IGNORECASE)
"""A test may be skipped in CI only where it needs a device; its reason then begins with 'gpu'."""


@dataclass(frozen=True)
class Report:
    """What became of the tests of one run."""

    ran: int
    """Tests that were executed, whatever came of it."""
    skipped: tuple[tuple[str, str], ...]
    """Name and reason of each test that was skipped or expected to fail."""

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read a JUnit report as pytest writes it. Raises OSError, or ElementTree.ParseError."""
        ran = 0
        skipped = []
        # The report was written by our own pytest a moment ago: no hostile XML.
        for case in ElementTree.parse(path).iter("testcase"):  # noqa: S314
            skip = case.find("skipped")
            if skip is None:
                ran += 1
            else:
                name = "::".join(part for part in (case.get("classname"), case.get("name")) if part)
                skipped.append((name, skip.get("message", "")))
        return cls(ran, tuple(skipped))

    def objections(self) -> list[str]:
        """Why CI refuses this run, a line each; empty if it does not."""
        lines = [
            f"{name} did not run: {reason or 'no reason given'}"
            for name, reason in self.skipped
            if not ALLOWED_REASON.match(reason)
        ]
        if self.ran == 0:
            lines.append("no test ran")
        return lines


def main(arguments: Sequence[str]) -> int:
    """REPORT.xml: exit 1, saying why, if tests were left out for anything but a missing GPU."""
    if len(arguments) != 1:
        print("usage: _report.py REPORT.xml", file=sys.stderr)
        return 2
    try:
        objections = Report.read(Path(arguments[0])).objections()
    except (OSError, ElementTree.ParseError) as error:
        objections = [f"pytest left no report that can be read: {error}"]
    if objections:
        print("CI refuses tests that did not run, but for reasons that begin with 'gpu':", file=sys.stderr)
        print("\n".join(f"    {line}" for line in objections), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
