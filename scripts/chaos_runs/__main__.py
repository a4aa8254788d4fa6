"""scripts/chaos: real processes, killed and cut off at random under load; afterwards every job is checked.

Exit status: see program.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# How a machine is described is told once, by the benchmarks.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import page
import program
from engines import TUNINGS, EngineName
from faults import FaultKind
from machine_steps import load_machine_runs
from program import count, positive, say
from record import FILE
from run import Parameters, run
from storm import Limit

DEFAULT_SECONDS = 60.0


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    return program.guarded(render if options.command == "render" else lambda: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos",
        description="Run jobs on real workers over a real server, and kill, stop and cut off both at random. At the "
        "end every job is checked: nothing lost, nothing twice, every id ended once.",
        epilog="Defaults that depend on the engine are tuned so that no innocent job is quarantined by bad luck. "
        "The same of versions of models: scripts/chaos models --help; of state in storage: scripts/chaos state --help",
        allow_abbrev=False,
    )
    program.add_command(parser, pattern="chaos*.json")
    parser.add_argument("--seed", type=int, default=1, help="of jobs, faults and readers; default 1")
    parser.add_argument(
        "--engine", type=EngineName, choices=list(EngineName), default=EngineName.SCRIPTED,
        help="llamacpp runs SmolLM2-135M, which is prepared first; default scripted",
    )  # fmt: skip
    parser.add_argument("--kills", type=count, metavar="N", help="until N kills have counted")
    parser.add_argument("--seconds", type=positive, help=f"for so long; default {DEFAULT_SECONDS:g} without --kills")
    parser.add_argument("--jobs", type=count, metavar="N", help="kept waiting or running all the time")
    parser.add_argument("--workers", type=count, metavar="M", help="worker processes")
    parser.add_argument("--slots", type=count, help="jobs that one worker runs together")
    parser.add_argument("--lease-s", type=positive, help="length of a lease")
    parser.add_argument("--interval-s", type=positive, help="mean time between two faults")
    parser.add_argument("--readers", type=count, default=4, help="threads that read streams; default 4")
    parser.add_argument(
        "--faults", type=_kinds, default=list(FaultKind), metavar="KINDS",
        help=f"of {','.join(FaultKind)}, separated by commas; default all",
    )  # fmt: skip
    program.add_outputs(parser, kept="configuration, logs and data")
    return parser


def _run(options: argparse.Namespace) -> int:
    tuning = TUNINGS[options.engine]
    seconds = options.seconds if options.seconds or options.kills else DEFAULT_SECONDS
    parameters = Parameters(
        engine=options.engine,
        seed=options.seed,
        workers=options.workers or tuning.workers,
        slots=options.slots or tuning.slots,
        jobs=options.jobs or tuning.jobs,
        lease_s=options.lease_s or tuning.lease_s,
        interval_s=options.interval_s or tuning.interval_s,
        tokens_per_s=tuning.tokens_per_s,
        readers=options.readers,
        kinds=tuple(options.faults),
        limit=Limit(options.kills, seconds),
    )
    return program.carry_out(
        options, lambda folder: run(parameters, folder, progress=say), FILE.to_json,
        again=f"The same jobs and plan of faults again: {_again(options)}",
    )  # fmt: skip


def _again(options: argparse.Namespace) -> str:
    names = ("seed", "engine", "kills", "seconds", "jobs", "workers", "slots", "lease_s", "interval_s", "readers")
    return f"{program.command_again('scripts/chaos', options, names)} --faults {','.join(options.faults)}"


def render() -> int:
    generated = page.generated(FILE.load(program.RECORDS), load_machine_runs(program.RECORDS))
    program.render_page(generated, page.BEGIN, page.END)
    return 0


def _kinds(text: str) -> list[FaultKind]:
    try:
        return [FaultKind(name.strip()) for name in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; there are {', '.join(FaultKind)}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
