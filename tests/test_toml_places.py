"""Lines of keys: what tomllib finds in a text stands at the line that is told."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headpond.toml_places import Place, dotted, given_twice, lines, parse_key, places

TEXT = '''# a comment with = and [brackets]
[redis]
url = "redis://h#not-a-comment"   # one
[models."smol.135m"]
path = 'C:\\no\\escape # here'
tenant_weights = {acme = 3, "two words" = 1}
long = """
[not.a.table]
x = "quotes \\""" within"
"""
adapters.formal.path = "a"
devices = [
  0,   # with ] a bracket
  1,
]
[[fruit]]
name = "apple"
[[fruit]]
name = "pear"
[fruit.skin]
colour = 1
when = 1979-05-27 07:32:00
'''


def test_each_key_and_header_stands_at_its_line() -> None:
    tomllib.loads(TEXT)
    found = lines(TEXT)
    assert found == {
        ("redis",): 2,
        ("redis", "url"): 3,
        ("models", "smol.135m"): 4,
        ("models", "smol.135m", "path"): 5,
        ("models", "smol.135m", "tenant_weights"): 6,
        ("models", "smol.135m", "tenant_weights", "acme"): 6,
        ("models", "smol.135m", "tenant_weights", "two words"): 6,
        ("models", "smol.135m", "long"): 7,
        ("models", "smol.135m", "adapters", "formal", "path"): 11,
        ("models", "smol.135m", "devices"): 12,
        ("fruit", "0"): 16,
        ("fruit", "0", "name"): 17,
        ("fruit", "1"): 18,
        ("fruit", "1", "name"): 19,
        ("fruit", "1", "skin"): 20,
        ("fruit", "1", "skin", "colour"): 21,
        ("fruit", "1", "skin", "when"): 22,
    }


keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
scalars = st.one_of(
    st.integers(-(2**60), 2**60), st.booleans(), st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
)
tables = st.recursive(
    st.dictionaries(keys, scalars, max_size=4), lambda inner: st.dictionaries(keys, inner | scalars, max_size=4)
)


def written(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{dotted((key,))} = {written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower()


def paths(value: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, each in value.items():
        yield (*before, key)
        if isinstance(each, dict):
            yield from paths(each, (*before, key))


@settings(deadline=None)
@given(tables)
def test_every_path_that_tomllib_finds_has_its_line(table: dict[str, Any]) -> None:
    text = "\n# c\n".join(f"{dotted((key,))} = {written(value)}" for key, value in table.items())
    assert tomllib.loads(text) == table
    found = lines(text)
    assert set(found) == set(paths(table))
    for number, key in enumerate(table):
        assert found[(key,)] == 2 * number + 1


@pytest.mark.parametrize(
    ("text", "path", "first", "second"),
    [
        ("[models.chat]\nslots = 1\n\n[models.chat]\n", ("models", "chat"), 1, 4),
        ("[redis]\nurl = 'a'\nurl = 'b'\n", ("redis", "url"), 2, 3),
        ("[models]\nchat = {engine = 'x'}\n[models.chat]\n", ("models", "chat"), 2, 3),
        ("a = {b = 1, b = 2}\n", ("a", "b"), 1, 1),
    ],
)
def test_what_is_given_twice_is_told_with_both_lines(text: str, path: tuple[str, ...], first: int, second: int) -> None:
    assert given_twice(text) == (Place(path, first), Place(path, second))


@pytest.mark.parametrize("text", ["[a", "a =", "= 1", "a = 'x", 'a = """x', "\x00", "[[", "a = {b", 'a."b\n" = 1'])
def test_a_text_that_is_none_is_read_as_far_as_it_goes(text: str) -> None:
    assert places(f"[first]\nkey = 1\n{text}")[:2] == [Place(("first",), 1), Place(("first", "key"), 2)]


@settings(deadline=None)
@given(st.lists(keys, min_size=1, max_size=4))
def test_a_dotted_key_is_read_back(parts: list[str]) -> None:
    assert parse_key(dotted(tuple(parts))) == tuple(parts)


@pytest.mark.parametrize("text", ["", "a.", ".a", "a b", "a=b", 'a."b', "ü", "a..b"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no key"):
        parse_key(text)
