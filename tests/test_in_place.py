"""A process that begins anew: what stays, and what does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from headpond_workers.rollover.in_place import begin_anew

PROGRAM = """
import json, os, signal, sys, threading
from headpond_workers.rollover.in_place import begin_anew, hear_signals

lives = sys.argv[1]
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
hear_signals()
with open(lives, "a") as file:
    found = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    found = [fd for fd in found if fd not in (0, 1, 2, file.fileno()) and os.path.exists(f"/proc/self/fd/{fd}")]
    said = {"pid": os.getpid(), "arguments": sys.argv[2:], "open": found, "heard": heard, "word": os.environ["WORD"]}
    file.write(json.dumps(said) + "\\n")
if len(open(lives).readlines()) == 1:
    leaked = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    kept, other = os.pipe()
    print(kept, flush=True)
    if sys.argv[2] == "threads":
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    # It comes in the last moment of the first life. The one thread or the other takes it.
    become = os.execv

    def with_a_signal(*words):
        os.kill(os.getpid(), signal.SIGTERM)
        become(*words)

    os.execv = with_a_signal
    begin_anew(threading.Event(), keep=[kept])
    raise SystemExit(5)
"""


@pytest.mark.parametrize("threads", ["threads", "one thread"])
def test_pid_arguments_environment_and_a_late_signal_stay_and_open_files_do_not(tmp_path: Path, threads: str) -> None:
    lives = tmp_path / "lives"
    # Of a library that opens files as C programs do.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(lives), threads, "two words"], env={**os.environ, "WORD": "said"},
        stdout=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    first, second = (json.loads(line) for line in lives.read_text().splitlines())
    assert first["pid"] == second["pid"]
    assert first["arguments"] == second["arguments"] == [threads, "two words"]
    assert first["word"] == second["word"] == "said"
    assert (first["heard"], second["heard"]) == ([], [signal.SIGTERM])
    assert first["open"] == []
    assert second["open"] == [int(done.stdout)]


def test_a_process_that_is_told_to_leave_does_not_begin_anew() -> None:
    leave = threading.Event()
    leave.set()
    begin_anew(leave)
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
