"""The table [models.NAME.tenant_retention.TENANT]: how long what one tenant asked for is kept."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from headpond.tables.table import Table

MAX_RETENTION_S = 10 * 365 * 86400
RedisRetention = Annotated[float, Field(ge=1, le=MAX_RETENTION_S)]
StorageRetention = Annotated[float, Field(ge=0, le=MAX_RETENTION_S)]


class TenantRetention(Table):
    """What is left out is as for the model's other tenants."""

    retention_s: RedisRetention | None = None
    """How long Redis keeps an ended job of this tenant."""
    storage_retention_s: StorageRetention | None = None
    """How long storage keeps it; 0 is for ever."""
    session_retention_s: StorageRetention | None = None
    """How long a session of this tenant is kept after its last change; 0 is for ever."""
