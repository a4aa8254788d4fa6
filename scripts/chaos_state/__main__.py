"""scripts/chaos state: a deployment with storage, everything in it killed at random, and all of Redis lost in between.

Exit status: as of scripts/chaos.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# What the programs share, and how a machine is described, is told once, beside this folder.
sys.path.append(str(Path(__file__).resolve().parents[1] / "chaos_runs"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "chaos_models"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import program
import state_page
from program import count, positive, say
from state_record import FILE
from state_run import Parameters, run
from storm import Limit

DEFAULT_KILLS = 500


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    return program.guarded(render if options.command == "render" else lambda: _run(options))


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
    program.add_command(parser, pattern="state*.json")
    parser.add_argument("--seed", type=int, default=1, help="of jobs, blows, losses and readers; default 1")
    parser.add_argument(
        "--kills", type=count, metavar="N",
        help=f"until N kills have counted; default {DEFAULT_KILLS} without --seconds",
    )  # fmt: skip
    parser.add_argument("--seconds", type=positive, help="for so long")
    parser.add_argument("--losses", type=count, default=4, metavar="N", help="of all of Redis; default 4")
    parser.add_argument("--workers", type=count, default=3, metavar="N", help="worker processes; default 3")
    parser.add_argument("--interval-s", type=positive, default=0.5, help="mean time between two blows; default 0.5")
    program.add_outputs(parser, kept="configuration, data and logs")
    return parser


def _run(options: argparse.Namespace) -> int:
    kills = options.kills if options.kills or options.seconds else DEFAULT_KILLS
    parameters = Parameters(
        options.seed, Limit(kills, options.seconds), options.losses, options.workers, options.interval_s
    )
    again = program.command_again(
        "scripts/chaos state", options, ("seed", "kills", "seconds", "losses", "workers", "interval_s")
    )
    return program.carry_out(
        options, lambda folder: run(parameters, folder, progress=say), FILE.to_json,
        again=f"The same jobs and plan of blows again: {again}",
    )  # fmt: skip


def render() -> int:
    program.render_page(state_page.render(FILE.load(program.RECORDS)), state_page.BEGIN, state_page.END)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
