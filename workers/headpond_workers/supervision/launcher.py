"""Start a program with a small environment: `launcher [OPTION]... -- COMMAND [ARGUMENT]...`

supervisord hands its whole environment to every child; one model's keys are no business of another model's
process. This program keeps what a process needs to run at all, and what its model asks for by name:

    always    PATH, HOME, USER, LOGNAME, SHELL, LANG, LANGUAGE, LC_*, TZ, TMPDIR, TERM
              XDG_*                   caches and runtime folders
              VIRTUAL_ENV, PYTHON*    the interpreter's own settings
              LD_LIBRARY_PATH         where drivers' libraries are found
              SSL_CERT_FILE, SSL_CERT_DIR, REQUESTS_CA_BUNDLE, AWS_CA_BUNDLE
              NO_PROXY, no_proxy      names of hosts; but no other *_PROXY, which often hold a password
              OMP_*, MKL_*, OPENBLAS_NUM_THREADS, GGML_*, LLAMA_*    threads and kernels of engines
              CUDA_*, NVIDIA_*, HIP_VISIBLE_DEVICES, ROCR_VISIBLE_DEVICES    devices
              HEADPOND_*              headpond's own settings, except HEADPOND_MODELS__* of other models
    --allow NAME, --allow-prefix PREFIX    what this program alone may see: secrets that its model refers to
    --deny NAME               a secret of others, although one of the patterns above fits its name
    --names-only              nothing that only a pattern fits: for servers, which need none of it

Everything else is dropped: cloud credentials, tokens, other models' keys. OPENAI_* and *_PROXY, in capitals or not,
are dropped whatever pattern fits them, unless --allow names them.

With --backoff, a program that keeps ending within SHORT_LIFE_S is held back before each start, 1 s longer each
time up to LONGEST_DELAY_S: FILE remembers how often. It is never given up. On Linux the program also gets a
SIGTERM if supervisord dies, so that a deployment without its supervisor stops instead of lingering, and the
next `headpond up` finds its ports free.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from headpond_workers.parent_death import end_with_parent

ALWAYS_ALLOWED = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "LC_*",
    "TZ",
    "TMPDIR",
    "TERM",
    "XDG_*",
    "VIRTUAL_ENV",
    "PYTHON*",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "AWS_CA_BUNDLE",
    "NO_PROXY",
    "no_proxy",
    "OMP_*",
    "MKL_*",
    "OPENBLAS_NUM_THREADS",
    "GGML_*",
    "LLAMA_*",
    "CUDA_*",
    "NVIDIA_*",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "ROCM_HOME",
    "CXX",
    "TORCH_*",
    "PYTORCH_*",
    "TRITON_*",
    "EXLLAMA_*",
    "HEADPOND_*",
)
OF_ONE_MODEL = "HEADPOND_MODELS__"
NEVER_BY_PATTERN = ("OPENAI_*", "*_PROXY")
"""Compared in capitals; the exact names above are excepted."""
USAGE_STATUS = 64
"""EX_USAGE."""
CANNOT_EXECUTE_STATUS = 78
"""EX_CONFIG: starting it again would not help."""
SHORT_LIFE_S = 2.0
LONGEST_DELAY_S = 10.0
STARTS = "headpond launcher: starts"
"""In the log, what stands above the last such line was written by earlier lives of the program."""
HELD_BACK = "headpond launcher: it keeps ending at once"
_USAGE = (
    "usage: launcher [--allow NAME]... [--allow-prefix PREFIX]... [--deny NAME]... [--names-only] [--backoff FILE] "
    "-- COMMAND [ARGUMENT]..."
)


@dataclass(frozen=True, slots=True)
class Launch:
    """What the arguments ask for."""

    command: tuple[str, ...]
    allow: frozenset[str] = frozenset()
    allow_prefixes: tuple[str, ...] = ()
    deny: frozenset[str] = frozenset()
    names_only: bool = False
    backoff: Path | None = None


def allowed_environment(
    environment: Mapping[str, str],
    allow: Collection[str] = (),
    allow_prefixes: Iterable[str] = (),
    deny: Collection[str] = (),
    *,
    names_only: bool = False,
) -> dict[str, str]:
    """What of `environment` a program may see: the names above, those in `allow`, those with a prefix; never those
    in `deny` alone. names_only: nothing that only a pattern fits."""
    prefixes = tuple(allow_prefixes)
    return {
        name: value
        for name, value in environment.items()
        if name in allow
        or (
            name not in deny
            and (name.startswith(prefixes) or (name in ALWAYS_ALLOWED if names_only else is_always_allowed(name)))
        )
    }


def is_always_allowed(name: str) -> bool:
    """Whether every program but a server may see a variable of this name."""
    if name in ALWAYS_ALLOWED:
        return True
    if name.startswith(OF_ONE_MODEL) or any(fnmatchcase(name.upper(), pattern) for pattern in NEVER_BY_PATTERN):
        return False
    return any(fnmatchcase(name, pattern) for pattern in ALWAYS_ALLOWED)


def parse(arguments: Sequence[str]) -> Launch:
    """Raises ValueError saying what is wrong with the arguments."""
    values: dict[str, list[str]] = {"--allow": [], "--allow-prefix": [], "--deny": [], "--backoff": []}
    names_only = False
    rest = list(arguments)
    while rest and rest[0] != "--":
        option = rest.pop(0)
        if option == "--names-only":
            names_only = True
            continue
        if option not in values or not rest or not rest[0] or rest[0] == "--":
            raise ValueError(f"unexpected {option!r}; {_USAGE}")
        values[option].append(rest.pop(0))
    if len(rest) < 2:
        raise ValueError(f"no command; {_USAGE}")
    backoff = Path(values["--backoff"][-1]) if values["--backoff"] else None
    return Launch(
        tuple(rest[1:]),
        frozenset(values["--allow"]),
        tuple(values["--allow-prefix"]),
        frozenset(values["--deny"]),
        names_only,
        backoff,
    )


def hold_back(file: Path, *, now_s: float) -> float:
    """Note a start in `file`, and return how many seconds to wait before it.

    The file holds "<short lives in a row> <time of the last start>". One that cannot be read counts as none:
    waiting is a courtesy to the other processes of the machine, and no reason not to start.
    """
    try:
        streak_text, last_text = file.read_text(encoding="ascii").split()
        streak, last_s = int(streak_text), float(last_text)
    except (OSError, ValueError):
        streak, last_s = 0, -math.inf
    streak = streak + 1 if 0 <= now_s - last_s < SHORT_LIFE_S else 0
    delay_s = min(float(streak), LONGEST_DELAY_S)
    try:
        file.write_text(f"{streak} {now_s + delay_s:.3f}", encoding="ascii")
    except OSError as error:
        print(f"headpond launcher: cannot write {file}: {error.strerror}", file=sys.stderr)
    return delay_s


def main(arguments: Sequence[str] | None = None) -> int:
    """Become the command. Returns an exit status only if that fails."""
    try:
        launch = parse(sys.argv[1:] if arguments is None else arguments)
    except ValueError as error:
        print(f"headpond launcher: {error}", file=sys.stderr)
        return USAGE_STATUS
    end_with_parent(os.getppid())
    if launch.backoff is not None and (delay_s := hold_back(launch.backoff, now_s=time.time())):
        print(f"{HELD_BACK}; next start in {delay_s:g} s", file=sys.stderr)
        time.sleep(delay_s)
    command = launch.command
    environment = allowed_environment(
        os.environ, launch.allow, launch.allow_prefixes, launch.deny, names_only=launch.names_only
    )
    print(f"{STARTS} pid={os.getpid()}", file=sys.stderr, flush=True)
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606 - its purpose
    except OSError as error:
        print(f"headpond launcher: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
    return CANNOT_EXECUTE_STATUS


if __name__ == "__main__":
    sys.exit(main())
