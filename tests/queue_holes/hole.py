"""A hole, and a build of the queue in which it is open: some text of its scripts, or of its Python, replaced."""

from __future__ import annotations

import importlib
import inspect
import shutil
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path

import pytest

from headpond import scripts, upkeep
from headpond_workers.supervision.embedded_valkey import ValkeyProcess, running_valkey
from queue_bench import Bench, Clock, bench_on


def replaced(text: str, old: str, new: str, *, where: str) -> str:
    """Raises AssertionError unless `old` stands in the text exactly once."""
    assert text.count(old) == 1, f"{where} holds {text.count(old)} times, not once: {old!r}"
    return text.replace(old, new)


@dataclass(frozen=True, slots=True)
class LuaCut:
    """file: below broker/headpond/lua."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class PythonCut:
    """function: `module:function` or `module:Class.method`."""

    function: str
    old: str
    new: str


Cut = LuaCut | PythonCut


@contextmanager
def build_without(cuts: tuple[Cut, ...], folder: Path) -> Iterator[None]:
    """The queue of this process is, for a while, one with these cuts. folder: for its scripts; must not exist."""
    with pytest.MonkeyPatch.context() as patch:
        with as_file(files("headpond.lua")) as sources:
            shutil.copytree(sources, folder)
        for cut in cuts:
            if isinstance(cut, LuaCut):
                file = folder / cut.file
                file.write_text(replaced(file.read_text(), cut.old, cut.new, where=cut.file))
            else:
                _cut_python(cut, patch)
        patch.setattr(scripts, "files", lambda _package: folder)
        scripts.library.cache_clear()
        try:
            yield
        finally:
            scripts.library.cache_clear()


def _cut_python(cut: PythonCut, patch: pytest.MonkeyPatch) -> None:
    module_name, _, path = cut.function.partition(":")
    module = importlib.import_module(module_name)
    class_name, _, name = path.rpartition(".")
    owner = getattr(module, class_name) if class_name else module
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    made: dict[str, object] = {}
    code = compile(replaced(source, cut.old, cut.new, where=cut.function), cut.function, "exec")
    exec(code, vars(module), made)  # noqa: S102 - the project's own function, with one of its lines replaced
    patch.setattr(owner, name, made[name])


@dataclass(slots=True)
class Ground:
    """Where a scenario takes place. url: of a server that it leaves alone."""

    url: str
    folder: Path
    ends: ExitStack = field(default_factory=ExitStack)

    def bench(self, *, storage: bool = False) -> Bench:
        """A queue of its own, which a worker A has registered with; with storage, opened by its persister."""
        bench = bench_on(self.url, Clock(), storage=storage)
        self._closing(bench)
        if storage:
            bench.queue.run(upkeep.open_queue("claim", lineage="L"))
            bench.queue.run(upkeep.open_queue("open", lineage="L"))
        return bench

    def own(self, *, name: str = "chat") -> tuple[Bench, ValkeyProcess]:
        """A queue on a server that the scenario may kill."""
        valkey = self.ends.enter_context(running_valkey(self.folder / "server"))
        bench = bench_on(valkey.url, Clock(), name=name)
        self._closing(bench)
        return bench, valkey

    def _closing(self, bench: Bench) -> None:
        self.ends.callback(bench.raw.close)
        self.ends.callback(bench.server.close)
        bench.register("A")


@dataclass(frozen=True, slots=True)
class Hole:
    """name: what goes wrong where the rule is not kept. scenario: returns what came of it. kept: what that is in the
    build as it is. broken: what it is without the rule; a different value, which shows that this very thing went
    wrong."""

    name: str
    rule: str
    scenario: Callable[[Ground], object]
    kept: object
    broken: object
    cuts: tuple[Cut, ...]
