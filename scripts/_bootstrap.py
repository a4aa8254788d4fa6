"""Makes .venv hold headpond and what it needs, on a machine that has nothing but Python. Standard library only.

Another script of this folder either calls `ensure()` from a Python file that `_run` started, or is as short as

    exec /bin/sh "$here/_run" _bootstrap.py worker,llama,embedded "$here/demo.py" "$@"

which sets those extras up and then runs demo.py, with its arguments, in .venv's Python.

.venv/.headpond-setup.json says what .venv was last set up from. It is removed before any change and written after
the last one, so a set-up that was cut off leaves none, and the next run starts anew.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import TextIO

from _diagnosis import DISK_FULL, advice_for, last_lines

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
BINARIES = ROOT / "requirements" / "binaries.txt"
_STAMP = VENV / ".headpond-setup.json"
_LOCK = VENV / ".headpond-lock"
_MADE_HERE = VENV / ".headpond-made"
"""Stands in a .venv that this file made and may clear. One that a person made is never cleared."""

SIZES = {
    "test-exllamav2": "torch, exllamav2 and transformers for the tests of the exllamav2 engine, which run on the CPU: "
    "about 1.3 GB on disk with a CPU build of torch; several GB with a CUDA build, which is what pip takes by "
    "default on x86-64 Linux. Without them: scripts/test --without exllamav2",
}
"""Extras so large that a person is told before they are installed."""


class SetupError(Exception):
    """Set-up cannot go on. `str()` of it says what happened and what to do."""


@dataclass(frozen=True)
class Setup:
    """What a .venv is set up from."""

    root: str
    """The checkout's path: .venv's console scripts and its link to the sources hold it."""
    python: str
    """Implementation, version and processor, such as 'cpython-311 x86_64'."""
    digest: str
    """Over pyproject.toml and requirements/."""
    extras: tuple[str, ...]
    """Sorted, with those that other extras stand for."""


class Work(Enum):
    """How much a .venv needs before it can be used."""

    NOTHING = "nothing"
    INSTALL = "install"
    REBUILD = "rebuild"


def work_needed(has: Setup | None, wants: Setup) -> Work:
    """What leads from `has` to `wants`. None: nothing is known about .venv, or it was cut off amid a change."""
    if has is None or (has.root, has.python) != (wants.root, wants.python):
        return Work.REBUILD
    if has.digest != wants.digest or not set(wants.extras) <= set(has.extras):
        return Work.INSTALL
    return Work.NOTHING


def requirements_digest(root: Path) -> str:
    """SHA-256, in hex, over the names and contents of pyproject.toml and all of requirements/."""
    digest = hashlib.sha256()
    for path in [root / "pyproject.toml", *sorted((root / "requirements").glob("*.txt"))]:
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def expand_extras(root: Path, extras: Iterable[str]) -> tuple[str, ...]:
    """`extras` with those that they stand for: 'dev' is 'headpond[worker,...]' and tools. Sorted."""
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except tomllib.TOMLDecodeError as error:
        raise SetupError(f"{root / 'pyproject.toml'} is not valid TOML: {error}") from error
    known: dict[str, list[str]] = project.get("optional-dependencies", {})
    itself = re.compile(rf"{re.escape(project['name'])}\[([^\]]*)\]")
    found: set[str] = set()
    waiting = list(extras)
    while waiting:
        extra = waiting.pop()
        if extra not in known:
            raise SetupError(f"pyproject.toml has no extra '{extra}' (it has: {', '.join(sorted(known))}).")
        if extra in found:
            continue
        found.add(extra)
        for requirement in known[extra]:
            if match := itself.fullmatch(requirement.strip()):
                waiting += [name.strip() for name in match[1].split(",")]
    return tuple(sorted(found))


def require_library(soname: str, *, needed_by: str, debian: str, fedora: str) -> None:
    """Raise SetupError if the dynamic linker does not find `soname`."""
    try:
        ctypes.CDLL(soname)
    except OSError as error:
        raise SetupError(
            f"{needed_by} needs the library {soname}, which this machine lacks ({error}). Install it and run this "
            f"again: apt install {debian} (Debian, Ubuntu), dnf install {fedora} (Fedora)."
        ) from error


def ensure(extras: Sequence[str] = ("dev",)) -> Path:
    """Set .venv up with headpond, editable, and `extras`; return its Python.

    Takes a fraction of a second when there is nothing to do. Extras that are there already stay. Of several
    processes that call this at once, one does the work and the others wait for it. Raises SetupError.
    """
    wanted = expand_extras(ROOT, extras)
    if "llama" in wanted:
        require_library("libgomp.so.1", needed_by="llama.cpp", debian="libgomp1", fedora="libgomp")
    try:
        with _locked() as lock:
            _bring_up_to_date(wanted, lock)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SetupError(DISK_FULL) from error
        raise SetupError(f"Cannot set up {VENV}: {error}. {advice_for(str(error))}") from error
    return PYTHON


def child_environment(**additions: str) -> dict[str, str]:
    """The environment for programs of .venv: this process's, less what would lead them to other packages."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")}
    return kept | additions


