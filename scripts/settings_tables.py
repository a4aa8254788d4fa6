"""Write the tables of docs/configuration.md from the classes that check headpond.toml.

    python scripts/settings_tables.py            # writes
    python scripts/settings_tables.py --check    # exits with 1 if something would change, or a class has no table

A table stands below a line `<!-- table: CLASS -->`. Types and defaults are those of the class, meanings the texts below
its fields. An engine's table leaves out what it has as every model has it.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from headpond.settings import RedisSettings, StorageSettings
from headpond.shapes import table_of, values_of
from headpond.tables import ENGINES, ModelTable, Table

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
HEAD = "| key | type | default | meaning |\n|---|---|---|---|\n"
_TABLE = re.compile(r"^<!-- table: (\w+) -->\n(?:\|.*\n)*", re.MULTILINE)


def documented() -> dict[str, type[Table]]:
    """Every class that a table of the document is about, by name: of servers, of engines, and what stands in those."""
    found: dict[str, type[Table]] = {}
    waiting: list[type[Table]] = [RedisSettings, StorageSettings, ModelTable, *ENGINES.values()]
    while waiting:
        table = waiting.pop(0)
        if table.__name__ not in found:
            found[table.__name__] = table
            waiting += _inner(table)
    return found


def rendered(text: str) -> str:
    """The document with its tables as the classes have them. Raises KeyError for a class that is none."""
    classes = documented()
    return _TABLE.sub(lambda match: f"<!-- table: {match[1]} -->\n{table(classes[match[1]])}", text)


def missing(text: str) -> list[str]:
    """Classes without a table."""
    present = {match[1] for match in _TABLE.finditer(text)}
    return [name for name in documented() if name not in present]


def table(kind: type[Table]) -> str:
    """The rows of one class."""
    meanings = _meanings(kind)
    schema = kind.model_json_schema()
    rows = []
    for key in _own_keys(kind):
        info = kind.model_fields[key]
        default = "required"
        if not info.is_required():
            value = info.get_default(call_default_factory=True, validated_data={})
            default = "none" if value is None else f"`{json.dumps(value)}`"
        if key not in meanings:
            raise KeyError(f"{kind.__name__}.{key} has no text that says what it means")
        rows.append(f"| `{key}` | {shown_type(schema['properties'][key])} | {default} | {meanings[key]} |\n")
    return HEAD + "".join(rows)


def shown_type(field: dict[str, Any]) -> str:
    """What a value may be, from its JSON schema."""
    choices = [choice for choice in field.get("anyOf", [field]) if choice.get("type") != "null"]
    if len(choices) > 1:
        return " or ".join(dict.fromkeys(map(shown_type, choices)))
    field = choices[0]
    if "$ref" in field:
        return "[secret reference](#secrets)" if field["$ref"].endswith("/SecretRef") else "table"
    if field.get("type") == "object":
        kinds = field.get("patternProperties") or {"": field.get("additionalProperties", {})}
        (value,) = kinds.values()
        return f"table of {_plural(value)}"
    if field.get("type") == "array":
        return f"list of {_plural(field.get('items') or next(iter(field.get('prefixItems', [{}]))))}"
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in field["enum"])
    if field.get("format") == "path":
        return "path"
    return f"{field.get('type', 'anything')}{_limits(field)}"


def _limits(field: dict[str, Any]) -> str:
    least, most, above = (field.get(name) for name in ("minimum", "maximum", "exclusiveMinimum"))
    if above is not None:
        return f", more than {above:g}" + ("" if most is None else f", at most {most:.0f}")
    if least is not None:
        return f", {least:g} or more" if most is None else f", {least:g} to {most:.0f}"
    return "" if most is None else f", at most {most:.0f}"


def _plural(field: dict[str, Any]) -> str:
    if not field:
        return "values"
    shown = shown_type(field)
    if shown.startswith("`"):
        return shown
    words = (re.sub(r"\[([^]]*)\]\(.*\)", r"\1", each.split(",")[0]) for each in shown.split(" or "))
    return " or ".join(f"{word}s" for word in words)


def _own_keys(kind: type[Table]) -> list[str]:
    if kind is ModelTable or not issubclass(kind, ModelTable):
        return list(kind.model_fields)
    own = {key for each in _between(kind) for key in each.__annotations__}
    return [key for key in kind.model_fields if key in own]


def _between(kind: type[Table]) -> Iterable[type[Table]]:
    return (each for each in kind.__mro__ if issubclass(each, ModelTable) and each is not ModelTable)


def _meanings(kind: type[Table]) -> dict[str, str]:
    """The texts below the fields; those of a class beat those of its parents."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not (isinstance(each, type) and issubclass(each, Table)):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        if not isinstance(body, ast.ClassDef):
            continue
        for field, text in zip(body.body, body.body[1:], strict=False):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if (
                isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[field.target.id] = " ".join(text.value.value.split()).replace("|", "\\|")
    return found


def _inner(kind: type[Table]) -> list[type[Table]]:
    found = []
    for info in kind.model_fields.values():
        annotation: Any = info.annotation
        while (values := values_of(annotation)) is not None:
            annotation = values
        inner = table_of(annotation)
        found += [inner] if inner is not None else []
    return found


def main(arguments: list[str]) -> int:
    text = DOCUMENT.read_text(encoding="utf-8")
    written, lacking = rendered(text), missing(text)
    for name in lacking:
        print(f"{DOCUMENT.name} has no line <!-- table: {name} -->", file=sys.stderr)
    if "--check" not in arguments:
        DOCUMENT.write_text(written, encoding="utf-8")
    elif written != text:
        print(f"{DOCUMENT.name} is not up to date: python scripts/settings_tables.py", file=sys.stderr)
        return 1
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
