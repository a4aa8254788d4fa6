"""Requests that were refused, or whose outcome is not known yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headpond.errors.base import HeadpondError

if TYPE_CHECKING:
    from collections.abc import Iterable


class InvalidRequest(HeadpondError):
    """The request was refused before anything was enqueued. `field` names what is wrong."""

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


class UnknownModel(InvalidRequest):
    """No model of that name is configured on this Redis. `known` lists those that are."""

    def __init__(self, model: str, known: Iterable[str]) -> None:
        self.model = model
        self.known = sorted(known)
        have = (
            f"configured models: {', '.join(self.known)}"
            if self.known
            else "no model is configured on this Redis yet; start some with: headpond up"
        )
        super().__init__(f"No model is named '{model}' ({have}).", field="model")


class IdConflict(InvalidRequest):
    """The id belongs to another request. Nothing of that other request is shown."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"The id '{job_id}' was already used for another request. Use a new id, or send the same request.",
            field="id",
        )
        self.job_id = job_id


class QueueFull(HeadpondError):
    """The model's queue holds as many waiting jobs as its configuration allows."""

    retry = True

    def __init__(self, model: str, *, limit: int, retry_after_s: float) -> None:
        super().__init__(
            f"The queue of '{model}' is full ({limit} jobs wait). Try again in {retry_after_s:.1f} s, "
            "or add workers with: headpond scale"
        )
        self.model = model
        self.limit = limit
        self.retry_after_s = retry_after_s


class ManyRefused(HeadpondError):
    """Some jobs of one submit_many were not enqueued.

    accepted: ids of those that were, or were there already. refused: place in the request and error of the others.
    The same call may be repeated as it is if the requests have ids: what was accepted is known.
    """

    def __init__(self, accepted: Iterable[str], refused: Iterable[tuple[int, HeadpondError]]) -> None:
        self.accepted = tuple(accepted)
        self.refused = tuple(refused)
        place, first = self.refused[0]
        super().__init__(
            f"{len(self.refused)} of {len(self.accepted) + len(self.refused)} jobs were not enqueued. The first of "
            f"them, requests[{place}]: {first}"
        )


class ResultTimeout(HeadpondError):
    """The job had not ended in time. It goes on."""

    retry = True

    def __init__(self, job_id: str, *, timeout_s: float) -> None:
        super().__init__(f"The job '{job_id}' has not ended after {timeout_s:g} s; it goes on.")
        self.job_id = job_id
        self.timeout_s = timeout_s


class DurabilityUnknown(HeadpondError):
    """Jobs were accepted by the queue, and it is not known whether storage has them. An unknown outcome, no failure:
    they may be in storage already, and run.

    job_ids: what was submitted. The same call may be repeated under the same ids: it waits on, and enqueues nothing
    twice.
    """

    retry = True

    def __init__(self, job_ids: Iterable[str], *, reason: str) -> None:
        self.job_ids = tuple(job_ids)
        self.reason = reason
        first, more = self.job_ids[0], len(self.job_ids) - 1
        jobs = f"the jobs '{first}' and {more} more" if more else f"the job '{first}'"
        super().__init__(
            f"It is not known whether storage has {jobs}: {reason}. Submit again under the same id to wait on; nothing "
            "is enqueued twice. What the persister says: headpond logs persister"
        )
