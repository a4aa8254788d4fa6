"""DB-GPT in a virtual environment of its own, which nothing else of headpond sees.

FOLDER/                  $HEADPOND_CACHE/peers/dbgpt-DIGEST, else ~/.cache/headpond/peers/dbgpt-DIGEST; the digest
                         is of dbgpt-requirements.txt
  env/                   the environment
  install.log            what pip said last
  installed              written last: without it, all is made anew
  lock                   held (flock) by the one process that installs
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from child import BenchmarkError

from headpond_workers.models.prepare import cache_folder
from headpond_workers.supervision.private_files import last_lines, private_folder

REQUIREMENTS = Path(__file__).resolve().parent / "dbgpt-requirements.txt"
INSTALL_TIMEOUT_S = 1800.0


class Kernels(StrEnum):
    """For which instruction sets llama.cpp is compiled.

    NATIVE: all that this processor has: what pip does when it installs DB-GPT. PORTABLE: AVX2 and no more, as
    xllamacpp's wheel is.
    """

    NATIVE = "native"
    PORTABLE = "portable"


_CMAKE_ARGS = {Kernels.NATIVE: "-DGGML_NATIVE=ON", Kernels.PORTABLE: "-DGGML_NATIVE=OFF"}


def prepare_dbgpt(kernels: Kernels, *, progress: Callable[[str], None]) -> Path:
    """The Python of an environment that has what dbgpt-requirements.txt names, made if it is not there.

    Takes minutes then. Raises BenchmarkError saying why it cannot be made.
    """
    cache_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = private_folder(private_folder(cache_folder() / "peers") / f"dbgpt-{kernels.value}-{_digest()}")
    with open(folder / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            progress(f"peers: installing DB-GPT and compiling its llama.cpp with {kernels.value} kernels, once")
            began = time.monotonic()
            _install(folder, kernels)
            (folder / "installed").touch()
            progress(f"peers: DB-GPT is installed, after {time.monotonic() - began:.0f} s")
    return folder / "env" / "bin" / "python"


def _digest() -> str:
    digest = hashlib.sha256(REQUIREMENTS.read_bytes())
    # What is compiled for one processor may not run on another one that shares this cache.
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith(("flags", "Features")):
            digest.update(" ".join(sorted(line.split())).encode())
            break
    return digest.hexdigest()[:12]


def versions_of(python: Path, packages: tuple[str, ...]) -> dict[str, str]:
    """Of those of the packages that are installed there."""
    program = (
        "import importlib.metadata as m, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(name, m.version(name))\n"
        "    except m.PackageNotFoundError: pass\n"
    )
    answer = subprocess.run([python, "-I", "-c", program, *packages], capture_output=True, text=True, check=True)
    return dict(line.split() for line in answer.stdout.splitlines())


def _install(folder: Path, kernels: Kernels) -> None:
    log = folder / "install.log"
    environment = folder / "env"
    # Not sys.executable: an environment made by an environment's Python would lean on that one.
    base = getattr(sys, "_base_executable", sys.executable)
    pip = [str(environment / "bin" / "python"), "-I", "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "ab") as output:
        for command in (
            [base, "-I", "-m", "venv", "--clear", str(environment)],
            # Without pip's cache: what it compiled once, it would not compile in another way.
            [*pip, "--no-cache-dir", "--requirement", str(REQUIREMENTS)],
        ):
            try:
                subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True, cwd=folder,
                    timeout=INSTALL_TIMEOUT_S, env=os.environ | {"CMAKE_ARGS": _CMAKE_ARGS[kernels]},
                )  # fmt: skip
            except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                raise BenchmarkError(
                    f"DB-GPT could not be installed ({type(error).__name__}). Its last words:\n{last_lines(log, 5)}"
                ) from error
