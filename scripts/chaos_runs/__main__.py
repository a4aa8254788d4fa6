"""scripts/chaos: real processes, killed and cut off at random under load; afterwards every job is checked.

Exit status: 0 if nothing was wrong, 1 with a list of what was, or with the reason why the run could not be made; 130
when it was interrupted. All processes that it started have ended in each case.
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

# How a machine is described is told once, by the benchmarks.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import page
from engines import TUNINGS, EngineName
from faults import FaultKind
from machine_steps import load_machine_runs
from record import load_records, to_json
from run import Parameters, run
from storm import Limit

from headpond.errors import HeadpondError

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
RECORDS = ROOT / "docs" / "reliability"
DEFAULT_SECONDS = 60.0
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
        prog="scripts/chaos",
        description="Run jobs on real workers over a real server, and kill, stop and cut off both at random. At the "
        "end every job is checked: nothing lost, nothing twice, every id ended once.",
        epilog="Defaults that depend on the engine are tuned so that no innocent job is quarantined by bad luck. "
        "The same of versions of models: scripts/chaos models --help; of state in storage: scripts/chaos state --help",
        allow_abbrev=False,
    )
    parser.add_argument(
        "command", nargs="?", choices=["run", "render"], default="run",
        help="render: write the results of docs/reliability.md anew from docs/reliability/chaos*.json",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="of jobs, faults and readers; default 1")
    parser.add_argument(
        "--engine", type=EngineName, choices=list(EngineName), default=EngineName.SCRIPTED,
        help="llamacpp runs SmolLM2-135M, which is prepared first; default scripted",
    )  # fmt: skip
    parser.add_argument("--kills", type=_count, metavar="N", help="until N kills have counted")
    parser.add_argument("--seconds", type=_positive, help=f"for so long; default {DEFAULT_SECONDS:g} without --kills")
    parser.add_argument("--jobs", type=_count, metavar="N", help="kept waiting or running all the time")
    parser.add_argument("--workers", type=_count, metavar="M", help="worker processes")
    parser.add_argument("--slots", type=_count, help="jobs that one worker runs together")
    parser.add_argument("--lease-s", type=_positive, help="length of a lease")
    parser.add_argument("--interval-s", type=_positive, help="mean time between two faults")
    parser.add_argument("--readers", type=_count, default=4, help="threads that read streams; default 4")
    parser.add_argument(
        "--faults", type=_kinds, default=list(FaultKind), metavar="KINDS",
        help=f"of {','.join(FaultKind)}, separated by commas; default all",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was done and found")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep configuration, logs and data there")
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
    print(f"The same jobs and plan of faults again: {_again(options)}", file=sys.stderr)
    return 1


def _again(options: argparse.Namespace) -> str:
    words = ["scripts/chaos", f"--seed {options.seed}", f"--engine {options.engine.value}"]
    for name in ("kills", "seconds", "jobs", "workers", "slots", "lease_s", "interval_s", "readers"):
        if (value := getattr(options, name)) is not None:
            words.append(f"--{name.replace('_', '-')} {value:g}")
    return " ".join([*words, f"--faults {','.join(options.faults)}"])


def render_page() -> None:
    """Bring docs/reliability.md up to date with the records beside it. Raises MalformedDocument."""
    text = PAGE.read_text(encoding="utf-8")
    generated = page.generated(load_records(RECORDS), load_machine_runs(RECORDS))
    PAGE.write_text(page.replace_generated(text, generated), encoding="utf-8")
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


def _kinds(text: str) -> list[FaultKind]:
    try:
        return [FaultKind(name.strip()) for name in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; there are {', '.join(FaultKind)}") from error


_BEGAN = time.monotonic()


def _say(line: str) -> None:
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {line}", file=sys.stderr, flush=True)


def _interrupt(_signum: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
