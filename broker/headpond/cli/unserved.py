"""Whoever waits for a job that nobody serves is told so, once, and waits on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from headpond.client import Job
from headpond.errors import HeadpondError, JobGone
from headpond.jobs import JobId, JobState
from headpond.terminal import escape_controls

LOOK_INTERVAL_S = 3.0
"""A worker that is only being restarted is back by then."""


@contextmanager
def told_if_unserved(job: Job) -> Iterator[None]:
    """While the body waits for a job: one line on stderr, as soon as it is seen to wait with nobody to take it."""
    done = threading.Event()
    looking = threading.Thread(target=_look, args=(job, done), daemon=True)
    looking.start()
    try:
        yield
    finally:
        done.set()
        looking.join(timeout=1.0)


def _look(job: Job, done: threading.Event) -> None:
    while not done.wait(LOOK_INTERVAL_S):
        try:
            unserved = job.state() in (JobState.QUEUED, JobState.DELAYED) and not job.served()
        except JobGone:
            return
        except HeadpondError:
            continue  # Whoever waits for the job says what is wrong with the server.
        if unserved and not done.is_set():
            model = JobId.parse(job.id).model
            line = (
                f"No worker serves '{model}' right now: the job waits for one, and so does this. See: headpond status"
            )
            typer.echo(escape_controls(line), err=True)
            return
