"""docs/gpu.md says of errors and of memory what the code says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from headpond_workers import engines
from headpond_workers.engines.exllamav2_memory import CacheType, KvShape, stored_bytes, unpacked_bytes

DOCUMENT = (Path(__file__).parents[1] / "docs" / "gpu.md").read_text(encoding="utf-8")
MODULES = sorted(Path(engines.__path__[0]).glob("exllamav2_*.py"))
LEFT_OUT = "\u2026"
EXAMPLE = KvShape(layers=32, kv_heads=8, head_dim=128)


def table(*header: str) -> list[list[str]]:
    """The cells of the one table with these columns, without its head."""
    start = "| " + " | ".join(header) + " |\n"
    assert DOCUMENT.count(start) == 1
    lines = DOCUMENT.partition(start)[2].splitlines()[1:]
    rows = lines[: next((at for at, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def told_errors() -> list[re.Pattern[str]]:
    """The first column of the table of errors, as patterns."""
    shown = [cells[0].strip("`") for cells in table("`headpond status` shows", "what to do")]
    return [re.compile(".*?".join(map(re.escape, message.split(LEFT_OUT)))) for message in shown]


def raised_errors() -> Iterator[tuple[str, str]]:
    """Module and message of every EngineUnavailable; what an f-string fills in is LEFT_OUT."""
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "EngineUnavailable":
                message = node.args[0]
                parts = message.values if isinstance(message, ast.JoinedStr) else [message]
                yield (
                    module.stem,
                    "".join(str(part.value) if isinstance(part, ast.Constant) else LEFT_OUT for part in parts),
                )


def explained(message: str) -> str:
    """As a worker says it, where an f-string begins with words that several errors share, or ends with advice."""
    begins, ends = f"{LEFT_OUT}: {LEFT_OUT}", f". {LEFT_OUT}"
    if message == begins + ends:
        message = f"{begins}. The weights need {LEFT_OUT}"
    return message.replace(begins, f"exllamav2 cannot load {begins}", 1) if message.startswith(begins) else message


@pytest.mark.parametrize(("module", "message"), [pytest.param(*error, id=error[1][:60]) for error in raised_errors()])
def test_every_error_of_loading_is_told_with_what_to_do(module: str, message: str) -> None:
    assert any(told.match(explained(message)) for told in told_errors()), f"{module}: {message}"


def test_no_error_is_told_that_is_not_raised() -> None:
    raised = [explained(message) for _, message in raised_errors()]
    assert len(raised) > 25
    for told in told_errors():
        assert any(told.match(message) for message in raised), told.pattern


@pytest.mark.parametrize("row", table("`cache`", "bytes a token", "32 layers, 8 heads of 128"), ids=lambda row: row[0])
def test_a_cache_needs_the_bytes_that_are_told(row: list[str]) -> None:
    name, formula, told = row
    cache: CacheType = name.strip("`")  # type: ignore[assignment]
    size = stored_bytes(EXAMPLE, cache, 1)
    assert f"{size / 1024:g} KiB" == told
    letters = {"L": EXAMPLE.layers, "H": EXAMPLE.kv_heads, "D": EXAMPLE.head_dim}
    product = 1.0
    for factor in re.split(r" \u00d7 (?![^(]*\))", formula):
        product *= _value(factor, letters)
    assert product == size


def _value(factor: str, letters: dict[str, int]) -> float:
    """A letter, a number, or a sum of products in brackets."""
    if not factor.startswith("("):
        return float(letters.get(factor, 0) or factor)
    total = 0.0
    for term in factor.strip("()").split(" + "):
        value, *rest = re.split(r" ([\u00d7/]) ", term)
        result = _value(value, letters)
        for operator, operand in zip(rest[::2], rest[1::2], strict=True):
            number = _value(operand, letters)
            result = result * number if operator == "\u00d7" else result / number
        total += result
    return total


def test_the_sum_of_the_example_is_right() -> None:
    tokens = 65536
    assert f"cache_tokens = {tokens}\n" in DOCUMENT
    stored = stored_bytes(EXAMPLE, "Q8", tokens) / (1 << 30)
    unpacked = unpacked_bytes(EXAMPLE, "Q8", tokens) / (1 << 30)
    assert f"take {stored:g} GiB at `Q8` for that shape, and {unpacked:g} GiB unpacked" in DOCUMENT
