"""Engines of other packages, as the configuration meets them: found by name, checked, and refused with a reason."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from example_engine import on_path
from headpond.engine_kinds import EngineTable, known_engines, settings_of_engine
from headpond.errors import ConfigError
from headpond.settings import Settings, check_settings
from headpond.tables import ENGINES, ScriptedModel

Installed = Callable[..., Path]

TABLE = """
from pathlib import Path
from typing import Any, Self

from headpond.engine_kinds import EngineTable


class Quill(EngineTable):
    ink: str = "black"
    paper: Path = Path("paper")

    def load_engine(self, *, workers_on_host: int) -> Any:
        return self

    def anchored(self, folder: Path) -> Self:
        return self.model_copy(update={"paper": folder / self.paper})


def function() -> None:
    pass
"""


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    """Installs a package with one module and one engine, until the test ends."""
    with ExitStack() as stack:

        def install(package: str, entry_point: str, *, module: str, source: str = TABLE) -> Path:
            folder = tmp_path / package
            metadata = folder / f"{package.replace('-', '_')}-1.0.dist-info"
            metadata.mkdir(parents=True)
            (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
            (metadata / "entry_points.txt").write_text(f"[headpond.engines]\n{entry_point}\n")
            (folder / f"{module}.py").write_text(textwrap.dedent(source))
            stack.enter_context(on_path(folder))
            return folder

        yield install


def settings(models: dict[str, dict[str, Any]], **tables: Any) -> Settings:
    return check_settings({"models": models, **tables}, file=Path("/etc/headpond.toml"))


def refusal(models: dict[str, dict[str, Any]], **tables: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        settings(models, **tables)
    return str(caught.value)


def test_an_engine_of_another_package_is_checked_by_its_own_table(installed: Installed) -> None:
    installed("quill", "quill = quill_checked:Quill", module="quill_checked")
    model = settings({"letters": {"engine": "quill", "ink": "blue", "slots": 2}}).model("letters")
    assert isinstance(model, EngineTable)
    assert (model.engine, model.slots, model.context_tokens) == ("quill", 2, 2048)
    assert model.model_dump()["ink"] == "blue"
    assert model.model_dump()["paper"] == Path("/etc/paper"), "paths are relative to the file"
    assert "unknown key 'inc' in [models.letters]; did you mean 'ink'?" in refusal(
        {"letters": {"engine": "quill", "inc": "blue"}}
    )


def test_it_is_known_only_while_its_package_is_there(installed: Installed) -> None:
    assert known_engines() == sorted(ENGINES)
    assert settings_of_engine("quill", where="here") is None
    installed("quill", "quill = quill_known:Quill", module="quill_known")
    assert known_engines() == sorted({*ENGINES, "quill"})
    assert settings_of_engine("quill", where="here") is not None


def test_an_unknown_engine_is_answered_with_the_known_ones_and_the_nearest(installed: Installed) -> None:
    installed("quill", "quill = quill_nearest:Quill", module="quill_nearest")
    message = refusal({"letters": {"engine": "quil"}})
    assert "[models.letters] engine = 'quil': no such engine; did you mean 'quill'?" in message
    assert "known: exllamav2, exllamav3, llamacpp, openai, quill, scripted" in message
    assert "[models.letters] names no engine; known: exllamav2" in refusal({"letters": {}})
    assert "engine = 5: no such engine" in refusal({"letters": {"engine": 5}})


@pytest.mark.parametrize(
    ("entry_point", "source", "reason"),
    [
        ("quill = quill_broken:Quill", "import no_such_library\n", "No module named 'no_such_library'"),
        ("quill = quill_broken:Quill", "raise OSError('no ink')\n", "OSError: no ink"),
        ("quill = quill_broken:Pencil", TABLE, "has no attribute 'Pencil'"),
        ("quill = quill_absent:Quill", TABLE, "No module named 'quill_absent'"),
    ],
)
def test_a_package_whose_engine_cannot_be_imported_is_named_with_the_reason(
    installed: Installed, monkeypatch: pytest.MonkeyPatch, entry_point: str, source: str, reason: str
) -> None:
    monkeypatch.delitem(sys.modules, "quill_broken", raising=False)
    installed("quill-maker", entry_point, module="quill_broken", source=source)
    message = refusal({"letters": {"engine": "quill"}})
    assert message.startswith("/etc/headpond.toml: [models.letters]: ")
    assert "the engine 'quill' of the package quill-maker cannot be imported: " in message
    assert reason in message


@pytest.mark.parametrize("name", ["function", "Path", "Any"])
def test_what_is_no_table_of_an_engine_is_refused(installed: Installed, name: str) -> None:
    installed("quill-maker", f"quill = quill_other:{name}", module="quill_other")
    message = refusal({"letters": {"engine": "quill"}})
    assert "quill-maker" in message
    assert f"quill_other:{name}" in message
    assert "EngineTable" in message


def test_a_table_that_loads_no_engine_is_refused(installed: Installed) -> None:
    source = "from headpond.engine_kinds import EngineTable\n\nclass Quill(EngineTable):\n    pass\n"
    installed("quill-maker", "quill = quill_idle:Quill", module="quill_idle", source=source)
    assert "the engine 'quill' of the package quill-maker has no load_engine" in refusal(
        {"letters": {"engine": "quill"}}
    )


def test_two_packages_with_one_name_are_both_named(installed: Installed) -> None:
    installed("quill-maker", "quill = quill_first:Quill", module="quill_first")
    installed("goose", "quill = quill_second:Quill", module="quill_second")
    message = refusal({"letters": {"engine": "quill"}})
    assert "more than one package provides the engine 'quill': goose, quill-maker. Uninstall all but one" in message
    assert known_engines().count("quill") == 1


def test_models_of_other_engines_are_not_affected_by_a_broken_package(installed: Installed) -> None:
    installed("quill-maker", "quill = quill_bad:Quill", module="quill_bad", source="raise OSError('no ink')\n")
    installed("goose", "feather = feather_first:Quill", module="feather_first")
    installed("duck", "feather = feather_second:Quill", module="feather_second")
    assert isinstance(settings({"chat": {"engine": "scripted"}}).model("chat"), ScriptedModel)
    assert "known: exllamav2, exllamav3, feather, llamacpp, openai, quill, scripted" in refusal(
        {"chat": {"engine": "none"}}
    )


def test_a_name_of_this_package_stays_its_own(installed: Installed) -> None:
    installed("impostor", "scripted = quill_impostor:Quill", module="quill_impostor")
    assert isinstance(settings({"chat": {"engine": "scripted"}}).model("chat"), ScriptedModel)


def test_defaults_may_hold_the_keys_of_an_engine_that_the_file_uses(installed: Installed) -> None:
    installed("quill", "quill = quill_defaults:Quill", module="quill_defaults")
    both: dict[str, dict[str, Any]] = {"letters": {"engine": "quill"}, "chat": {"engine": "scripted"}}
    loaded = settings(both, defaults={"ink": "red", "slots": 3})
    assert loaded.model("letters").model_dump()["ink"] == "red"
    assert [loaded.model(name).slots for name in both] == [3, 3]
    assert "unknown key 'ink' in [defaults]" in refusal({"chat": {"engine": "scripted"}}, defaults={"ink": "red"})
    assert "did you mean 'ink'?" in refusal(both, defaults={"inks": "red"})


def test_defaults_may_name_the_engine(installed: Installed) -> None:
    installed("quill", "quill = quill_engine:Quill", module="quill_engine")
    model = settings({"letters": {}}, defaults={"engine": "quill"}).model("letters")
    assert model.engine == "quill"
