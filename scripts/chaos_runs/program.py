"""What the programs of chaos have in common: how they begin and end, what they print and what they leave.

Exit status: 0 if nothing was wrong, 1 with a list of what was, or with the reason why the run could not be made; 130
when it was interrupted. All processes that it started have ended in each case.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from interruption import exit_status_of
from page import replace_between

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
RECORDS = ROOT / "docs" / "reliability"
SHOWN = 40
"""How much of what went wrong is printed; the file has all."""
_BEGAN = time.monotonic()


class Judged(Protocol):
    """A record of a run. wrong: what was found; empty if nothing."""

    @property
    def wrong(self) -> Sequence[str]: ...


R = TypeVar("R", bound=Judged)


def say(line: str) -> None:
    """Progress, with the time since the program began."""
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {line}", file=sys.stderr, flush=True)


def guarded(work: Callable[[], int]) -> int:
    """Do the program's work and return its exit status."""
    return exit_status_of(work, failed="The run could not be made")


def add_command(parser: argparse.ArgumentParser, *, pattern: str) -> None:
    """The word `run` or `render`. pattern: of the records that render takes."""
    parser.add_argument(
        "command", nargs="?", choices=["run", "render"], default="run",
        help=f"render: write the results of docs/reliability.md anew from docs/reliability/{pattern}",
    )  # fmt: skip


def add_outputs(parser: argparse.ArgumentParser, *, kept: str) -> None:
    """kept: what --logs keeps, in words."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was done and found")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help=f"keep {kept} there")


def carry_out(options: argparse.Namespace, run: Callable[[Path], R], write: Callable[[R], str], *, again: str) -> int:
    """Make a run in a folder of its own, write its record, and say what went wrong.

    options: with those of add_outputs. again: words and a command that repeat the run. Returns the exit status.
    """
    with tempfile.TemporaryDirectory(prefix="headpond-chaos-") as temporary:
        folder: Path = options.logs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        record = run(folder.resolve())
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(write(record), encoding="utf-8")
        say(f"wrote {options.json}")
    if not record.wrong:
        return 0
    print(f"{len(record.wrong)} things went wrong:", file=sys.stderr)
    for what in record.wrong[:SHOWN]:
        print(f"    {what}", file=sys.stderr)
    print(again, file=sys.stderr)
    return 1


def command_again(program: str, options: argparse.Namespace, names: Sequence[str]) -> str:
    """A command with those of the options that were given."""
    words = [program]
    for name in names:
        if (value := getattr(options, name)) is not None:
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            words.append(f"--{name.replace('_', '-')} {shown}")
    return " ".join(words)


def render_page(generated: str, begin: str, end: str) -> None:
    """Bring a part of docs/reliability.md up to date. begin, end: its markers."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replace_between(text, generated, begin, end), encoding="utf-8")
    say(f"wrote {PAGE}")


def count(text: str) -> int:
    """An argument: a whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def positive(text: str) -> float:
    """An argument: a number above 0."""
    number = float(text)
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError("more than 0")
    return number
