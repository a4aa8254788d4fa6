"""Scripts are linked with what they use of the parts, and with nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

import headpond
from headpond.linking import Parts, link, names_in, with_constants
from headpond.scripts import OF_NAMES, PARTS, SELDOM, load_script, read_lua
from headpond_workers.supervision.embedded_valkey import running_valkey

Lua = Callable[[str], Any]
SCRIPTS = sorted(path.stem for path in (Path(headpond.__file__).parent / "lua").glob("*.lua"))
DECLARED = re.compile(
    r"\blocal function (\w+)\(([^)]*)\)|\bfunction \w*\(([^)]*)\)|\blocal (?!function\b)(\w+(?:\s*,\s*\w+)*)"
    r"|\bfor (\w+(?:\s*,\s*\w+)*)\s*(?:=|in\b)"
)


@pytest.fixture(scope="module")
def lua(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lua]:
    """Runs Lua text on a server of its own."""
    with running_valkey(tmp_path_factory.mktemp("lua") / "server") as valkey, Redis.from_url(valkey.url) as client:
        yield lambda source: client.eval(source, 0)


def declared(text: str) -> list[str]:
    """Every name that Lua text declares: functions, parameters, locals, what loops count."""
    return [
        name.strip()
        for groups in DECLARED.findall(re.sub(r"--[^\n]*", "", text))
        for group in groups
        for name in group.split(",")
        if name.strip() not in ("", "...")
    ]


def test_a_script_gets_what_it_uses_directly_or_not_and_no_more(lua: Lua) -> None:
    parts = Parts([
        ("a", "local base = 40\n\nlocal function first() return base end\nlocal function unused() return base end\n"),
        ("b", "-- What it is for.\nlocal function second() return first() + 2 end\n"),
    ])  # fmt: skip
    source = link("return second()", parts)
    assert lua(source) == 42
    assert "unused" not in source
    assert "What it is for" not in source


def test_a_statement_belongs_to_the_definition_before_it(lua: Lua) -> None:
    parts = Parts([("a", "local all = {}\ndo\n  all[1] = 'x'\nend\nlocal other = all\n")])
    assert lua(link("return all[1]", parts)) == b"x"
    assert "other" not in link("return all[1]", parts)


def test_numbers_stand_where_constants_stood_but_in_strings_fields_and_comments(lua: Lua) -> None:
    parts = Parts([("a", "local MANY, FEW = 12, -1  -- of each\nlocal WORDS = { 'MANY' }\n")])
    source = link("local t = {}\nt.MANY = 5\nreturn { MANY, FEW, WORDS[1], t.MANY, 'MANY' }  -- MANY", parts)
    assert lua(source) == [12, -1, b"MANY", 5, b"MANY"]
    assert source.endswith("-- MANY")
    assert "local MANY" not in source
    assert "local WORDS" in source


def test_what_is_seldom_reached_is_made_at_its_first_call_and_kept(lua: Lua) -> None:
    parts = Parts([
        ("a", "local made = {}\nlocal function inner(x) return x * 2 end\nlocal function both(x) return x end\n"),
        ("b", "local function rare(x, ...)\n  made[#made + 1] = inner\n  if x > 1 then return rare(x - 1, ...) end\n"
              "  return both(inner(x)), ...\nend\n"),
    ])  # fmt: skip
    own = "local a, b = rare(3, 7)\nlocal c = rare(1)\nreturn { a, b, c, made[1] == made[4] and #made or -1, both(5) }"
    linked = link(own, parts, seldom=frozenset({"rare"}))
    assert lua(linked) == lua(link(own, parts)) == [2, 7, 2, 4, 5]
    # What it alone uses is inside, what others use as well is not, and state never is.
    before, _, inside = linked.partition("rare = function(...)")
    assert "function inner" in inside
    assert "function both" in before
    assert "local made" in before


def test_what_is_seldom_reached_may_stand_in_what_is_seldom_reached(lua: Lua) -> None:
    parts = Parts([
        ("a", "local function low() return 1 end\nlocal function mid() return low() + 1 end\n"
              "local function high() return mid() + 1 end\n"),
    ])  # fmt: skip
    linked = link("return { high(), high() }", parts, seldom=frozenset({"high", "mid"}))
    assert lua(linked) == [3, 3]
    assert linked.index("high = function(...)") < linked.index("mid = function(...)") < linked.index("function low")


@given(st.data())
def test_any_order_of_use_links_to_the_same_answer(lua: Lua, data: st.DataObject) -> None:
    """Functions that add up what they call; whatever is made late must add up to the same."""
    count = data.draw(st.integers(1, 9))
    called = [data.draw(st.sets(st.integers(0, n - 1), max_size=3)) if n else set() for n in range(count)]
    texts = [
        f"local function f{n}() return {n + 1}" + "".join(f" + f{m}()" for m in sorted(called[n])) + " end\n"
        for n in range(count)
    ]
    roots = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    seldom = frozenset(f"f{n}" for n in data.draw(st.sets(st.integers(0, count - 1))))
    own = "return { " + ", ".join(f"f{n}()" for n in sorted(roots) * 2) + " }"
    values: list[int] = []
    for n in range(count):
        values.append(n + 1 + sum(values[m] for m in called[n]))
    linked = link(own, Parts([("all", "".join(texts))]), seldom=seldom)
    assert lua(linked) == [values[n] for n in sorted(roots) * 2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("call('GET', 'x')\n", "begins with no definition"),
        ("local a = 1\nlocal function a() end\n", "a is defined in it and in it"),
        ("local = 3\n", "defines nothing"),
    ],
)
def test_a_part_that_cannot_be_taken_apart_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Parts([("it", text)])


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_hides_a_name_of_the_parts(name: str) -> None:
    """The linker would take a parameter of that name for a use, and a reader one for the other."""
    parts = Parts((part, read_lua(f"parts/{part}.lua")) for part in (("names",) if name in OF_NAMES else PARTS))
    defined = {each for definition in parts.definitions for each in definition.names} | parts.constants.keys()
    assert defined.isdisjoint(declared(read_lua(f"{name}.lua")))


def test_no_part_hides_a_name_of_another() -> None:
    texts = [read_lua(f"parts/{part}.lua") for part in (*PARTS, "guard")]
    defined = Parts(zip(PARTS, texts, strict=False))
    once = [each for definition in defined.definitions for each in definition.names] + list(defined.constants)
    everything = [name for text in texts for name in declared(text)]
    assert {name: everything.count(name) for name in once} == dict.fromkeys(once, 1)


def test_each_function_that_is_seldom_reached_is_there_and_some_script_makes_it_late() -> None:
    sources = [load_script(name).source for name in SCRIPTS]
    assert [name for name in SELDOM if not any(f"\nlocal {name}\n{name} = function(...)" in s for s in sources)] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_holds_no_function_that_it_does_not_use(name: str) -> None:
    source = load_script(name).source
    functions = re.findall(r"local function (\w+)\(", source)
    uses = re.findall(r"(?<![\w.:])\w+", re.sub(r"--[^\n]*|'[^'\n]*'", "", source))
    assert [function for function in functions if uses.count(function) < 2] == []


def test_names_are_those_outside_of_strings_fields_and_comments() -> None:
    assert names_in("a.b = c 'd' -- e\nf(\"g\", h1, 2, i:j())") == {"a", "c", "f", "h1", "i"}
    assert with_constants("A.A = A 'A' -- A", {"A": "7"}) == "7.A = 7 'A' -- A"
