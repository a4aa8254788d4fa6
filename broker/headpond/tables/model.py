"""The table [models.NAME]: what every model has, whatever its engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import Field

from headpond.jobs import TENANT_PATTERN
from headpond.tables.retention import RedisRetention, StorageRetention, TenantRetention
from headpond.tables.table import Table
from headpond.tables.version_source import VersionSource


class ModelTable(Table):
    """What every model has, whatever its engine."""

    host_keys: ClassVar[frozenset[str]] = frozenset({"workers", "slots", "drain_timeout_s", "stall_timeout_s"})
    """Keys that are a host's own: deployments that share a name may differ in them. All others are the model's spec
    (`headpond.spec`). A class names its own keys alone; those of the classes above it count too."""
    live_keys: ClassVar[frozenset[str]] = frozenset(
        {
            "workers", "max_queued", "retention_s", "stream_retention_s", "suspect_wait_s", "version_wait_s",
            "tenant_weights", "storage_retention_s", "session_retention_s", "tenant_retention",
        }
    )  # fmt: skip
    """Keys that `headpond reload` applies to workers that go on running. A change of any other restarts them."""

    engine: str
    """Which engine serves the model."""
    context_tokens: Annotated[int, Field(ge=16, le=1 << 24)] = 2048
    """The most tokens that one sequence may hold, prompt and answer together."""

    workers: Annotated[int, Field(ge=0, le=64)] = 1
    """How many worker processes `headpond up` starts."""
    slots: Annotated[int, Field(ge=1, le=1024)] = 4
    """Sequences that one worker runs together."""
    lease_s: Annotated[float, Field(ge=0.2, le=3600)] = 10.0
    """How long a silent worker keeps its jobs."""
    drain_timeout_s: Annotated[float, Field(ge=0, le=86400)] = 30.0
    """How long a stopping worker lets its jobs run before it parks them."""
    stall_timeout_s: Annotated[float, Field(ge=1, le=86400)] = 120.0
    """A sequence that makes no step for so long is no longer renewed."""
    max_queued: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    """Jobs that may wait; 0 is no bound."""
    retention_s: RedisRetention = 86400.0
    """How long Redis keeps an ended job."""
    stream_retention_s: RedisRetention = 600.0
    """How long Redis keeps the stream of a job that ended with a result; then the result stands for it."""
    storage_retention_s: StorageRetention = 30 * 86400.0
    """How long storage keeps an ended job and its result; 0 is for ever."""
    session_retention_s: StorageRetention = 0.0
    """How long a session is kept after its last change; 0 is for ever."""
    tenant_retention: dict[Annotated[str, Field(pattern=TENANT_PATTERN)], TenantRetention] = Field(default_factory=dict)
    """Tenants whose jobs are kept for another time: `{acme = {retention_s = 60.0}}`."""
    suspect_wait_s: Annotated[float, Field(ge=0, le=86400)] = 30.0
    """How long a job that is suspected of crashing its workers waits before it goes first in its band."""
    version_wait_s: Annotated[float, Field(ge=0, le=86400)] = 60.0
    """How long a job that is bound to a version waits for a worker that serves it, once none does."""
    tenant_weights: dict[
        Annotated[str, Field(pattern=TENANT_PATTERN)], Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
    ] = Field(default_factory=dict)
    """Shares of tenants that differ from 1: `{acme = 3.0}` has three times the tokens of others."""

    def retention_of(self, tenant: str) -> TenantRetention:
        """All three times of one tenant."""
        own = self.tenant_retention.get(tenant, TenantRetention()).model_dump(exclude_none=True)
        times = ("retention_s", "storage_retention_s", "session_retention_s")
        return TenantRetention(**{name: own.get(name, getattr(self, name)) for name in times})

    @property
    def version_source(self) -> VersionSource | None:
        """The version in storage that it loads; None for what comes from elsewhere."""
        return None

    def anchored(self, folder: Path) -> Self:
        """The same table with its relative paths made absolute; they are relative to `folder`."""
        return self

    @classmethod
    def all_host_keys(cls) -> frozenset[str]:
        """`host_keys` of this class and of those above it."""
        return _gathered(cls, "host_keys")

    @classmethod
    def all_live_keys(cls) -> frozenset[str]:
        """`live_keys` of this class and of those above it."""
        return _gathered(cls, "live_keys")


def _gathered(kind: type, name: str) -> frozenset[str]:
    return frozenset().union(*(vars(base).get(name, ()) for base in kind.__mro__))
