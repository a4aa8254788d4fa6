"""Files of records of runs: JSON, a line for each row, checked as they are read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from headpond.errors import MalformedDocument

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R", bound="DataclassInstance")
VERSION = 1


class RecordFile(Generic[R]):
    """How records of one kind of run are written and read."""

    def __init__(self, schema: str, record: type[R], *, rows: Mapping[str, Sequence[str]], pattern: str) -> None:
        """record: a dataclass. rows: its fields that are lists of rows, and what each row holds. pattern: of the names
        of files, such as `chaos*.json`."""
        self.schema, self._record, self._rows, self._pattern = schema, record, rows, pattern

    def to_json(self, record: R) -> str:
        text = json.dumps({"schema": self.schema, "v": VERSION, **asdict(record)}, indent=1, ensure_ascii=False)
        return re.sub(r"\[[^\[\]{}]*\]", lambda row: re.sub(r"\n\s*", " ", row[0]), text) + "\n"

    def from_json(self, text: str, *, where: str) -> R:
        """where: the file, for the message. Raises MalformedDocument."""
        try:
            fields: dict[str, Any] = json.loads(text)
            if fields.pop("schema") != self.schema or fields.pop("v") != VERSION:
                raise MalformedDocument(self.schema, f"{where} has another schema or version")
            for name, columns in self._rows.items():
                if any(len(row) != len(columns) for row in fields[name]):
                    raise MalformedDocument(
                        self.schema, f"{where}: a row of `{name}` has other fields than {', '.join(columns)}"
                    )
            return self._record(**fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MalformedDocument(self.schema, f"{where}: {error!r}") from error

    def load(self, folder: Path) -> list[tuple[str, R]]:
        """All of a folder with their names, by name. Raises MalformedDocument."""
        return [
            (path.name, self.from_json(path.read_text(encoding="utf-8"), where=path.name))
            for path in sorted(folder.glob(self._pattern))
        ]
