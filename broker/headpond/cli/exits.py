"""Exit codes, for scripts. 0: done; 2: also what a wrong option gives."""

from __future__ import annotations

from headpond.cli.interrupts import INTERRUPTED as INTERRUPTED
from headpond.errors import (
    BundleError,
    CollectionUnderWay,
    ConfigError,
    DurabilityUnknown,
    HeadpondError,
    InvalidRequest,
    JobEnded,
    JobGone,
    NotCommitted,
    NotQuarantined,
    PurgeRefused,
    QueueFull,
    RestoreRefused,
    ResultTimeout,
    ServiceUnavailable,
    SessionBusy,
    SessionError,
    SessionGone,
    SpoolBusy,
)

INTERNAL = 1
BAD_INPUT = 2
UNAVAILABLE = 3
JOB_GONE = 4
JOB_ENDED = 5
TRY_LATER = 6
FAULTS_LEFT = 7
OTHER_FINGERPRINT = 8
ENGINE_DIED = 9

_CODES: tuple[tuple[type[HeadpondError], int], ...] = (
    (InvalidRequest, BAD_INPUT),
    (ConfigError, BAD_INPUT),
    (BundleError, BAD_INPUT),
    (NotQuarantined, BAD_INPUT),
    (RestoreRefused, BAD_INPUT),
    (ServiceUnavailable, UNAVAILABLE),
    (JobGone, JOB_GONE),
    (JobEnded, JOB_ENDED),
    (SessionGone, JOB_GONE),
    (SessionBusy, TRY_LATER),
    (SessionError, BAD_INPUT),
    (QueueFull, TRY_LATER),
    (ResultTimeout, TRY_LATER),
    (DurabilityUnknown, TRY_LATER),
    (SpoolBusy, TRY_LATER),
    (NotCommitted, TRY_LATER),
    (PurgeRefused, TRY_LATER),
    (CollectionUnderWay, TRY_LATER),
)


def exit_code(error: HeadpondError) -> int:
    """2 bad input; 3 a server is not there; 4 no such job or session; 5 the job ended without an answer; 6 later; else
    1."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), INTERNAL)
