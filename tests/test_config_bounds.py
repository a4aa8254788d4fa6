"""No value of a configuration is without bounds, and what is beyond them is told with its place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import annotated_types
import pytest

from child_environment import with_test_modules
from headpond.complaints import complaint
from headpond.config_files import MAX_BYTES
from headpond.errors import ConfigError
from headpond.settings import RedisSettings, StorageSettings, load_settings
from headpond.tables import ENGINES, AdapterTable, DraftTable, Table, TenantRetention
from headpond.toml_text import MAX_DEPTH, BeyondBounds, NotToml, parse_toml

TABLES = [*ENGINES.values(), RedisSettings, StorageSettings, AdapterTable, DraftTable, TenantRetention]
MODEL = '[models.chat]\nengine = "scripted"\n'
COMMAND = [sys.executable, "-c", "from headpond.cli.app import main; main()"]


def numbers(annotation: Any, facts: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The constraints of each number that a value of this kind may be or hold."""
    if get_origin(annotation) is Annotated:
        inner, *found = get_args(annotation)
        yield from numbers(inner, (*facts, *found))
    elif annotation in (int, float):
        yield facts
    else:
        for inner in get_args(annotation):
            yield from numbers(inner, facts if inner in (int, float) else ())


def bounds(facts: tuple[Any, ...]) -> list[Any]:
    return [part for fact in facts for part in [fact, *getattr(fact, "metadata", ())]]


@pytest.mark.parametrize("table", TABLES)
def test_every_number_of_every_table_has_a_lower_and_an_upper_bound(table: type[Table]) -> None:
    for key, field in table.model_fields.items():
        for found in numbers(field.annotation, tuple(field.metadata)):
            kinds = tuple(map(type, bounds(found)))
            assert annotated_types.Le in kinds or annotated_types.Lt in kinds, f"{table.__name__}.{key}: no upper bound"
            assert annotated_types.Ge in kinds or annotated_types.Gt in kinds, f"{table.__name__}.{key}: no lower bound"


def refused(folder: Path, text: str | bytes, *words: str, environment: Mapping[str, str] | None = None) -> str:
    """What `headpond config check` says of a configuration; it is wrong, and no defect of headpond."""
    raw = text if isinstance(text, bytes) else text.encode()
    (folder / "headpond.toml").write_bytes(raw)
    clean = {key: value for key, value in with_test_modules().items() if not key.startswith("HEADPOND_")}
    done = subprocess.run(
        [*COMMAND, "config", "check", *words], cwd=folder, env={**clean, **(environment or {})}, capture_output=True,
        text=True, check=False, timeout=60,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "Traceback" not in said
    assert "defect" not in said
    return said


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("9" * 26, "an integer is too large: it must fit into 64 bits"),
        ("9" * 5000, "an integer is too large: it must fit into 64 bits"),
        ("[" * 3000, "stand in one another more than 32 deep"),
        ("[" * 40 + "]" * 40, "stand in one another more than 32 deep"),
    ],
)
def test_a_value_beyond_all_bounds_is_told_with_its_place_in_every_layer(
    tmp_path: Path, value: str, message: str
) -> None:
    in_file = refused(tmp_path, f"{MODEL}max_queued = {value}\n")
    assert in_file.startswith(f"{tmp_path}/headpond.toml:3: ")
    assert message in in_file
    as_option = refused(tmp_path, MODEL, "--set", f"chat.max_queued={value}")
    assert as_option.startswith("--set chat.max_queued: [models.chat] max_queued: ")
    assert message in as_option
    name = "HEADPOND_MODELS__CHAT__MAX_QUEUED"
    as_variable = refused(tmp_path, MODEL, environment={name: value})
    assert as_variable.startswith(f"{name}: [models.chat] max_queued: ")
    assert message in as_variable


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("max_queued = 1000000001", "max_queued: must be 1000000000 or less"),
        ("answer_tokens = 16777217", "answer_tokens: must be 16777216 or less"),
        ("context_tokens = 16777217", "context_tokens: must be 16777216 or less"),
        ("lease_s = 3601", "lease_s: must be 3600 or less"),
        ("lease_s = 0.1", "lease_s: must be 0.2 or more"),
        ("lease_s = nan", "lease_s: must be a finite number, not nan"),
        ("lease_s = inf", "lease_s: must be a finite number, not inf"),
        ("tokens_per_s = 0", "tokens_per_s: must be more than 0"),
        ("slots = 1.5", "slots: must be an integer"),
        ("path = nan", "path: must be a path, as a string"),
        ("crash_at = 'now'", "crash_at: must be 'load', 'prefill', 'token' or 'end'"),
        ("tenant_weights = 1", "tenant_weights: must be a table"),
    ],
)
def test_what_is_out_of_range_is_told_in_plain_words(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "headpond.toml").write_text(f"{MODEL}{line}\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(tmp_path / "headpond.toml")
    assert str(caught.value) == f"{tmp_path}/headpond.toml:3: [models.chat] {message}"


def test_a_complaint_without_words_of_its_own_is_passed_on() -> None:
    assert complaint({"type": "value_error", "msg": "Value error, it is so", "input": "x"}) == "it is so"
    assert complaint({"type": "of_tomorrow", "msg": "Something new", "input": "x"}) == "Something new"


def test_depth_and_size_are_judged_where_they_stand() -> None:
    deep = ".".join(["a"] * (MAX_DEPTH + 1))
    for text, line in ((f"b = 1\n{deep} = 1\n", 2), (f"b = 1\n\n[{deep}]\n", 3), (f"x = 1\ny = 2\nz = {1 << 63}\n", 3)):
        with pytest.raises(BeyondBounds) as caught:
            parse_toml(text)
        assert caught.value.line == line
    assert parse_toml(f"a = {-(1 << 63)}\n") == {"a": -(1 << 63)}
    with pytest.raises(NotToml, match="given twice, at line 1 and at line 2"):
        parse_toml("[a]\n[a]\n")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "headpond.toml").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match=f"cannot be read: it has more than {MAX_BYTES} bytes"):
        load_settings(tmp_path / "headpond.toml")


