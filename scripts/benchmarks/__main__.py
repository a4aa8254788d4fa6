"""scripts/bench: measure headpond beside its peers, and write the raw samples and docs/benchmarks.md.

Exit status: 0 when the run came to its end, whether or not goals were met; 1 with a reason if it could not; 130 when
it was interrupted. All processes that it started have ended in each case.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import report
from document import Document, Measurement, load_document, measure, to_json
from interruption import exit_status_of
from machine import ROOT
from pairs import MIN_PAIRS

PAGE = ROOT / "docs" / "benchmarks.md"
SAMPLES = ROOT / "docs" / "benchmarks"
PART_SAMPLES = ROOT / "build" / "benchmarks"
QUICK_PAIRS = 2


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    return exit_status_of(partial(_work, options), failed="The benchmark could not be run")


def _work(options: argparse.Namespace) -> int:
    if options.command == "render":
        render_page()
    else:
        _run(options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure headpond beside its peers. Both sides run in turns; leave the machine alone meanwhile.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    about = {
        "queue": "the queue, beside dramatiq's RedisBroker and raw commands; about 15 minutes",
        "generate": "throughput and first token, beside the engine called directly; about 10 minutes",
        "engine": "the loop around exllamav2, beside its own generator, on a CPU; about 20 minutes. Sets up torch",
        "peers": "the same model behind llama.cpp's own server, dramatiq and DB-GPT; about 25 minutes",
        "storage": "pushes, pulls and aliases of versions, beside boto3 alone; about 10 minutes",
        "state": "what state in storage costs, outages, restores, stored prefixes; about 25 minutes",
    }
    for name, what in about.items():
        command = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
        command.add_argument(
            "--pairs", type=_pairs, metavar="N",
            help=f"pairs of runs; default {MIN_PAIRS}, fewer prove nothing; {QUICK_PAIRS} with --quick",
        )  # fmt: skip
        command.add_argument("--seed", type=int, default=1, help="of the workload; default 1")
        command.add_argument(
            "--out", type=Path, metavar="DIR",
            help=f"where {name}.json is written; default docs/benchmarks, or build/benchmarks for a part",
        )  # fmt: skip
        if names := report.NAMES.get(name):
            command.add_argument(
                "--only", action="append", default=[], choices=names, metavar="NAME",
                help=f"one measurement alone, may be repeated: {', '.join(names)}. Written as --quick is",
            )  # fmt: skip
        if name == "peers":
            command.add_argument(
                "--without", action="append", default=[], metavar="NAME",
                choices=("dramatiq", "dbgpt", "dbgpt-portable"),
                help="a peer to leave out, may be repeated: dramatiq, dbgpt, dbgpt-portable. Written as --quick is",
            )  # fmt: skip
        command.add_argument("--quick", action="store_true", help="much less of everything, to see that it works")
        command.add_argument("--json", action="store_true", help="print samples and summary as JSON")
    rendering = "write the generated part of docs/benchmarks.md anew from docs/benchmarks/*.json"
    commands.add_parser("render", help=rendering, description=rendering)
    return parser


def _pairs(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _run(options: argparse.Namespace) -> None:
    document = _measured(options)
    whole = not (document.quick or document.only or getattr(options, "without", None))
    folder = (options.out or (SAMPLES if whole else PART_SAMPLES)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{document.benchmark}.json"
    path.write_text(to_json(document), encoding="utf-8")
    _say(f"{options.command}: wrote {path}")
    if folder == SAMPLES:
        render_page()
    if options.json:
        print(json.dumps({**asdict(document), "summary": report.summary(document)}, indent=1))
    else:
        print(report.render([(document.benchmark, document)]))


def _measured(options: argparse.Namespace) -> Document:
    pairs = options.pairs or (QUICK_PAIRS if options.quick else MIN_PAIRS)
    with tempfile.TemporaryDirectory(prefix="headpond-bench-") as folder:
        arguments = {
            "pairs": pairs, "seed": options.seed, "quick": options.quick, "folder": Path(folder), "progress": _say,
        }  # fmt: skip
        only = options.only if options.command in report.NAMES else []
        not_run: dict[str, str] = {}
        # Each needs packages that the others can do without.
        run: Callable[..., list[Measurement]]
        match options.command:
            case "queue":
                from queue_suite import measure_queue

                run, arguments["only"] = measure_queue, only
            case "storage":
                from storage_suite import measure_storage

                run, arguments["only"] = measure_storage, only
            case "state":
                from storage_suite import measure_state

                run, arguments["only"] = measure_state, only
            case "generate":
                from generate_overhead import measure_generate

                run = measure_generate
            case "peers":
                from peer_suite import PeerSuite

                suite = PeerSuite(**arguments, only=only, without=options.without)
                run, arguments, not_run = suite.measure, {}, suite.not_run
            case _:
                from engine_loop import measure_engine

                run = measure_engine
        made = measure(options.command, quick=options.quick, seed=options.seed, only=only, run=lambda: run(**arguments))
        return replace(made, not_run=not_run)


def render_page() -> None:
    """Bring docs/benchmarks.md up to date with the samples beside it. Raises MalformedDocument."""
    documents = [(name, load_document(SAMPLES / f"{name}.json")) for name in report.BENCHMARKS]
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(report.replace_generated(page, report.render(documents)), encoding="utf-8")
    _say(f"wrote {PAGE}")


_BEGAN = time.monotonic()


def _say(line: str) -> None:
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