def guarded(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Run `main`; a SetupError or Ctrl-C ends in a plain line and an exit status, not in a traceback."""
    try:
        return main(arguments)
    except SetupError as error:
        print(f"Set-up failed. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


@contextmanager
def _locked() -> Iterator[int]:
    """Hold .venv's lock; yields its file descriptor. The kernel frees it when the last holder is gone."""
    VENV.mkdir(exist_ok=True)
    descriptor = os.open(_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another script that is setting up .venv ...", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _bring_up_to_date(extras: tuple[str, ...], lock: int) -> None:
    python = _python_of_venv()
    has = _read_stamp() if python else None
    wants = Setup(str(ROOT), python or _python_tag(), requirements_digest(ROOT), extras)
    work = work_needed(has, wants)
    if work is Work.NOTHING:
        return
    if has is not None and work is Work.INSTALL:
        wants = Setup(wants.root, wants.python, wants.digest, tuple(sorted({*has.extras, *extras})))
    started = time.monotonic()
    print(f"Setting up .venv (Python {platform.python_version()}, extras {', '.join(wants.extras)}).", flush=True)
    there = has.extras if has is not None and work is Work.INSTALL else ()
    for extra in wants.extras:
        if extra in SIZES and extra not in there:
            print(f"  {extra}: {SIZES[extra]}.", flush=True)
    _STAMP.unlink(missing_ok=True)
    with os.fdopen(os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as log:
        if work is Work.REBUILD:
            made_by_a_person = (VENV / "pyvenv.cfg").exists() and not _MADE_HERE.exists()
            if not made_by_a_person:
                _create_venv(log, lock)
                wants = Setup(wants.root, _python_tag(), wants.digest, wants.extras)
            elif not python:
                raise SetupError(f"{VENV} has no working Python 3.11 or newer. Delete it and run this again.")
        if BINARIES.exists():
            locked = ["--require-hashes", "--no-deps", "-r", str(BINARIES)]
            _pip_install("the packages locked by hash", locked, log, lock)
        editable = f"{ROOT}[{','.join(wants.extras)}]" if wants.extras else str(ROOT)
        _pip_install("headpond and what it needs", ["--editable", editable], log, lock)
    _write_stamp(wants)
    print(f"Set up in {time.monotonic() - started:.0f} s.", flush=True)


def _create_venv(log: TextIO, lock: int) -> None:
    """Make .venv anew with this Python. What is in it goes, but for the lock and the log, which are open."""
    for path in VENV.iterdir():
        if path in (_LOCK, LOG):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    _MADE_HERE.touch(mode=0o600)
    # Not sys.executable: that may be the Python of the .venv that was just cleared.
    base = getattr(sys, "_base_executable", sys.executable)
    _run_logged("an environment for Python packages", [base, "-I", "-m", "venv", str(VENV)], log, lock)


def _pip_install(what: str, arguments: Sequence[str], log: TextIO, lock: int) -> None:
    pip = [str(PYTHON), "-I", "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
    _run_logged(what, [*pip, *arguments], log, lock)


def _run_logged(what: str, command: Sequence[str], log: TextIO, lock: int) -> None:
    """Run `command` with its output in the log; a failure becomes a SetupError with the cause and last lines."""
    print(f"  installing {what} ...", flush=True)
    print(f"$ {' '.join(command)}", file=log, flush=True)
    output: list[str] = []
    with subprocess.Popen(
        command,
        # Not the checkout: pip reads no file by accident from where a person stands.
        cwd=VENV,
        env=child_environment(PIP_DISABLE_PIP_VERSION_CHECK="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        # The child keeps the lock: should this process be killed, nobody clears .venv under a pip that goes on.
        pass_fds=(lock,),
    ) as process:
        try:
            for line in process.stdout or ():
                output.append(line)
                log.write(line)
                log.flush()
        except OSError:
            process.terminate()
            raise
    if process.returncode != 0:
        text = "".join(output)
        raise SetupError(
            f"Could not install {what}.\n{advice_for(text)}\n\nIts last lines:\n{last_lines(text)}\n"
            f"The whole log: {LOG}"
        )


def _python_tag() -> str:
    return f"{sys.implementation.cache_tag} {platform.machine()}"


def _python_of_venv() -> str | None:
    """The tag of .venv's Python; None if there is none that runs, is new enough and has pip."""
    if not PYTHON.exists():
        return None
    program = (
        "import importlib.util, platform, sys\n"
        "sys.exit(1) if sys.version_info < (3, 11) or importlib.util.find_spec('pip') is None else None\n"
        "print(sys.implementation.cache_tag, platform.machine())"
    )
    answer = subprocess.run([PYTHON, "-I", "-c", program], capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else None


def _read_stamp() -> Setup | None:
    try:
        stamp = json.loads(_STAMP.read_text(encoding="utf-8"))
        return Setup(stamp["root"], stamp["python"], stamp["digest"], tuple(stamp["extras"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        # Missing, or of another version of this file: then nothing is known about .venv.
        return None


def _write_stamp(setup: Setup) -> None:
    draft = _STAMP.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(setup), indent=2) + "\n", encoding="utf-8")
    draft.replace(_STAMP)


def main(arguments: Sequence[str]) -> int:
    """EXTRAS PROGRAM [ARGUMENT ...]: set up EXTRAS (separated by commas), then become .venv's Python."""
    if len(arguments) < 2:
        print("usage: _bootstrap.py EXTRAS PROGRAM [ARGUMENT ...]", file=sys.stderr)
        return 2
    extras, *program = arguments
    python = ensure([extra.strip() for extra in extras.split(",")])
    os.execve(python, [str(python), *program], child_environment())  # noqa: S606 - the point is to become it


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
