"""Every error that headpond raises, as one tree.

    HeadpondError
    |- ConfigError              a setting is wrong or missing: file, key, what to write
    |  `- NameTaken             another deployment on this Redis means another model by a name
    |- ServiceUnavailable       a server does not answer (retry=True)
    |  |- RedisUnavailable
    |  |  `- QueueMending        storage's part of a queue is being put back into Redis
    |  `- StorageUnavailable
    |- QueueError               the server refused a command: a defect, or a server that is not as it must be
    |  `- ServerWentBack        Redis went back in time amid calls that belong together (retry=True)
    |- InvalidRequest           refused at submit; nothing was enqueued
    |  |- UnknownModel
    |  `- IdConflict
    |- QueueFull                back-pressure (retry=True)
    |- ManyRefused              some jobs of a submit_many were not enqueued; it says which were
    |- RestoreRefused           this Redis is not one that a history can be restored into
    |- NameInUse                the name of a model is in use, so it is not forgotten
    |- NotQuarantined           the job is not among the quarantined ones, so it is not for an operator to decide
    |- NotCommitted             the job's end is not in storage yet (retry=True)
    |- PurgeRefused             not now, or not known to be done: purge again (retry=True)
    |- SpoolError               the journal's spool on a host's disk
    |  |- SpoolElsewhere         another host has part of the journal; nothing is committed before that (retry=True)
    |  |- SpoolDamaged           what left Redis for the spool is not whole there
    |  `- SpoolBusy              a process of this host is at work with it (retry=True)
    |- SessionError             a conversation cannot go on or be moved as was asked
    |  |- SessionGone           no such session
    |  |- SessionConflict       its head is not the one that was named, or the new name is taken
    |  |- SessionBusy           a job of it waits or runs (retry=True)
    |  |- SessionFull           it holds, or waits for, as much as a session may
    |  `- CommitGone            no such commit, or one that cannot be read
    |- BundleError              a replay bundle cannot be read or written
    |- JobGone                  the job is unknown, or its retention has passed
    |  `- NotStored              storage does not hold the job's end
    |- ResultTimeout            the job goes on; only the waiting ended (retry=True)
    |- DurabilityUnknown        the queue has the job; whether storage has it is not known (retry=True)
    |- JobEnded                 the job ended without an answer; carries the partial result
    |  |- JobFailed
    |  |- JobCancelled
    |  |- JobExpired
    |  `- JobQuarantined
    |- MalformedDocument        bytes that are not the document they should be
    |  `- UnsupportedSchema
    |- EngineError              an engine could not load, or could not run a sequence
    |  |- EngineUnavailable
    |  |- EngineOutOfMemory    the device is full; another attempt may find room (retry=True)
    |  |- EngineBroken         the engine is beyond repair; its process leaves (retry=True)
    |  |- UpstreamClosed       the server behind a proxy serves nobody just now (retry=True)
    |  |- JobPutBack           the server behind a proxy failed one job for now (retry=True)
    |  |- CapabilityMissing    this engine cannot do what was asked, ever
    |  |- PrefixRefused        stored keys and values that are damaged or of another model
    |  |- PromptTooLong
    |  `- SequenceFailed
    |- ModelFileError           weights that are missing, altered or of a format that is refused
    |- BlobError                what S3-compatible storage answered
    |  |- BlobMissing
    |  |- BlobChanged           a conditional put lost
    |  |- BlobCorrupt
    |  |- BlobMismatch
    |  |- CommitLost             another writer committed first (nothing is lost)
    |  |- StaleIncarnation       Redis went back in time without noticing
    |  |- HistoryMismatch        storage and Redis hold different histories
    |  |- HistoryTooShort        storage keeps no state of a model that is so old
    |  |- AliasMoved             an alias does not name what it was to be moved from
    |  |- PushOvertaken          a collector took a push for dead; it begins anew (retry=True)
    |  `- CollectionUnderWay     another collector is at work (retry=True)
    |- VersionError             a version of a model cannot be used as was asked
    |  |- VersionMissing        no such version or alias
    |  |- VersionUnusable       it is quarantined, deleted or not complete
    |  `- VersionInUse          an alias names it, or a worker serves it
    `- DeploymentError          `headpond up` and its relatives could not do what was asked

`retry` says whether the same call may succeed later without a change.
"""

