"""scripts/chaos models: real processes that push, pull, move aliases, delete and collect, each killed at random.

Exit status: as of scripts/chaos.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# What the two programs share, and how a machine is described, is told once, beside this folder.
sys.path.append(str(Path(__file__).resolve().parents[1] / "chaos_runs"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import models_page
import program
from load import LoadParameters
from load_run import run_load
from models_record import FILE, Record
from models_run import Parameters, run
from program import count, positive, say
from storm import Limit

DEFAULT_KILLS = 500


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    return program.guarded(render if options.command == "render" else lambda: _run(options))


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
    program.add_command(parser, pattern="models*.json")
    parser.add_argument("--seed", type=int, default=1, help="of tasks, contents and kills; default 1")
    parser.add_argument(
        "--kills", type=count, metavar="N",
        help=f"until N kills have counted; default {DEFAULT_KILLS} without --seconds",
    )  # fmt: skip
    parser.add_argument("--seconds", type=positive, help="for so long")
    parser.add_argument(
        "--grace-s", type=positive, default=2.0, help="of the collector: how old an intent is that it drops; default 2"
    )
    parser.add_argument(
        "--survey-kills", type=count, default=50, metavar="N", help="counted kills from one survey to the next"
    )
    parser.add_argument(
        "--workers", type=count, metavar="N",
        help="under load instead: N workers follow an alias and serve jobs, and are killed too, as is the persister; "
        "then --kills is 0 by default",
    )  # fmt: skip
    parser.add_argument(
        "--moves", type=count, default=20, help="with --workers: moves of the alias, at least; default 20"
    )
    parser.add_argument(
        "--rollover", choices=["in-place", "side-by-side"], default="in-place", help="with --workers; default in-place"
    )
    program.add_outputs(parser, kept="data and logs")
    return parser


def _run(options: argparse.Namespace) -> int:
    alone = options.workers is None
    kills = options.kills if options.kills or options.seconds else DEFAULT_KILLS if alone else 0
    limit = Limit(kills, options.seconds)

    def make(folder: Path) -> Record:
        if alone:
            return run(Parameters(options.seed, limit, options.grace_s, options.survey_kills), folder, progress=say)
        load = LoadParameters(options.seed, limit, options.moves, options.workers, options.rollover, options.grace_s)
        return run_load(load, folder, progress=say)

    names = ("seed", "kills", "seconds", "grace_s", "survey_kills", "workers", "moves", "rollover")
    again = program.command_again("scripts/chaos models", options, names)
    return program.carry_out(options, make, FILE.to_json, again=f"The same plan of tasks and kills again: {again}")


def render() -> int:
    program.render_page(models_page.render(FILE.load(program.RECORDS)), models_page.BEGIN, models_page.END)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
