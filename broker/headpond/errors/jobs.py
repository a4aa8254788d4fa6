"""Jobs that are gone, or ended without an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from headpond.errors.base import HeadpondError

if TYPE_CHECKING:
    from headpond.jobs import Result


class JobGone(HeadpondError):
    """Redis does not hold this job: it never did, or its retention has passed."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"Redis does not hold the job '{job_id}': it was never submitted here, or its retention has "
            f"passed. If storage is configured: headpond result {job_id} --from-storage"
        )
        self.job_id = job_id


class NotStored(JobGone):
    """Storage does not hold the end of this job."""

    def __init__(self, job_id: str) -> None:
        HeadpondError.__init__(
            self,
            f"Storage does not hold the end of the job '{job_id}': it has not ended, it ended within the last second, "
            "or it was never submitted here.",
        )
        self.job_id = job_id


class JobEnded(HeadpondError):
    """The job ended without a full answer. `result` holds the text and tokens up to then."""

    what: ClassVar[str] = "ended"

    def __init__(self, result: Result) -> None:
        reason = f": {result.error}" if result.error else ""
        super().__init__(f"The job '{result.id}' {self.what} after {len(result.token_ids)} tokens{reason}")
        self.result = result


class JobFailed(JobEnded):
    what = "failed"


class JobCancelled(JobEnded):
    what = "was cancelled"


class JobExpired(JobEnded):
    what = "passed its deadline"


class JobQuarantined(JobEnded):
    what = "was quarantined"
