"""Which engines there are: those of this package, and those that other packages add.

A package adds one by an entry point of the group `headpond.engines`. Its name is what headpond.toml says after
`engine =`; it names a subclass of `EngineTable`, in a module that is light to import: every `headpond` command reads
the configuration, and only the worker loads the engine. docs/engines.md shows a whole one.
"""

from __future__ import annotations

from abc import abstractmethod
from importlib.metadata import EntryPoint, entry_points
from inspect import isabstract
from typing import Any

from headpond.errors import ConfigError
from headpond.tables import ENGINES, ModelTable

GROUP = "headpond.engines"


class EngineTable(ModelTable):
    """The table of a model whose engine comes from another package."""

    @abstractmethod
    def load_engine(self, *, workers_on_host: int) -> Any:
        """Load the model and return its `headpond_workers.engines.protocol.Engine`, warm.

        workers_on_host: worker processes that share this machine's cores. Raises EngineUnavailable or
        ModelFileError if starting again would not help.
        """


def settings_of_engine(name: str, *, where: str) -> type[ModelTable] | None:
    """The class of a table with `engine = name`; None if nobody provides such an engine.

    Raises ConfigError if a package provides it and does not hold to the contract.
    """
    if name in ENGINES:
        return ENGINES[name]
    found = _added(name)
    if not found:
        return None
    if len({entry.value for entry in found}) > 1:
        packages = ", ".join(sorted(_package(entry) for entry in found))
        raise ConfigError(
            f"more than one package provides the engine '{name}': {packages}. Uninstall all but one", where=where
        )
    entry = found[0]
    try:
        table = entry.load()
    except Exception as error:
        raise ConfigError(
            f"the engine '{name}' of the package {_package(entry)} cannot be imported: {type(error).__name__}: {error}",
            where=where,
        ) from error
    if not (isinstance(table, type) and issubclass(table, EngineTable)):
        raise ConfigError(
            f"the engine '{name}' of the package {_package(entry)} is no subclass of headpond.engine_kinds.EngineTable "
            f"({entry.value})",
            where=where,
        )
    if isabstract(table):
        raise ConfigError(
            f"the engine '{name}' of the package {_package(entry)} has no load_engine ({entry.value})", where=where
        )
    return table


def known_engines() -> list[str]:
    """Names of all engines, sorted."""
    return sorted({*ENGINES, *(entry.name for entry in entry_points(group=GROUP))})


def _added(name: str) -> list[EntryPoint]:
    return list(entry_points(group=GROUP, name=name))


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value
