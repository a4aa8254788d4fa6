"""GBNF of JSON numbers within bounds. Pure."""

from __future__ import annotations

from math import isfinite

from headpond_workers.engines.grammar.gbnf import GrammarError

MAX_DIGITS = 16
LARGEST = 10**MAX_DIGITS - 1
FRACTION = '("." [0-9]{1,16})'
INTEGER = '"-"? ("0" | [1-9] [0-9]{0,15})'
NUMBER = f'"-"? ("0" | [1-9] [0-9]{{0,15}}) {FRACTION}? ([eE] [-+]? [0-9]{{1,2}})?'


def integer_between(least: int | None, most: int | None) -> str:
    """Integers of at most 16 digits from least to most, both included; None is no bound.

    Raises GrammarError if there is none.
    """
    if least is None and most is None:
        return INTEGER
    low = -LARGEST if least is None else max(least, -LARGEST)
    high = LARGEST if most is None else min(most, LARGEST)
    if low > high:
        raise GrammarError(f"there is no integer of at most {MAX_DIGITS} digits {_span(least, most)}")
    ways = []
    if low < 0:
        ways.append(f'"-" ({_natural(max(1, -high), -low)})')
    if high >= 0:
        ways.append(_natural(max(0, low), high))
    return " | ".join(ways)


def number_between(least: float | None, most: float | None, *, below: bool) -> str:
    """Numbers from least to most, without an exponent if there is a bound. below: most itself is left out.

    Raises GrammarError for a bound that is no whole number, and if there is no such number.
    """
    if least is None and most is None:
        return NUMBER
    low, high = _whole(least, -LARGEST), _whole(most, LARGEST)
    if low > high or (below and low == high):
        raise GrammarError(f"there is no number {_span(least, most)}{', that one left out' if below else ''}")
    ways = []
    if low < 0:
        # What a minus sign stands before: from -high (0 if that is above 0) to -low.
        ways.append(f'"-" ({_magnitudes(max(0, -high), -low, without_first=below and high <= 0)})')
    if high > 0 or (high == 0 and not below):
        ways.append(_magnitudes(max(0, low), high, without_last=below))
    return " | ".join(ways)


def _span(least: float | None, most: float | None) -> str:
    low, high = (
        "" if bound is None else str(bound) if abs(bound) <= LARGEST else f"{float(bound):.0e}"
        for bound in (least, most)
    )
    return f"from {low} to {high}" if low and high else f"from {low} on" if low else f"up to {high}"


def _magnitudes(low: int, high: int, *, without_first: bool = False, without_last: bool = False) -> str:
    ways = []
    if without_first and low < high:
        # Any fraction that is not 0, whatever zeros it ends with.
        ways.append(f'"{low}." "0"{{0,15}} [1-9] [0-9]{{0,15}}')
        low += 1
    if low < high:
        ways.append(f"({_natural(low, high - 1)}) {FRACTION}?")
    if not without_last and not (without_first and low > high):
        ways.append(f'"{high}" ("." "0"{{1,16}})?')
    return " | ".join(ways)


def _whole(bound: float | None, otherwise: int) -> int:
    if bound is None:
        return otherwise
    if not isfinite(bound) or bound != int(bound) or abs(bound) > LARGEST:
        raise GrammarError(
            f"the bound {bound!r} of a number is no whole number of at most {MAX_DIGITS} digits, and no other can be "
            "kept to"
        )
    return int(bound)


def _natural(low: int, high: int) -> str:
    """Decimal digits of the whole numbers from low to high, 0 <= low <= high, without zeros in front."""
    ways = []
    while low <= high:
        digits = len(str(low))
        last = min(high, 10**digits - 1)
        ways.append(_same_length(str(low), str(last)))
        low = 10**digits
    return " | ".join(ways)


def _same_length(low: str, high: str) -> str:
    """Digits from low to high, which have the same number of them."""
    if not low:
        return '""'
    if low == high:
        return f'"{low}"'
    rest = len(low) - 1
    if set(low[1:]) <= {"0"} and set(high[1:]) <= {"9"}:
        return f"[{low[0]}-{high[0]}]{f' [0-9]{{{rest}}}' if rest else ''}"
    if low[0] == high[0]:
        return f'"{low[0]}" ({_same_length(low[1:], high[1:])})'
    ways = [f'"{low[0]}" ({_same_length(low[1:], "9" * rest)})']
    if int(low[0]) + 1 < int(high[0]):
        ways.append(f"[{int(low[0]) + 1}-{int(high[0]) - 1}] [0-9]{{{rest}}}")
    ways.append(f'"{high[0]}" ({_same_length("0" * rest, high[1:])})')
    return " | ".join(ways)
