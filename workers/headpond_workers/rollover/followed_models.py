"""Which models of a Redis follow an alias, by what their deployments said of them when they took the name."""

from __future__ import annotations

import json
from collections.abc import Mapping

from headpond.errors import InvalidRequest
from headpond.models import ModelRow
from headpond.tables import VersionSource


def followed(rows: Mapping[str, ModelRow]) -> dict[str, VersionSource]:
    """The source of each of them, by model."""
    found: dict[str, VersionSource] = {}
    for model, row in rows.items():
        try:
            source = json.loads(row.spec or "{}").get("source")
            parsed = VersionSource.parse(source) if isinstance(source, str) else None
        except (ValueError, AttributeError, InvalidRequest):
            # A catalogue's model, or a spec that others wrote: whoever uses it says what is wrong.
            continue
        if row.storage and parsed is not None and parsed.alias is not None:
            found[model] = parsed
    return found
