"""What an operator asked for, and cannot have now."""

from __future__ import annotations

from headpond.errors.base import HeadpondError


class RestoreRefused(HeadpondError):
    """A model is not restored. Nothing was changed."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"'{model}' is not restored: {reason}")
        self.model = model
        self.reason = reason


class NotQuarantined(HeadpondError):
    """The job is not quarantined, so there is nothing to decide about it. Nothing was changed."""

    def __init__(self, job_id: str, *, state: str) -> None:
        super().__init__(
            f"The job '{job_id}' is {state}, not quarantined. Those that are: headpond dead list. To end a job "
            f"that has not ended: headpond cancel {job_id}"
        )
        self.job_id = job_id
        self.state = state


class PurgeRefused(HeadpondError):
    """Nothing of a queue is purged now, or it is not known whether what was purged stays so. May be repeated."""

    retry = True

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"'{model}': {reason}. Call headpond purge again.")
        self.model = model


class NotCommitted(HeadpondError):
    """Storage does not hold the job's end yet, and nothing is dropped before it does. Nothing was changed."""

    retry = True

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"The end of '{job_id}' is not in storage yet, and nothing is dropped before. Try again in a second; if "
            "that does not help, see what the persister says: headpond logs persister"
        )
        self.job_id = job_id


class SpoolError(HeadpondError):
    """The journal's spool on a host's disk. model: whose."""

    def __init__(self, model: str, message: str) -> None:
        super().__init__(message)
        self.model = model


class SpoolElsewhere(SpoolError):
    """Another host has entries of the journal on its disk, and nothing may be committed before these."""

    retry = True

    def __init__(self, model: str, *, host: str, folder: str, first: str, last: str) -> None:
        super().__init__(
            model,
            f"Entries {first} to {last} of '{model}' are in the spool of {host} ({folder}), and nothing is committed "
            "before them: start the persister there. If that disk is lost: headpond storage spool --give-up "
            f"{model} --yes",
        )
        self.host, self.folder = host, folder


class SpoolDamaged(SpoolError):
    """What left Redis for the spool is not whole there. Nothing was committed."""

    def __init__(self, model: str, *, path: str, found: str, wanted: str) -> None:
        super().__init__(
            model,
            f"{path}: it is whole up to {found} only, and entries up to {wanted} of '{model}' were moved there. Put "
            f"the file back from a copy, or have the queue write anew what it holds: headpond storage spool --give-up "
            f"{model} --yes",
        )
        self.path = path


class SpoolBusy(SpoolError):
    """A process of this host is at work with the spool."""

    retry = True

    def __init__(self, model: str, *, path: str) -> None:
        super().__init__(model, f"{path}: a persister is at work with it. Stop it, or try again in a moment.")
        self.path = path


class BundleError(HeadpondError):
    """A replay bundle cannot be read or written. `where`: its file."""

    def __init__(self, message: str, *, where: str) -> None:
        super().__init__(f"{where}: {message}")
        self.where = where


class DeploymentError(HeadpondError):
    """The deployment on this machine could not do what was asked."""
