"""What options of a command say of sampling and of the form of an answer. Files are bounded before they are read."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headpond.errors import InvalidRequest
from headpond.errors.documents import decoding_reason
from headpond.requests import MAX_BODY_BYTES
from headpond.sampling import BASIC, Sampling

MAX_FILE_BYTES = MAX_BODY_BYTES
"""Of a schema, format or grammar: white space in it does not count against the request's own limits."""
NAMES = tuple(sorted(Sampling.model_fields.keys() - BASIC))
ANY_JSON = "json"


def sampling_of(settings: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments of `submit` from KEY=VALUE; VALUE is JSON. Raises InvalidRequest."""
    given: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise InvalidRequest(f"--sampling {setting[:100]}: write KEY=VALUE, such as top_k=40", field="sampling")
        if name not in NAMES:
            if name in BASIC:
                raise InvalidRequest(f"--sampling {name}: has an option, --{name.replace('_', '-')}", field=name)
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(NAMES)}"
            raise InvalidRequest(f"--sampling {name[:100]}: no such setting; {hint}", field="sampling")
        if name in given:
            raise InvalidRequest(f"--sampling {name}: given twice", field=name)
        try:
            given[name] = json.loads(value)
        except (ValueError, RecursionError):
            raise InvalidRequest(
                f"--sampling {name}: {value[:100]!r} is not JSON. Numbers are written as they are, texts in quotes: "
                f"""--sampling 'dry_sequence_breakers=["\\n"]'""",
                field=name,
            ) from None
    return given


def form_of(response_format: str | None, json_schema: Path | None, grammar: Path | None) -> dict[str, Any]:
    """Keyword arguments of `submit` for the form of the answer. Raises InvalidRequest."""
    given = [
        name
        for name, value in (
            ("--response-format", response_format),
            ("--json-schema", json_schema),
            ("--grammar", grammar),
        )
        if value is not None
    ]
    if len(given) > 1:
        raise InvalidRequest(f"give one of {' and '.join(given)}", field="response_format")
    if json_schema is not None:
        schema = _json(json_schema, "--json-schema")
        return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    if grammar is not None:
        return {"grammar": _text(grammar, "--grammar")}
    if response_format is None:
        return {}
    if response_format == ANY_JSON:
        return {"response_format": {"type": "json_object"}}
    return {"response_format": _json(Path(response_format), "--response-format")}


def _json(path: Path, option: str) -> dict[str, Any]:
    try:
        value = json.loads(_text(path, option))
    except (ValueError, RecursionError) as error:
        why = decoding_reason(error)[:200]
        raise InvalidRequest(f"{option} {path}: not JSON: {why}", field="response_format") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{option} {path}: a JSON object is wanted, in braces", field="response_format")
    return value


def _text(path: Path, option: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(f"{option} {path}: {error.strerror or error}", field="response_format") from None
    if len(data) > MAX_FILE_BYTES:
        raise InvalidRequest(f"{option} {path}: more than {MAX_FILE_BYTES} bytes", field="response_format")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{option} {path}: not UTF-8 at byte {error.start}. Convert it with: iconv -t utf-8",
            field="response_format",
        ) from None
