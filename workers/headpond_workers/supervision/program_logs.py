"""What programs of a deployment wrote last, and how they ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headpond_workers.supervision.launcher import HELD_BACK, STARTS
from headpond_workers.supervision.private_files import last_lines


@dataclass(frozen=True, slots=True)
class ProgramLogs:
    """The logs in one folder."""

    folder: Path

    def last_line(self, name: str) -> str:
        """What the program said last in its present or last life; empty if nothing."""
        for line in reversed(last_lines(self.folder / f"{name}.log", 20).split("\n")):
            if line.startswith(STARTS):
                return ""
            if not line.startswith(HELD_BACK):
                return line
        return ""

    def last_exit(self, name: str) -> str:
        """How the program ended last, in supervisord's words, such as 'terminated by SIGKILL'."""
        for line in reversed(self.of_supervisor(500).split("\n")):
            _, found, reason = line.partition(f"exited: {name} (")
            if found:
                return reason.partition(";")[0]
        return "see headpond logs supervisord"

    def of_supervisor(self, lines: int = 5) -> str:
        """The end of supervisord's own log."""
        return last_lines(self.folder / "supervisord.log", lines)
