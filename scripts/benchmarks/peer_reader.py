"""Runs one of the programs of peer_code/ as its user would: a thread for each question, and notes what it shows.

Set-up: {"program", "environment"}: a module of peer_code/, and the variables that it reads. Request: {"asks": [[prompt,
max_tokens], ...]}: all at once. Answer:

    began_ns    CLOCK_MONOTONIC, just before the first question
    answers     for each question: parts, the text that was shown, cut where the program had to begin again; text, the
                whole answer; first_ns and ended_ns, of CLOCK_MONOTONIC, first_ns null where nothing was shown; error,
                in words, null where it was answered
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from child import Answer, Serving, serve

PROGRAMS = Path(__file__).resolve().parent / "peer_code"
MOST_ASKS = 8

Program = Callable[[str, int, Callable[[str], None], Callable[[], None]], str]


@contextmanager
def reader(setup: dict[str, Any]) -> Iterator[Serving]:
    os.environ.update(setup["environment"])
    sys.path.insert(0, str(PROGRAMS))
    ask: Program = importlib.import_module(setup["program"]).ask
    with ThreadPoolExecutor(MOST_ASKS) as threads:
        yield lambda request: _run(ask, threads, request["asks"])


def _run(ask: Program, threads: ThreadPoolExecutor, asks: list[tuple[str, int]]) -> Answer:
    together = threading.Barrier(len(asks) + 1)

    def one(prompt: str, max_tokens: int) -> Answer:
        parts, first_ns = [""], None

        def show(text: str) -> None:
            nonlocal first_ns
            if first_ns is None and text:
                first_ns = time.monotonic_ns()
            parts[-1] += text

        together.wait()
        text, error = "", None
        try:
            text = ask(prompt, max_tokens, show, lambda: parts.append(""))
        except Exception as failure:  # noqa: BLE001 - a program that fails has lost its job, which is what is measured
            error = repr(failure)
        return {
            "parts": parts, "text": text, "first_ns": first_ns, "ended_ns": time.monotonic_ns(), "error": error,
        }  # fmt: skip

    calls = [threads.submit(one, prompt, max_tokens) for prompt, max_tokens in asks]
    # Before the barrier opens: a thread may run at once when it does.
    began_ns = time.monotonic_ns()
    together.wait()
    return {"began_ns": began_ns, "answers": [call.result() for call in calls]}


if __name__ == "__main__":
    serve(reader)
