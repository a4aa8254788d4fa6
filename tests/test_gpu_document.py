"""docs/gpu.md says of errors and of memory what the code says, and of the run on a GPU what was recorded."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headpond_workers import engines
from headpond_workers.engines.exllama.memory import CacheType, KvShape, stored_bytes, unpacked_bytes

DOCS = Path(__file__).parents[1] / "docs"
DOCUMENT = (DOCS / "gpu.md").read_text(encoding="utf-8")
RUN = DOCS / "gpu" / "2026-11-26-h200.json"
MODELS = ("smollm2-135m-fp16", "smollm2-135m-6.0bpw")
MODULES = [
    path
    for folder in ("exllama", "exllamav2")
    for path in sorted(Path(engines.__path__[0], folder).glob("*.py"))
    if path.name != "engine.py"
]
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


def outcome(suite: dict[str, Any]) -> str:
    counts = {"passed": suite["passed"], "failed": len(suite["failed"]), "skipped": suite["skipped"]}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def test_what_ran_on_a_gpu_is_told_as_it_was_recorded() -> None:
    run = json.loads(RUN.read_text(encoding="utf-8"))
    assert f"({RUN.parent.name}/{RUN.name})" in DOCUMENT
    for said in (run["device"]["name"], run["device"]["driver"], f"{run['device']['memory_mib']} MiB"):
        assert said in DOCUMENT
    for package in ("torch", "exllamav2", "flash_attn", "python"):
        assert f" {run['versions'][package]}" in DOCUMENT
    assert f"took {run['compiled']['exllamav2_ext_s']} s" in DOCUMENT
    outcomes = {(each["suite"], each["model"]): outcome(each) for each in run["suites"]}
    told = {name.strip("`"): cells for name, *cells in table("tests", "FP16", "EXL2, 6.0 bits")}
    assert told == {name: [outcomes[name, model] for model in MODELS] for name, _ in outcomes}
    for name in {name.partition("[")[0] for each in run["suites"] for name in each["failed"]}:
        assert f"- `{name}`" in DOCUMENT
    sides = ("engine_tokens_per_s", "exllamav2_tokens_per_s")
    rates = {each["model"]: [", ".join(map(str, each[side])) for side in sides] for each in run["throughput"]}
    speeds = table("weights", "headpond's engine", "exllamav2 called directly")
    assert [cells for _, *cells in speeds] == [rates[model] for model in MODELS]


def test_what_is_told_of_seeds_was_recorded() -> None:
    plain, quantised = (json.loads(RUN.read_text(encoding="utf-8"))["seeds"]["parted_after"][model] for model in MODELS)
    assert f"with each of {len(quantised)} seeds" in DOCUMENT
    assert f"over {len(plain)} seeds" in DOCUMENT
    assert all(after is None for runs in plain for after in runs)
    assert all(after is not None for runs in quantised for after in runs)
