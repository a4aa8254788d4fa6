"""A chat template, tried out in a child process before this one compiles it.

`TemplateSandbox` bounds what it knows of. The child bounds the rest, as the kernel does it: a compiler that
crashes, a single step that never ends, memory. What takes too long there is killed there.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

from headpond.errors import EngineUnavailable

log = logging.getLogger(__name__)

_PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
"""What the child needs of the environment to find this very package."""
_ADVICE = "Choose another model, or give this one a chat template that Hugging Face's tools accept."


@dataclass(frozen=True, slots=True)
class ProbeLimits:
    """For the start of the child and all conversations together. cpu_s: whole seconds, of processor time."""

    cpu_s: int = 20
    wall_s: float = 60.0
    memory_bytes: int = 1 << 30


def check_template(source: str, *, bos_token: str, eos_token: str) -> None:
    """Render sample conversations in a child process. A template may refuse all but a plain user message.

    Raises EngineUnavailable that says what the template did wrong, or which limit it passed. The child is gone when
    this returns.
    """
    check_template_within(ProbeLimits(), source, bos_token=bos_token, eos_token=eos_token)


def check_template_within(limits: ProbeLimits, source: str, *, bos_token: str, eos_token: str) -> None:
    """As `check_template`, with limits of the caller."""
    task = {
        "source": source,
        "bos_token": bos_token,
        "eos_token": eos_token,
        "cpu_s": limits.cpu_s,
        "memory_bytes": limits.memory_bytes,
    }
    try:
        ended = subprocess.run(  # kills the child at the timeout, and waits for it
            [sys.executable, "-P", "-m", "headpond_workers.engines.templates.template_probe"],
            input=json.dumps(task).encode(),
            capture_output=True,
            timeout=limits.wall_s,
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineUnavailable(
            f"The model's chat template was stopped: it takes more than {limits.wall_s:g} s. {_ADVICE}"
        ) from error
    except OSError as error:
        raise EngineUnavailable(
            f"Cannot start a process to try the model's chat template in: {error.strerror or error}. "
            "Free some memory or processes on this machine."
        ) from error
    if ended.returncode == -signal.SIGXCPU:
        raise EngineUnavailable(
            f"The model's chat template was stopped: it takes more than {limits.cpu_s} s of processor time. {_ADVICE}"
        )
    if ended.returncode != 0:
        raise EngineUnavailable(f"The model's chat template broke the process that tried it ({_end(ended)}). {_ADVICE}")
    reply = json.loads(ended.stdout)
    if "unusable" in reply:
        raise EngineUnavailable(reply["unusable"])
    if "failed" in reply:
        raise EngineUnavailable(f"The model's chat template cannot be used: {reply['failed']}. {_ADVICE}")
    for roles, reason in reply["refused"].items():
        log.info("template_refuses roles=%s reason=%r", roles, reason)


def _end(ended: subprocess.CompletedProcess[bytes]) -> str:
    if ended.returncode < 0:
        return signal.Signals(-ended.returncode).name
    lines = ended.stderr.decode("utf-8", "replace").strip().splitlines()
    return repr(lines[-1][:300]) if lines else f"status {ended.returncode}"
