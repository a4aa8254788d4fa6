"""The Jinja environment of chat templates: no way out, and every step and every size has a bound.

Loops, calls, filters and operators spend from a budget of steps and of processor time, so an endless template
is stopped at its next step. That a single step stays small is kept by checking whatever can make something
large out of something small, before it is made: + * ~, literals, join, replace. Where a size has no such
check (center, format, batch ...), the filter or method is not there; no chat template is known to miss it.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NoReturn, cast

from jinja2 import TemplateError, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_STEPS = 1_000_000
MAX_CPU_S = 5.0
MAX_WEIGHT = 1 << 22
"""Of one value: the characters of a text; the items of a list, with all that is in them."""
MAX_NESTING = 32
MAX_NUMBER_BITS = 4096

_WITHOUT_FILTERS = (
    *("batch", "center", "format", "indent", "pprint", "random", "round", "slice", "urlize", "wordwrap", "xmlattr"),
)
_WITHOUT_METHODS = frozenset(
    ("center", "expandtabs", "format", "format_map", "ljust", "rjust", "to_bytes", "translate", "zfill")
)


class Budget:
    """What is left for one rendering."""

    def __init__(self) -> None:
        self._steps = MAX_STEPS
        self._end_s = time.thread_time() + MAX_CPU_S

    def spend(self, steps: int = 1) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise TemplateError(f"it takes more than {MAX_STEPS} steps")
        if time.thread_time() > self._end_s:
            raise TemplateError(f"it takes more than {MAX_CPU_S:g} s")


current_budget: ContextVar[Budget] = ContextVar("headpond_template_budget")
"""Set for the time of a rendering. While a template is compiled there is none, and no constant is folded."""


class TemplateSandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], finalize=_bounded
        )
        own: dict[str, Callable[..., Any]] = {
            "tojson": _to_json,
            "join": _join,
            "replace": _replace,
            "sum": _sum,
            "_counted": _counted,
            "_bounded": _bounded,
            "_concatenated": _concatenated,
        }
        filters = {name: made for name, made in self.filters.items() if name not in _WITHOUT_FILTERS} | own
        self.filters = {name: _spending(made) for name, made in filters.items()}
        self.globals = {
            "range": _range,
            "dict": dict,
            "namespace": self.globals["namespace"],
            "raise_exception": _raise_exception,
        }

    def bounded(self, source: str) -> nodes.Template:
        """Parse source, with its loops, literals and concatenations made to keep the bounds."""
        tree: nodes.Template = _Rewriter().visit(self.parse(source))
        tree.set_environment(self)
        return tree

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        current_budget.get().spend()
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and name in ("join", "replace"):
            return _join(args[0], owner) if name == "join" else _replace(owner, *args)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        current_budget.get().spend()
        _check_operands(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _WITHOUT_METHODS and super().is_safe_attribute(obj, attr, value)


class _Rewriter(NodeTransformer):
    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _through("_counted", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _through("_concatenated", nodes.List(node.nodes, lineno=node.lineno))

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _through("_bounded", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _through("_bounded", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _through("_bounded", node) if node.ctx == "load" else node


def _through(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None, lineno=node.lineno)


def _spending(made: Callable[..., Any]) -> Callable[..., Any]:
    # `wraps` also copies the mark by which Jinja knows what a filter wants as its first argument.
    @functools.wraps(made)
    def spending(*args: Any, **kwargs: Any) -> Any:
        current_budget.get().spend()
        return made(*args, **kwargs)

    return spending


def _weight(value: Any) -> int:
    """How large value is when it is written out. A part that occurs often is walked once, and counted often."""
    known: dict[int, int] = {}

    def of(part: Any, depth: int) -> int:
        if isinstance(part, str | bytes):
            return len(part)
        if not isinstance(part, list | tuple | set | frozenset | Mapping):
            return 1
        if depth > MAX_NESTING:
            raise TemplateError(f"it nests values more than {MAX_NESTING} deep")
        if id(part) not in known:
            keys = sum(of(key, depth + 1) for key in part)
            values = sum(of(item, depth + 1) for item in part.values()) if isinstance(part, Mapping) else 0
            known[id(part)] = 1 + len(part) + keys + values
        return known[id(part)]

    return of(value, 0)


def _bounded(value: Any) -> Any:
    _check_weight(_weight(value))
    return value


def _check_weight(weight: int) -> None:
    if weight > MAX_WEIGHT:
        raise TemplateError(f"it builds something of {weight} characters or items; the limit is {MAX_WEIGHT}")


def _check_operands(operator: str, left: Any, right: Any) -> None:
    numbers = [side for side in (left, right) if isinstance(side, int)]
    if operator == "%" and isinstance(left, str | bytes):
        raise TemplateError("it formats with %")
    if operator == "*" and len(numbers) == 1:
        _check_weight(_weight(right if numbers[0] is left else left) * max(1, abs(numbers[0])))
    elif operator == "+":
        _check_weight(_weight(left) + _weight(right))
    elif len(numbers) == 2:
        bits = [number.bit_length() for number in numbers]
        if (bits[0] * max(1, abs(numbers[1])) if operator == "**" else sum(bits)) > MAX_NUMBER_BITS:
            raise TemplateError(f"it computes with numbers of more than {MAX_NUMBER_BITS} bits")


def _concatenated(parts: list[Any]) -> str:
    _bounded(parts)
    return "".join(str(part) for part in parts)


def _join(items: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
    """attribute: joined instead of the item itself; a plain name, as templates use it."""
    parts = [item if attribute is None else item[attribute] for item in _counted(items)]
    _check_weight(_weight(parts) + len(separator) * len(parts))
    return separator.join(str(part) for part in parts)


def _replace(text: Any, old: str, new: str, count: int | None = None) -> str:
    whole = str(_bounded(text))
    found = whole.count(old)
    _check_weight(len(whole) + found * len(new))
    return whole.replace(old, new, -1 if count is None else count)


def _sum(items: Iterable[Any], attribute: str | None = None, start: float = 0) -> float:
    """Of numbers alone: a sum of lists is copied anew for each item."""
    total = start
    for item in _counted(items):
        number = item if attribute is None else item[attribute]
        if not (isinstance(total, (int, float)) and isinstance(number, (int, float))):
            raise TemplateError("sum takes numbers only")
        total += number
    return total


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    budget = current_budget.get()
    for item in items:
        budget.spend()
        yield item


def _range(*bounds: int) -> range:
    made = range(*bounds)
    current_budget.get().spend(min(len(made), MAX_STEPS + 1))
    return made


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(str(message))


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own escapes HTML; models were trained on plain JSON.
    width = None if indent is None else max(0, min(int(indent), 8))
    return json.dumps(_bounded(value), ensure_ascii=False, indent=width)
