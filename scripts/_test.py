"""scripts/test: sets .venv up, then runs every check and says what came of each. Standard library only."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import _bootstrap

REPORT = _bootstrap.ROOT / "build" / "reports" / "pytest.xml"
"""JUnit report of the last run. .ci/run reads it."""
FAST_LIMIT_S = 300.0
SIDE_BY_SIDE = 3
SLOWEST = ("--durations=40", "--durations-min=5")
"""What has pytest tell which tests took longest, and longer than 5 s: all of them have 45 minutes together."""


@dataclass(frozen=True)
class Step:
    """One check: a command of .venv that exits 0 if all is well."""

    name: str
    command: Sequence[str | Path]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    step: Step
    exit_status: int
    seconds: float

    @property
    def said(self) -> str:
        return "ok" if self.exit_status == 0 else f"FAILED (exit {self.exit_status})"


DECLINED = "HEADPOND_TEST_WITHOUT"
"""Environment variable of pytest: what the person who runs the tests did not want, separated by commas."""
EXTRA_OF_TESTS = {"exllamav2": "test-exllamav2"}
"""What can be declined, and the extra that is then not installed."""


def extras_for(without: Sequence[str]) -> list[str]:
    return ["dev", *(extra for name, extra in EXTRA_OF_TESTS.items() if name not in without)]


def steps(python: Path, *, pytest_arguments: Sequence[str], without: Sequence[str] = ()) -> list[Step]:
    """Every check, the quick ones first."""
    scripts = _bootstrap.ROOT / "scripts"
    lint_imports = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    return [
        Step("ruff check", [python, "-m", "ruff", "check"]),
        Step("ruff format", [python, "-m", "ruff", "format", "--check"]),
        Step("mypy", [python, "-m", "mypy"]),
        # These import each other by file name, as Python finds them in the folder of the script that it runs.
        Step("mypy scripts", [python, "-m", "mypy", *sorted(scripts.glob("_*.py"))], {"MYPYPATH": str(scripts)}),
        *_of_programs(python),
        Step("import-linter", [python, "-c", lint_imports]),
        Step(
            "pytest",
            [
                python,
                "-m",
                "pytest",
                f"--junitxml={REPORT}",
                *SLOWEST,
                *side_by_side(pytest_arguments),
                *pytest_arguments,
            ],
            {DECLINED: ",".join(without)},
        ),
    ]


def side_by_side(pytest_arguments: Sequence[str]) -> list[str]:
    """What has pytest run in several processes, unless its arguments say otherwise.

    Most tests wait for servers and leases, so two cores bear more than two. A file's tests stay together: they share
    engines that are slow to load.
    """
    alone = ("-n", "--numprocesses", "--dist", "-p", "-s", "--capture", "--pdb", "--trace", "--collect-only", "--co")
    return (
        []
        if any(word.startswith(alone) for word in pytest_arguments)
        else ["-n", str(SIDE_BY_SIDE), "--dist", "loadfile"]
    )


PROGRAMS = {
    "bench": ("benchmarks",),
    "chaos": ("chaos_runs", "benchmarks"),
    "chaos models": ("chaos_models", "chaos_runs", "benchmarks"),
    "chaos state": ("chaos_state", "chaos_models", "chaos_runs", "benchmarks"),
}
"""Folders of scripts/ that are programs: each name's own folder, then those that it takes modules from."""


def _of_programs(python: Path) -> list[Step]:
    """These import headpond, so they are checked only where its sources are."""
    scripts = _bootstrap.ROOT / "scripts"
    if not (_bootstrap.ROOT / "broker").is_dir():
        return []
    return [
        Step(
            f"mypy {name}",
            [python, "-m", "mypy", *sorted((scripts / folders[0]).glob("*.py"))],
            {"MYPYPATH": ":".join(str(scripts / folder) for folder in folders)},
        )
        for name, folders in PROGRAMS.items()
    ]


def marker_expression(*, fast: bool, given: str | None) -> str | None:
    """What pytest's -m is to be: --fast narrows what a person asked for, it does not replace it."""
    if not fast:
        return given
    return f"({given}) and not slow" if given else "not slow"


def run(step: Step) -> Outcome:
    """Run one check in the checkout, its output going straight to the terminal."""
    print(f"\n==> {step.name}", flush=True)
    started = time.monotonic()
    completed = subprocess.run(
        step.command, cwd=_bootstrap.ROOT, env=_bootstrap.child_environment(**step.environment), check=False
    )
    # A signal ends a process with a negative code; shells say 128 + signal.
    status = completed.returncode if completed.returncode >= 0 else 128 - completed.returncode
    outcome = Outcome(step, status, time.monotonic() - started)
    print(f"==> {step.name}: {outcome.said}, {outcome.seconds:.1f} s", flush=True)
    return outcome


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/test",
        usage="scripts/test [--fast] [--without exllamav2] [pytest arguments ...]",
        description="Set up .venv if needed, then run ruff, mypy, import-linter and pytest. All of them run, also "
        "when one fails; the exit status is that of the first failure.",
        epilog=f"Other arguments go to pytest, such as -k NAME or a file. Its report: {REPORT}",
        allow_abbrev=False,
    )
    parser.add_argument("--fast", action="store_true", help="leave out tests marked slow; under 5 minutes")
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        choices=sorted(EXTRA_OF_TESTS),
        help="do not install torch and exllamav2, which are large; their tests are then skipped by name",
    )
    parser.add_argument("-m", dest="markers", metavar="EXPRESSION", help="pytest's -m; --fast narrows it further")
    options, pytest_arguments = parser.parse_known_args(arguments)

    started = time.monotonic()
    python = _bootstrap.ensure(extras_for(options.without))
    # An earlier run's report must not be taken for this one's.
    REPORT.unlink(missing_ok=True)
    if expression := marker_expression(fast=options.fast, given=options.markers):
        pytest_arguments = ["-m", expression, *pytest_arguments]
    outcomes = [run(step) for step in steps(python, pytest_arguments=pytest_arguments, without=options.without)]
    seconds = time.monotonic() - started

    print("\nSummary")
    for outcome in outcomes:
        print(f"    {outcome.step.name:<14} {outcome.seconds:7.1f} s  {outcome.said}")
    print(f"    {'all':<14} {seconds:7.1f} s", flush=True)
    if options.fast and seconds > FAST_LIMIT_S:
        print(f"--fast is to take under {FAST_LIMIT_S:.0f} s. What is slow: scripts/test --fast --durations=10")
    return next((outcome.exit_status for outcome in outcomes if outcome.exit_status != 0), 0)


if __name__ == "__main__":
    sys.exit(_bootstrap.guarded(main, sys.argv[1:]))
