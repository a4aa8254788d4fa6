"""The rules of a grammar that is made of a JSON schema, each with its place in the schema. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from headpond_workers.engines.grammar.gbnf import ROOT, GrammarError

MAX_GBNF_BYTES = 1 << 22
MAX_STEP = 60
"""Characters of one name in a place that is shown."""
TOP = "#"


@dataclass(frozen=True, slots=True)
class SchemaGrammar:
    """text: GBNF. places: of each rule that was made for a part of the schema, that part, as a JSON pointer."""

    text: str
    places: Mapping[str, str]


class SchemaRules:
    """Rules under names of their own: v0, v1 ... place: of the schema whose rules are made now."""

    def __init__(self) -> None:
        self.place = TOP
        self._bodies: dict[str, str] = {}
        self._places = {ROOT: TOP}
        self._bytes = 0

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """What is made in here is of this place in the schema. What fails in here says so, once."""
        around, self.place = self.place, place
        try:
            yield
        except GrammarError as error:
            if error.place:
                raise
            raise GrammarError(f"{place}: {error}", reason=error.reason, place=place) from None
        finally:
            self.place = around

    def new(self, body: str) -> str:
        """The name of a rule for this GBNF. Raises GrammarError for too much of it in all."""
        name = f"v{len(self._bodies)}"
        self._bytes += len(body)
        if self._bytes > MAX_GBNF_BYTES:
            raise GrammarError("here the schema becomes too large to be followed; make it smaller")
        self.define(name, body, place=self.place)
        return name

    def define(self, name: str, body: str, *, place: str) -> None:
        """A rule under a name that was chosen before its GBNF was known."""
        self._bodies[name] = body
        self._places[name] = place

    def grammar(self, root: str, more: str) -> SchemaGrammar:
        """All rules. root: GBNF of the root. more: lines of rules that any schema may use."""
        rules = "".join(f"{name} ::= {body}\n" for name, body in self._bodies.items())
        # Behind the rules that it uses: so what is wrong is found in the smallest part that has it.
        return SchemaGrammar(f"{rules}{ROOT} ::= {root}\n{more}", self._places)


def pointer_step(name: str) -> str:
    """A name as a part of a JSON pointer, cut where it is long."""
    step = name.replace("~", "~0").replace("/", "~1")
    return step if len(step) <= MAX_STEP else f"{step[:MAX_STEP]}..."
