"""What models have that load weights: from a path of the machine, or from a version in storage."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import field_validator

from headpond.errors import EngineUnavailable, InvalidRequest
from headpond.tables.model import ModelTable
from headpond.tables.version_source import VersionSource, is_version_source


class VersionedModel(ModelTable):
    """A model whose weights may be a version in storage."""

    host_keys: ClassVar[frozenset[str]] = frozenset({"rollover"})

    path: Path | None = None
    """Of the weights on this machine."""
    source: str | None = None
    """A version in storage, `s3:NAME@ALIAS` or `s3:NAME@3`; see [versions.md](versions.md)."""
    rollover: Literal["in-place", "side-by-side"] = "in-place"
    """How a worker changes to another version: it leaves the one and loads the other, or the other is loaded beside it
    first. Only with a version as `source`."""

    @field_validator("source")
    @classmethod
    def _is_a_source(cls, source: str | None) -> str | None:
        if source is not None:
            cls._check_source(source)
        return source

    @classmethod
    def _check_source(cls, source: str) -> None:
        """Raises ValueError for what can be no source of this engine."""
        try:
            VersionSource.parse(source)
        except InvalidRequest as error:
            raise ValueError(str(error)) from error

    @property
    def version_source(self) -> VersionSource | None:
        if self.source is None or not is_version_source(self.source):
            return None
        return VersionSource.parse(self.source)

    @property
    def local_path(self) -> Path:
        """Where the weights are on this machine. Raises EngineUnavailable for a table whose version was not fetched."""
        if self.path is None:
            raise EngineUnavailable(
                f"The weights of {self.source} are not on this machine. Fetch them with: headpond models pull, and "
                "give their folder as path; a worker fetches them by itself."
            )
        return self.path

    def loaded_from(self, path: Path) -> Self:
        """The same table with the version on this machine, in place of where it came from."""
        return self.model_copy(update={"path": path, "source": None})

    def anchored(self, folder: Path) -> Self:
        path = None if self.path is None else folder / self.path.expanduser()
        return self.model_copy(update={"path": path})
