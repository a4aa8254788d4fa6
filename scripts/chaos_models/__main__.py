"""scripts/chaos models: real processes that push, pull, move aliases, delete and collect, each killed at random.

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

# What the two programs share, and how a machine is described, is told once, beside this folder.
sys.path.append(str(Path(__file__).resolve().parents[1] / "chaos_runs"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import models_page
from load import LoadParameters
from load_run import run_load
from models_record import load_records, to_json
from models_run import Parameters, run
from page import replace_between
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
        prog="scripts/chaos models",
        description="Push, pull, promote, roll back, delete and collect versions of small models in one real storage, "
        "each in a process of its own that is killed with SIGKILL at a random moment, and the storage server now and "
        "then. All versions and aliases are checked, byte for byte: nothing acknowledged is lost, and nothing of what "
        "was killed stays.",
        epilog="Examples:  scripts/chaos models --kills 20   |   scripts/chaos models --seed 7 --json models.json",
        allow_abbrev=False,
    )
    parser.add_argument(
        "command", nargs="?", choices=["run", "render"], default="run",
        help="render: write the results of docs/reliability.md anew from docs/reliability/models*.json",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="of tasks, contents and kills; default 1")
    parser.add_argument(
        "--kills", type=_count, metavar="N",
        help=f"until N kills have counted; default {DEFAULT_KILLS} without --seconds",
    )  # fmt: skip
    parser.add_argument("--seconds", type=_positive, help="for so long")
    parser.add_argument(
        "--grace-s", type=_positive, default=2.0, help="of the collector: how old an intent is that it drops; default 2"
    )
    parser.add_argument(
        "--survey-kills", type=_count, default=50, metavar="N", help="counted kills from one survey to the next"
    )
    parser.add_argument(
        "--workers", type=_count, metavar="N",
        help="under load instead: N workers follow an alias and serve jobs, and are killed too, as is the persister; "
        "then --kills is 0 by default",
    )  # fmt: skip
    parser.add_argument(
        "--moves", type=_count, default=20, help="with --workers: moves of the alias, at least; default 20"
    )
    parser.add_argument(
        "--rollover", choices=["in-place", "side-by-side"], default="in-place", help="with --workers; default in-place"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was done and found")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep data and logs there")
    return parser


def _run(options: argparse.Namespace) -> int:
    alone = options.workers is None
    kills = options.kills if options.kills or options.seconds else DEFAULT_KILLS if alone else 0
    limit = Limit(kills, options.seconds)
    with tempfile.TemporaryDirectory(prefix="headpond-chaos-") as temporary:
        folder = options.logs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if alone:
            parameters = Parameters(options.seed, limit, options.grace_s, options.survey_kills)
            record = run(parameters, folder.resolve(), progress=_say)
        else:
            load = LoadParameters(
                options.seed, limit, options.moves, options.workers, options.rollover, options.grace_s
            )
            record = run_load(load, folder.resolve(), progress=_say)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(to_json(record), encoding="utf-8")
        _say(f"wrote {options.json}")
    if not record.wrong:
        return 0
    print(f"{len(record.wrong)} things went wrong:", file=sys.stderr)
    for what in record.wrong[:SHOWN]:
        print(f"    {what}", file=sys.stderr)
    print(f"The same plan of tasks and kills again: {_again(options)}", file=sys.stderr)
    return 1


def _again(options: argparse.Namespace) -> str:
    words = ["scripts/chaos models", f"--seed {options.seed}"]
    for name in ("kills", "seconds", "grace_s", "survey_kills", "workers", "moves", "rollover"):
        if (value := getattr(options, name)) is not None:
            words.append(f"--{name.replace('_', '-')} {value}")
    return " ".join(words)


def render_page() -> None:
    """Bring docs/reliability.md up to date with the records beside it. Raises MalformedDocument."""
    text = PAGE.read_text(encoding="utf-8")
    generated = models_page.render(load_records(RECORDS))
    PAGE.write_text(replace_between(text, generated, models_page.BEGIN, models_page.END), encoding="utf-8")
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
