"""What an answer must look like: any text, JSON, JSON of a schema, or text of a grammar. No I/O."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_CONSTRAINT_BYTES = 1 << 16
"""Upper bound of one schema, as compact JSON, or of one grammar, in UTF-8 bytes."""
MAX_SCHEMA_DEPTH = 32


class ConstraintKind(StrEnum):
    JSON_OBJECT = "json_object"
    """Any JSON object."""
    JSON_SCHEMA = "json_schema"
    """A JSON value that the schema admits."""
    GRAMMAR = "grammar"
    """A text that a GBNF grammar admits, from its rule `root`."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """text: the schema as JSON, or the grammar as GBNF; empty for JSON_OBJECT."""

    kind: ConstraintKind
    text: str = ""


class JsonSchema(BaseModel):
    """As in OpenAI's API: a name, which is for people, and the schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, serialize_by_alias=True, validate_by_name=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = "answer"
    description: Annotated[str, Field(max_length=1024)] | None = None
    definition: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _bounded(self) -> JsonSchema:
        _check_depth(self.definition, MAX_SCHEMA_DEPTH)
        try:
            size = len(self.text().encode())
        except (TypeError, ValueError, UnicodeEncodeError) as error:
            raise ValueError(f"the schema is not JSON: {error}") from None
        if size > MAX_CONSTRAINT_BYTES:
            raise ValueError(f"the schema has {size} bytes; the limit is {MAX_CONSTRAINT_BYTES}")
        return self

    def text(self) -> str:
        """The schema as compact JSON, in the order in which it was given: properties are generated in that order."""
        return json.dumps(self.definition, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


class ResponseFormat(BaseModel):
    """`response_format` of OpenAI's API."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _one_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError('type = "json_schema" needs json_schema = {"schema": {...}}, and no other type takes it')
        return self

    def constraint(self) -> Constraint | None:
        """None for any text."""
        if self.json_schema is not None:
            return Constraint(ConstraintKind.JSON_SCHEMA, self.json_schema.text())
        return Constraint(ConstraintKind.JSON_OBJECT) if self.type == "json_object" else None


def _check_depth(value: object, left: int) -> None:
    if left < 0:
        raise ValueError(f"the schema is nested deeper than {MAX_SCHEMA_DEPTH}")
    if isinstance(value, dict):
        for item in value.values():
            _check_depth(item, left - 1)
    elif isinstance(value, list):
        for item in value:
            _check_depth(item, left - 1)
