"""What a command about an alias means: which one in storage, and which models of the configuration follow it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from headpond.settings import CONFIG_NAME, Settings
from headpond.tables import VersionedModel, VersionSource
from headpond_workers.checkpoints.alias_document import AliasDocument
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.names import PROD, check_alias
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.resolving import open_storage
from headpond_workers.models.prepare import prepared


@dataclass(frozen=True, slots=True)
class FollowedAlias:
    """name: of the model in storage. models: of the configuration, those whose source is this alias. who: asks."""

    name: str
    alias: str
    models: tuple[str, ...]
    registry: Registry
    aliases: Aliases
    who: str

    @classmethod
    def of(cls, settings: Settings, name: str, alias: str | None, *, who: str) -> Self:
        """name: a model of the configuration, whose source then says which it is in storage, or one in storage. alias:
        None for the one that the model follows, else prod.

        Contacts nobody. Raises ConfigError if there is no storage, InvalidRequest for what can be no name.
        """
        source = settings.models[name].version_source if name in settings.models else None
        found = source or VersionSource(name)
        chosen = check_alias(alias or found.alias or PROD)
        wanted = VersionSource(VersionSource.parse_version(found.name).name, chosen)
        registry = Registry(open_storage(settings), wanted.name, writer=who)
        models = tuple(model for model, table in settings.models.items() if table.version_source == wanted)
        return cls(wanted.name, chosen, models, registry, Aliases(registry), who)

    @property
    def shown(self) -> str:
        """`chat@prod`."""
        return f"{self.name}@{self.alias}"

    def get(self) -> AliasDocument | None:
        """What the alias names now; None for nothing. Raises StorageUnavailable."""
        at = self.aliases.get(self.alias)
        return None if at is None else at.document


def how_to_push(settings: Settings, name: str, alias: str) -> str | None:
    """What to call and to write so that a model follows an alias; None if it is a version in storage already, or no
    model of the configuration."""
    table = settings.models.get(name)
    if not isinstance(table, VersionedModel) or table.version_source is not None:
        return None
    file = settings.file or CONFIG_NAME
    lines = [f"[models.{name}] of {file} is no version in storage yet. To make it one:"]
    path = table.path
    if path is None and table.source is not None:
        path = prepared(table.source)
        if path is None:
            lines.append(f"  headpond models prepare {table.source}")
    instead = ""
    if table.source is not None or table.path is not None:
        given = f'source = "{table.source}"' if table.source is not None else f'path = "{table.path}"'
        instead = f" in place of {given}"
    option = "" if alias == PROD else f" --alias {alias}"
    lines += [
        f"  headpond models push {name} {path or 'PATH'}",
        f"  headpond models promote {name} V{option}   (V: the number that push says)",
        f'  then write source = "s3:{name}@{alias}"{instead}',
        "  headpond reload",
    ]
    return "\n".join(lines)
