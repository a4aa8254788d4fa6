"""Settings that are wrong, and names of models that are taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headpond.errors.base import HeadpondError

if TYPE_CHECKING:
    from collections.abc import Iterable


class ConfigError(HeadpondError):
    """A setting is wrong. `where` names the file, and the key or line in it."""

    def __init__(self, message: str, *, where: str) -> None:
        super().__init__(f"{where}: {message}")
        self.where = where


@dataclass(frozen=True, slots=True)
class NameConflict:
    """One name that others hold. holders: (id, in words) of each other deployment. differences: (key, here, there)."""

    name: str
    holders: tuple[tuple[str, str], ...]
    differences: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        lines = [f"The name '{self.name}' belongs to another model on this Redis. These hold it:"]
        lines += [f"  deployment {shown}" for _, shown in self.holders]
        lines += ["The two models differ in:"]
        lines += [f"  {key}: {here} here, {there} there" for key, here, there in self.differences]
        lines += [
            f"Give this model another name, or make these settings equal, or stop it there: headpond models stop "
            f"{self.name}. If a deployment is never coming back:"
        ]
        lines += [f"  headpond models forget {self.name} --deployment {holder}" for holder, _ in self.holders]
        return "\n".join(lines)


class NameTaken(ConfigError):
    """Other deployments on this Redis mean other models by these names. Nothing was started or changed."""

    def __init__(self, conflicts: Iterable[NameConflict], *, where: str) -> None:
        self.conflicts = tuple(conflicts)
        super().__init__("\n".join(str(conflict) for conflict in self.conflicts), where=where)


class NameInUse(HeadpondError):
    """The name of a model is in use, so it is not forgotten. Nothing was changed."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"The name '{model}' is not forgotten: {reason}")
        self.model = model