from __future__ import annotations

from headpond.errors.base import HeadpondError
from headpond.errors.blobs import (
    BlobChanged,
    BlobCorrupt,
    BlobError,
    BlobMismatch,
    BlobMissing,
    CommitLost,
    HistoryMismatch,
    HistoryTooShort,
    StaleIncarnation,
)
from headpond.errors.configuration import ConfigError, NameConflict, NameInUse, NameTaken
from headpond.errors.documents import MalformedDocument, UnsupportedSchema
from headpond.errors.engines import (
    CapabilityMissing,
    EngineBroken,
    EngineError,
    EngineOutOfMemory,
    EngineUnavailable,
    JobPutBack,
    ModelFileError,
    PrefixRefused,
    PromptTooLong,
    SequenceFailed,
    UpstreamClosed,
)
from headpond.errors.jobs import JobCancelled, JobEnded, JobExpired, JobFailed, JobGone, JobQuarantined, NotStored
from headpond.errors.operators import (
    BundleError,
    DeploymentError,
    NotCommitted,
    NotQuarantined,
    PurgeRefused,
    RestoreRefused,
    SpoolBusy,
    SpoolDamaged,
    SpoolElsewhere,
    SpoolError,
)
from headpond.errors.requests import (
    DurabilityUnknown,
    IdConflict,
    InvalidRequest,
    ManyRefused,
    QueueFull,
    ResultTimeout,
    UnknownModel,
)
from headpond.errors.services import (
    QueueError,
    QueueMending,
    RedisUnavailable,
    ServerWentBack,
    ServiceUnavailable,
    StorageUnavailable,
)
from headpond.errors.sessions import CommitGone, SessionBusy, SessionConflict, SessionError, SessionFull, SessionGone
from headpond.errors.versions import (
    AliasMoved,
    CollectionUnderWay,
    PushOvertaken,
    VersionError,
    VersionInUse,
    VersionMissing,
    VersionUnusable,
)

__all__ = [
    "AliasMoved",
    "BlobChanged",
    "BlobCorrupt",
    "BlobError",
    "BlobMismatch",
    "BlobMissing",
    "BundleError",
    "CapabilityMissing",
    "CollectionUnderWay",
    "CommitGone",
    "CommitLost",
    "ConfigError",
    "DeploymentError",
    "DurabilityUnknown",
    "EngineBroken",
    "EngineError",
    "EngineOutOfMemory",
    "EngineUnavailable",
    "HeadpondError",
    "HistoryMismatch",
    "HistoryTooShort",
    "IdConflict",
    "InvalidRequest",
    "JobCancelled",
    "JobEnded",
    "JobExpired",
    "JobFailed",
    "JobGone",
    "JobPutBack",
    "JobQuarantined",
    "MalformedDocument",
    "ManyRefused",
    "ModelFileError",
    "NameConflict",
    "NameInUse",
    "NameTaken",
    "NotCommitted",
    "NotQuarantined",
    "NotStored",
    "PrefixRefused",
    "PromptTooLong",
    "PurgeRefused",
    "PushOvertaken",
    "QueueError",
    "QueueFull",
    "QueueMending",
    "RedisUnavailable",
    "RestoreRefused",
    "ResultTimeout",
    "SequenceFailed",
    "ServerWentBack",
    "ServiceUnavailable",
    "SessionBusy",
    "SessionConflict",
    "SessionError",
    "SessionFull",
    "SessionGone",
    "SpoolBusy",
    "SpoolDamaged",
    "SpoolElsewhere",
    "SpoolError",
    "StaleIncarnation",
    "StorageUnavailable",
    "UnknownModel",
    "UnsupportedSchema",
    "UpstreamClosed",
    "VersionError",
    "VersionInUse",
    "VersionMissing",
    "VersionUnusable",
]
