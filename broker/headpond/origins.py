"""Where a setting was said: the layers of the configuration, weakest first. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from headpond.errors import ConfigError


class Layer(Enum):
    """What is said of one model beats what is said of all: a later layer beats an earlier one."""

    BUILT_IN = "built-in"
    ENVIRONMENT_OF_ALL = "environment of all models"
    DEFAULTS = "[defaults]"
    COMMAND_LINE_OF_ALL = "command line, defaults"
    TABLE = "table"
    ENVIRONMENT = "environment of one table"
    COMMAND_LINE = "command line"

    @property
    def of_all(self) -> bool:
        """It speaks to every model, also to those that have no use for the key."""
        return self in (Layer.ENVIRONMENT_OF_ALL, Layer.DEFAULTS, Layer.COMMAND_LINE_OF_ALL)

    @property
    def is_environment(self) -> bool:
        return self in (Layer.ENVIRONMENT_OF_ALL, Layer.ENVIRONMENT)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one value comes from.

    name: of the variable, or what follows `--set`. file, line: of a value in a file; line is None where no text was
    read. folder: what its relative paths are relative to.
    """

    layer: Layer
    name: str = ""
    file: Path | None = None
    line: int | None = None
    folder: Path | None = None

    @property
    def place(self) -> str:
        """For errors: `/srv/headpond.toml:12`, `HEADPOND_DEFAULTS__SLOTS`, `--set chat.slots`."""
        if self.file is not None:
            return str(self.file) if self.line is None else f"{self.file}:{self.line}"
        if self.layer in (Layer.COMMAND_LINE, Layer.COMMAND_LINE_OF_ALL):
            return f"--set {self.name}"
        return self.name or self.layer.value

    def shown(self, folder: Path) -> str:
        """For people: `built-in`, `HEADPOND_DEFAULTS__SLOTS`, `headpond.toml:12 [defaults]`, `conf.d/a.toml:3`.

        folder: files below it are shown relative to it.
        """
        if self.file is not None:
            file = self.file.relative_to(folder) if self.file.is_relative_to(folder) else self.file
            line = "" if self.line is None else f":{self.line}"
            return f"{file}{line}{' [defaults]' if self.layer is Layer.DEFAULTS else ''}"
        if self.layer is Layer.COMMAND_LINE_OF_ALL:
            return "--set [defaults]"
        return "--set" if self.layer is Layer.COMMAND_LINE else self.place


BUILT_IN = Origin(Layer.BUILT_IN)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a configuration. model: whose table it spoils; empty: everybody's."""

    where: str
    message: str
    model: str = ""

    def error(self) -> ConfigError:
        return ConfigError(self.message, where=self.where)