def test_a_byte_order_mark_and_line_ends_of_other_systems_are_read(tmp_path: Path) -> None:
    (tmp_path / "headpond.toml").write_bytes(b"\xef\xbb\xbf" + MODEL.replace("\n", "\r\n").encode() + b"slots = 3\r\n")
    settings = load_settings(tmp_path / "headpond.toml")
    assert settings.models["chat"].slots == 3
    assert settings.origins["models.chat.slots"].line == 3


def test_a_folder_in_place_of_the_file_is_told(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    (inner / "headpond.toml").mkdir(parents=True)
    # One in a folder above is not taken instead.
    (tmp_path / "headpond.toml").write_text(MODEL)
    done = subprocess.run(
        [*COMMAND, "config", "check"], cwd=inner, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert f"{inner}/headpond.toml: cannot be read: it is a folder, and should be a file" in done.stdout


def test_only_regular_files_of_a_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "headpond.toml").write_text(MODEL)
    place = tmp_path / "conf.d"
    place.touch()
    with pytest.raises(ConfigError, match=r"conf\.d: is a file, and should be a folder"):
        load_settings(tmp_path / "headpond.toml")
    place.unlink()
    place.mkdir()
    odd = place / "odd.toml"
    os.mkfifo(odd)
    # Whoever opens it to read would wait for ever.
    with pytest.raises(ConfigError, match=r"odd\.toml: cannot be read: it is a FIFO, a device or a socket"):
        load_settings(tmp_path / "headpond.toml")
    odd.unlink()
    odd.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match=r"odd\.toml: cannot be read: it is a FIFO, a device or a socket"):
        load_settings(tmp_path / "headpond.toml")


@pytest.mark.parametrize("key", ["path = ", "adapters.x.path = "])
@pytest.mark.parametrize("name", ["a\\u0000b", "x" * 5000])
def test_a_path_that_no_file_can_have_is_a_problem(tmp_path: Path, key: str, name: str) -> None:
    rest = "" if key == "path = " else 'path = "/"\n'
    said = refused(tmp_path, f'[models.chat]\nengine = "llamacpp"\n{key}"{name}"\n{rest}')
    assert f"headpond.toml:3: [models.chat] {key.removesuffix(' = ')}: '" in said
    assert "cannot be looked at: " in said
