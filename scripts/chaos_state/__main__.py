"""scripts/chaos state: a deployment with storage, everything in it killed at random, and all of Redis lost in between.

Exit status: as of scripts/chaos.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

# What the programs share, and how a machine is described, is told once, beside this folder.
sys.path.append(str(Path(__file__).resolve().parents[1] / "chaos_runs"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "chaos_models"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import state_page
from page import replace_between
from state_record import load_records, to_json
from state_run import Parameters, run
from storm import Limit

from headpond.errors import HeadpondError

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
RECORDS = ROOT / "docs" / "reliability"
DEFAULT_KILLS = 500
SHOWN = 40
"""How much of what went wrong is printed; the file has all."""


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    # As Ctrl-C: every context is left, and with it every process.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if options.command == "render":
            render_page()
            return 0
        return _run(options)
    except HeadpondError as error:
        print(f"The run could not be made: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; nothing was written.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos state",
        description="Run jobs on a deployment with storage; kill persisters, workers, the Valkey and the SeaweedFS at "
        "random, and take storage away for up to a minute. Now and then all of Redis is lost amid work and restored, "
        "by a restore that is killed, too. What storage holds is compared with Redis, and every job and reading is "
        "checked.",
        epilog="Examples:  scripts/chaos state --kills 40 --losses 1   |   scripts/chaos state --seed 7 --json FILE",
        allow_abbrev=False,
    )
    parser.add_argument(
        "command", nargs="?", choices=["run", "render"], default="run",
        help="render: write the results of docs/reliability.md anew from docs/reliability/state*.json",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="of jobs, blows, losses and readers; default 1")
    parser.add_argument(
        "--kills", type=_count, metavar="N",
        help=f"until N kills have counted; default {DEFAULT_KILLS} without --seconds",
    )  # fmt: skip
    parser.add_argument("--seconds", type=_positive, help="for so long")
    parser.add_argument("--losses", type=_count, default=4, metavar="N", help="of all of Redis; default 4")
    parser.add_argument("--workers", type=_count, default=3, metavar="N", help="worker processes; default 3")
    parser.add_argument("--interval-s", type=_positive, default=0.5, help="mean time between two blows; default 0.5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was done and found")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep configuration, data and logs there")
    return parser


def _run(options: argparse.Namespace) -> int:
    kills = options.kills if options.kills or options.seconds else DEFAULT_KILLS
    parameters = Parameters(
        options.seed, Limit(kills, options.seconds), options.losses, options.workers, options.interval_s
    )
    with tempfile.TemporaryDirectory(prefix="headpond-chaos-") as temporary:
        folder = options.logs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        record = run(parameters, folder.resolve(), progress=_say)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(to_json(record), encoding="utf-8")
        _say(f"wrote {options.json}")
    if not record.wrong:
        return 0
    print(f"{len(record.wrong)} things went wrong:", file=sys.stderr)
    for what in record.wrong[:SHOWN]:
        print(f"    {what}", file=sys.stderr)
    print(f"The same jobs and plan of blows again: {_again(options)}", file=sys.stderr)
    return 1


def _again(options: argparse.Namespace) -> str:
    words = ["scripts/chaos state", f"--seed {options.seed}"]
    for name in ("kills", "seconds", "losses", "workers", "interval_s"):
        if (value := getattr(options, name)) is not None:
            words.append(f"--{name.replace('_', '-')} {value:g}")
    return " ".join(words)


def render_page() -> None:
    """Bring docs/reliability.md up to date with the records beside it. Raises MalformedDocument."""
    text = PAGE.read_text(encoding="utf-8")
    generated = state_page.render(load_records(RECORDS))
    PAGE.write_text(replace_between(text, generated, state_page.BEGIN, state_page.END), encoding="utf-8")
    _say(f"wrote {PAGE}")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError("more than 0")
    return number


_BEGAN = time.monotonic()


def _say(line: str) -> None:
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {line}", file=sys.stderr, flush=True)


def _interrupt(_signum: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
