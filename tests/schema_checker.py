"""Whether a JSON value is one that a schema admits: of the schema's own reading, not of the grammar's narrower one."""

from __future__ import annotations

import datetime
import re
import uuid
from typing import Any

_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
}  # fmt: skip


def admits(schema: Any, value: Any, root: Any = None) -> bool:
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        target = root
        for part in schema["$ref"].split("/")[1:]:
            target = target[int(part)] if isinstance(target, list) else target[part]
        return admits(target, value, root)
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and not any(value == one and type(value) is type(one) for one in schema["enum"]):
        return False
    for name in ("anyOf", "oneOf"):
        if name in schema and not any(admits(way, value, root) for way in schema[name]):
            return False
    if "allOf" in schema and not all(admits(way, value, root) for way in schema["allOf"]):
        return False
    types = schema.get("type", [])
    if types and not any(_is(value, name) for name in ([types] if isinstance(types, str) else types)):
        return False
    if isinstance(value, dict):
        return _object(schema, value, root)
    if isinstance(value, list):
        prefix = schema.get("prefixItems", [])
        rest = schema.get("items", True)
        return (
            schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**9)
            and all(admits(way, item, root) for way, item in zip(prefix, value, strict=False))
            and all(admits(rest, item, root) for item in value[len(prefix) :])
        )
    if isinstance(value, str):
        return _string(schema, value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return schema.get("minimum", float("-inf")) <= value <= schema.get("maximum", float("inf")) and schema.get(
            "exclusiveMinimum", float("-inf")
        ) < value < schema.get("exclusiveMaximum", float("inf"))
    return True


def _is(value: Any, name: str) -> bool:
    if name == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, _TYPES[name])


def _object(schema: Any, value: dict[str, Any], root: Any) -> bool:
    properties = schema.get("properties", {})
    others = [item for key, item in value.items() if key not in properties]
    return (
        all(key in value for key in schema.get("required", []))
        and all(admits(way, value[key], root) for key, way in properties.items() if key in value)
        and all(admits(schema.get("additionalProperties", True), item, root) for item in others)
    )


def _string(schema: Any, value: str) -> bool:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**9):
        return False
    if "pattern" in schema and not re.search(schema["pattern"], value):
        return False
    match schema.get("format"):
        case "date":
            return bool(re.fullmatch(r"\d{4}-\d\d-\d\d", value)) and _parses(datetime.date.fromisoformat, value)
        case "time":
            return _parses(datetime.time.fromisoformat, value)
        case "date-time":
            return _parses(datetime.datetime.fromisoformat, value)
        case "uuid":
            return _parses(uuid.UUID, value)
    return True


def _parses(parse: Any, value: str) -> bool:
    try:
        parse(value.replace("0000-", "0001-") if value.startswith("0000-") else value)
    except ValueError:
        return False
    return True
