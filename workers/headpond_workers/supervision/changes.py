"""What differs between the configuration that runs and the one that is to run. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from headpond.counts import counted
from headpond.settings import Settings
from headpond_workers.supervision.applied import Applied, FlatTable


@dataclass(frozen=True, slots=True)
class KeyChange:
    """One key of one table. table: `models.chat`. old, new: as JSON; None where the table has no such key.
    live: workers take it over as they run."""

    table: str
    key: str
    old: str | None
    new: str | None
    live: bool

    def __str__(self) -> str:
        how = "" if self.live else "  (restart)"
        return f"~ {self.table}.{self.key}: {self.old or 'none'} -> {self.new or 'none'}{how}"


@dataclass(frozen=True, slots=True)
class Changes:
    """added, removed: models. changed: keys of [redis], [storage] and of models that stay."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[KeyChange, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    @property
    def changed_live(self) -> frozenset[str]:
        """Models of which a key changed that running workers take over."""
        return frozenset(
            change.table.removeprefix("models.") for change in self.changed if change.live and change.key != "workers"
        )

    def lines(self, counts: Mapping[str, int]) -> list[str]:
        """For people. counts: workers of each model."""
        return [
            *(f"+ models.{name}: {counted(counts.get(name, 0), 'worker')}" for name in self.added),
            *(f"- models.{name}" for name in self.removed),
            *map(str, self.changed),
        ]

    def document(self) -> dict[str, Any]:
        """As `headpond reload --json` prints it."""
        return {
            "added": list(self.added),
            "removed": list(self.removed),
            "changed": [
                {"table": c.table, "key": c.key, "old": _value(c.old), "new": _value(c.new), "restart": not c.live}
                for c in self.changed
            ],
        }


def changes_between(applied: Applied, settings: Settings) -> Changes:
    """From what runs to what `settings` want."""
    wanted = Applied.of(settings)
    found: list[KeyChange] = []
    for server in sorted(wanted.servers):
        if server in applied.servers:
            found += _changed(server, applied.servers[server], wanted.servers[server], live=())
    for name in sorted(applied.models.keys() & wanted.models.keys()):
        live = settings.models[name].all_live_keys()
        found += _changed(f"models.{name}", applied.models[name], wanted.models[name], live=live)
    return Changes(
        tuple(sorted(wanted.models.keys() - applied.models.keys())),
        tuple(sorted(applied.models.keys() - wanted.models.keys())),
        tuple(found),
    )


def _changed(table: str, old: FlatTable, new: FlatTable, *, live: Collection[str]) -> list[KeyChange]:
    before, after = _flat(old), _flat(new)
    return [
        KeyChange(table, key, before.get(key), after.get(key), live=key.partition(".")[0] in live)
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _flat(table: FlatTable, prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{key}.")
        elif value is not None and value != {}:
            found[prefix + key] = json.dumps(value, ensure_ascii=False)
    return found


def _value(text: str | None) -> Any:
    return None if text is None else json.loads(text)
