"""The documents say what the code does: tables, drawings, settings and links are compared with it."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import typer.main

from headpond import codec, keys, operations, restoring, scripts, session_operations, switching, upkeep, wire
from headpond import names as name_operations
from headpond.cli import exits
from headpond.cli.app import build_app
from headpond.commits import COMMIT_SCHEMA, Commit, SessionRow, pack_commit
from headpond.connections import script_key
from headpond.held import IDLE_RENEWAL_S
from headpond.jobs import FinishReason, JobState, Priority, Result, Usage
from headpond.kept_settings import RUNNING_FOLDER
from headpond.models import MODEL_SCHEMA, ModelRow, pack_model
from headpond.provenance import Provenance
from headpond.requests import JobRequest
from headpond.sampling import Sampling
from headpond.settings import RUN_FILE
from headpond.tables import ENGINES, ModelTable
from headpond.turns import Policy, Turn, TurnRequest
from headpond.up_file import UP_FILE
from headpond.workers import WorkerRow, WorkerState, pack_worker
from headpond_workers.naming.boot_locks import BOOTS_FOLDER
from headpond_workers.naming.identity import IDENTITY_FILE
from headpond_workers.naming.instance_file import LOCKS_FOLDER
from headpond_workers.supervision import embedded_seaweed, embedded_valkey, launcher, programs, scaling
from headpond_workers.supervision.applied import APPLIED_FILE
from headpond_workers.supervision.lock import LOCK_FILE
from headpond_workers.supervision.shell_secrets import SECRETS_FILE
from headpond_workers.supervision.stopped import STOPPED_FILE
from headpond_workers.supervision.supervisord_process import CONF_NAME

ROOT = Path(__file__).parents[1]
LUA = ROOT / "broker" / "headpond" / "lua"
SCRIPTS = {path.stem: path.read_text(encoding="utf-8") for path in LUA.glob("*.lua")}
PARTS = {path.stem: path.read_text(encoding="utf-8") for path in LUA.glob("parts/*.lua")}
ALL_LUA = {**SCRIPTS, **PARTS}
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
WRITTEN = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"])
FORMAT, STATES, OPERATION = TEXTS["format.md"], TEXTS["states.md"], TEXTS["operation.md"]
COMMIT = Commit("", "", "s", "chat/a", (), FinishReason.STOP, "chat", "v1", "f", Usage(), 0, 1, 0, Policy.PIN)
RUN_ROW = ["version", *(field.name for field in dataclasses.fields(wire.RunRow))]


def section(text: str, heading: str) -> str:
    """What stands under one heading, up to the next heading of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no heading {heading!r}"
    return found[1]


def rows(text: str, *header: str) -> list[list[str]]:
    """The cells of the one table that begins with these columns."""
    lines = iter(text.splitlines())
    start = "| " + " | ".join(header) + " |"
    assert any(line.startswith(start) for line in lines), f"no table {start}"
    next(lines)
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


def names(text: str, *header: str, column: int = 0) -> list[str]:
    """One column of a table, without backquotes."""
    return [row[column].strip("`") for row in rows(text, *header)]


def numbered(heading: str) -> list[str]:
    """Field names of a row's table, after checking that its elements are numbered from 0."""
    found = rows(section(FORMAT, heading), "#", "field", "type", "meaning")
    assert [row[0] for row in found] == [str(number) for number in range(len(found))]
    return [row[1] for row in found]


def test_every_key_is_described_with_its_type() -> None:
    described = {row[0].strip("`"): row[1] for row in rows(section(FORMAT, "Keys"), "key", "type", "holds")}
    in_code = dict(re.findall(r"^(headpond:\S+)\s+(\w+)", keys.__doc__ or "", re.MULTILINE))

    assert described == in_code
    assert keys.MODELS in described
    made = keys.queue_keys("q")
    assert made.events("<id>") in described
    assert made.ready("<lane>", "<band>") in described
    assert made.wake("<lane>") in described
    assert made.notice("<boot>") in described
    derived = {name for text in ALL_LUA.values() for name in re.findall(r"prefix \.\. '(\w+):'", text)}
    assert derived == {key.split(":")[2] for key in described if "<" in key}
    fixed = {name for text in ALL_LUA.values() for name in re.findall(r"prefix \.\. '(\w+)'", text)}
    assert {"meta", *fixed} == {key.split(":")[2] for key in described if "<" not in key and key != keys.MODELS}


def test_a_script_is_given_one_key_and_derives_each_other_one_under_its_own_name() -> None:
    key = script_key("chat").decode()
    assert key == keys.queue_keys("chat").named("meta")
    assert f"`{key.replace('chat', 'q')}`, which names the queue" in section(FORMAT, "Keys")
    given = {name for name, text in ALL_LUA.items() if re.search(r"\bKEYS\b", re.sub(r"--.*", "", text))}
    assert given == {"head", "names"}
    assert "local meta, call = KEYS[1], redis.call\n" in PARTS["head"]
    (cut,) = re.findall(r"^local prefix = string\.sub\(KEYS\[1\], 1, (-\d+)\)$", PARTS["head"], re.MULTILINE)
    # Lua cuts after the place that it names, Python before it.
    assert key[: int(cut) + 1] == keys.queue_keys("chat").prefix
    made = re.findall(r"^local (\w+) = prefix \.\. '(\w+)'$", PARTS["head"], re.MULTILINE)
    assert all(name == literal for name, literal in made)
    # The table of departures tells how many keys are not sent.
    assert f"to pack the {len(made) + 1} keys without" in section(STATES, "Departures from the design")


def test_the_scripts_that_take_and_give_one_array_are_named() -> None:
    calls: list[operations.Operation[Any]] = [
        operations.submit([operations.Entry("chat/a", b"\xff", "d")]),
        operations.claim(
            "b", seq=1, nonce="n", slots=1, settle=[operations.Settlement("i", "f", operations.Settle.PARKED)]
        ),
        operations.append([operations.Append("chat/a", "f", wire.TokenRun(0, (1,), ("a",)))]),
        restoring.put_in([restoring.StoredJob("dropped", "chat/a")], inc=1),
    ]
    packed = {call.script for call in calls}
    for call in calls:
        assert isinstance(call.args[-1], bytes)
        assert isinstance(codec.unpack_raw(call.args[-1], kind="arguments"), list)
    taken = {name for name, text in SCRIPTS.items() if re.search(r"cmsgpack\.unpack\(ARGV\[\d\]\)", text)}
    given = {name for name, text in SCRIPTS.items() if re.search(r"^ *return cmsgpack\.pack\(", text, re.MULTILINE)}
    assert taken == given == packed
    ((most, other),) = re.findall(
        r"but for ((?:`\w+`(?:, | and )?)+), which are called most, and `(\w+)`",
        section(FORMAT, "Arguments of scripts"),
    )
    assert {*re.findall(r"`(\w+)`", most), other} == packed


def test_every_lane_that_a_worker_reads_is_described() -> None:
    described = names(section(STATES, "Lanes"), "lane", "who waits in it")
    assert described == keys.lanes_of("<version>")
    assert names(section(STATES, "Order"), "band", "meaning") == list(Priority)


def test_the_run_row_is_described_in_the_order_of_its_elements() -> None:
    assert numbered("Run row") == RUN_ROW


def test_the_scripts_and_the_codec_agree_on_the_run_row() -> None:
    places: dict[str, int] = {}
    for left, right in re.findall(r"^local ([A-Z_, ]+) = ([0-9, ]+)$", PARTS["rows"], re.MULTILINE):
        places |= dict(zip(left.split(", "), map(int, right.split(", ")), strict=True))

    # Lua counts from 1, and leaves the unit out of a name.
    named = {name.upper().removesuffix("_MS"): place for place, name in enumerate(RUN_ROW, start=1)}
    del named["VERSION"]
    assert places == named
    # A row is read whole or not at all: what is asked for is the last element of each of its two arrays.
    (first,) = re.findall(r"type\(head\) == 'table' and head\[(\w+)\]", PARTS["rows"])
    (last, before) = re.findall(r"type\(tail\) ~= 'table' or not tail\[(\w+) - (\w+)\]", PARTS["rows"])[0]
    assert places[first] == places[before] == wire.RUN_HEAD
    # But for what a row of an older release lacks.
    later = [field for field in dataclasses.fields(wire.RunRow) if field.default is not dataclasses.MISSING]
    assert places[last] == len(RUN_ROW) - len(later)
    assert f"the elements 0 to {wire.RUN_HEAD - 1} (`rows.RUN_HEAD` of them)" in section(FORMAT, "Run row")


def test_what_an_append_needs_is_in_the_first_part_of_a_run_row() -> None:
    """It leaves the second packed: an element of that would be nil there."""
    used = set()
    for name in ("append", "streams", "preemption"):
        used |= set(re.findall(r"\br\[([A-Z_]+)\]", SCRIPTS.get(name) or PARTS[name]))
    (refusal,) = re.findall(r"^local function refusal\(r, fence\)$.*?^end$", PARTS["rows"], re.MULTILINE | re.DOTALL)
    used |= set(re.findall(r"\br\[([A-Z_]+)\]", refusal))
    first = {name.upper().removesuffix("_MS") for name in RUN_ROW[1 : wire.RUN_HEAD]}
    assert used == first


def test_a_new_job_gets_a_row_with_every_element() -> None:
    (row,) = re.findall(r"return \{ (1, 'queued'.*?) \}", SCRIPTS["submit"], re.DOTALL)
    values = dict(zip(RUN_ROW, re.split(r",\s+", row.strip()), strict=True))
    told = {"version": "1", "state": "'queued'", "gen": "inc", "band": "band", "lane": "'any'", "submitted_ms": "now"}
    assert {name: values.pop(name) for name in (*told, "pinned")} == told | {"pinned": "pinned"}
    assert set(values.values()) == {"''", "0"}
    for field in dataclasses.fields(wire.RunRow):
        if field.name in values:
            assert (values[field.name] == "''") == (field.type == "str"), field.name


def test_rows_and_documents_are_described_field_by_field() -> None:
    call = wire.Call("generate", (), {}, {}, 0)
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(wire.pack_data(call, digest="", turn=TurnRequest("s")))
    header, body = list(unpacker)
    plain, turn = dataclasses.fields(wire.Header)[:-1], dataclasses.fields(TurnRequest)
    assert numbered("Header")[1:] == [field.name for field in (*plain, *turn)]
    # The first element is the row's own version; the name is left to the handle.
    assert numbered("Session row")[1:] == [field.name for field in dataclasses.fields(SessionRow)][1:]
    assert len(numbered("Header")) == len(header)
    assert numbered("Attempts") == [field.name for field in dataclasses.fields(wire.Attempt)]
    assert numbered("Call")[1:] == [field.name for field in dataclasses.fields(wire.Call)]
    assert len(numbered("Call")) == len(body)
    assert names(section(FORMAT, "Call"), "field", "type", "default") == list(JobRequest.model_fields)
    told = names(section(FORMAT, "Call"), "field", "type", "default", column=2)
    shown = {"None": "nil", "()": "empty", repr(Sampling()): "all defaults"}
    defaults = [repr(field.get_default(call_default_factory=True)) for field in JobRequest.model_fields.values()]
    assert told == [shown.get(default, default) for default in defaults]
    assert JobRequest(prompt="p").asked() == {"prompt": "p"}

    tokens = msgpack.unpackb(wire.pack_tokens(wire.TokenRun(0, (1,), ("a",))))
    assert numbered("Token entry")[1:] == [field.name for field in dataclasses.fields(wire.TokenRun)]
    assert len(numbered("Token entry")) == len(tokens)
    assert len(numbered("Stream events")) == 4
    assert isinstance(wire.unpack_event(msgpack.packb([1, "ended", 0, "finished"])), wire.Ended)

    made_by = Provenance(engine="scripted", fingerprint="f")
    result = Result(
        "chat/a", JobState.FINISHED, "", (), FinishReason.STOP, embeddings=((1.0,),), provenance=made_by, turn=Turn("s")
    )
    assert names(section(FORMAT, "Provenance"), "field", "type", "meaning") == list(made_by.fields())
    for heading, packed in (
        ("Result document", wire.pack_result(result)),
        ("Commit document", pack_commit(COMMIT)[1]),
        ("Model document", pack_model(ModelRow("scripted", 0, storage=False, context_tokens=0))),
    ):
        fields = list(msgpack.unpackb(packed))
        assert fields[:2] == ["schema", "v"]
        assert names(section(FORMAT, heading), "field", "type", "meaning") == fields[2:]


def test_the_worker_row_is_described_in_the_order_of_its_elements() -> None:
    # Each field has a value of its own, by which it is found in the packed row.
    values: dict[str, Any] = {
        field.name: field.name if field.type == "str" else 100 + at
        for at, field in enumerate(dataclasses.fields(WorkerRow))
    }
    row = WorkerRow(**values | {"state": WorkerState.READY})
    by_value = {value: name for name, value in (values | {"state": "ready"}).items()}

    packed = msgpack.unpackb(pack_worker(row))

    assert numbered("Worker row") == ["row version", *(by_value[value] for value in packed[1:])]


def test_schema_versions_are_those_of_the_code() -> None:
    versions = dict(rows(section(FORMAT, "Schema versions"), "what", "version"))
    assert versions["every row (`wire.ROW_VERSION`)"] == str(wire.ROW_VERSION)
    result = wire.pack_result(Result("chat/a", JobState.FINISHED, "", (), FinishReason.STOP))
    model = pack_model(ModelRow("scripted", 0, storage=False, context_tokens=0))
    commit = pack_commit(COMMIT)[1]
    for schema, packed in ((wire.RESULT_SCHEMA, result), (MODEL_SCHEMA, model), (COMMIT_SCHEMA, commit)):
        (found,) = [version for what, version in versions.items() if what.startswith(f"`{schema}`")]
        assert found == str(msgpack.unpackb(packed)["v"])


def arguments(text: str, opening: str) -> Iterator[str]:
    """What stands behind each `opening`, up to the bracket that closes it."""
    for found in re.finditer(re.escape(opening), text):
        depth, at = 1, found.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(text[at], 0)
            at += 1
        yield text[found.end() : at - 1]


META_FIELD = re.compile(r"'([a-z_]+:?)(?:[a-z]*)'")
"""A name in Lua; what begins with a word and a colon is completed by Lua."""


def fields_of_meta(command: str) -> set[str]:
    """The fields that Lua names in a command on meta, at once or noted for later."""
    used = set()
    for text in ALL_LUA.values():
        for sender in ("call", "put"):
            for call in arguments(text, f"{sender}('{command}', meta, "):
                used |= set(META_FIELD.findall(call))
    return used


def counted_fields_of_meta() -> set[str]:
    """What is counted by bump(), and what claim gathers in `set`: their commands name no field themselves."""
    unnamed = {
        call
        for text in ALL_LUA.values()
        for command in ("HSET", "HINCRBY")
        for call in arguments(text, f"('{command}', meta, ")
        if not META_FIELD.search(call)
    }
    assert unnamed == {"field, n", "unpack(set)"}
    used = {name for text in ALL_LUA.values() for call in arguments(text, "bump(") for name in META_FIELD.findall(call)}
    for line in SCRIPTS["claim"].splitlines():
        if re.match(r"\s*(?:local set|set\[)", line):
            used |= set(META_FIELD.findall(line))
    return used


def test_every_field_of_meta_is_described() -> None:
    counted = counted_fields_of_meta()
    assert counted == {"count:", "strikes", "tokens", "picks", "v:"}
    used = counted.union(*(fields_of_meta(command) for command in ("HGET", "HMGET", "HSET", "HSETNX", "HINCRBY")))
    cells = names(section(FORMAT, "Meta"), "field", "meaning")
    described = {re.sub(r"<\w+>", "", name) for name in cells}

    assert described == used
    assert fields_of_meta("HDEL") <= described


def test_what_counts_for_an_absent_field_of_meta_is_described() -> None:
    (asked,) = arguments(PARTS["head"], "local state_of = call(")
    fields = re.findall(r"'(\w+)'", asked)[1:]
    assumed = {
        fields[int(place) - 1]: value for place, value in re.findall(r"state_of\[(\d+)\] or (\d+)", PARTS["head"])
    }
    told = {
        cells[0].strip("`"): found[1]
        for cells in rows(section(FORMAT, "Meta"), "field", "meaning")
        if (found := re.search(r"Absent: `(\d+)`", cells[1]))
    }
    assert told == assumed
    defaults = ModelTable.model_fields
    assert told == {name: f"{defaults[name.removesuffix('_ms') + '_s'].default * 1000:.0f}" for name in assumed}


def lua_constants() -> dict[str, str]:
    """Name -> value, but for the places of the run row."""
    found: dict[str, str] = {}
    for name, text in ALL_LUA.items():
        if name != "rows":
            found |= dict(re.findall(r"^local ([A-Z_]+) = (-?\d+)", text, re.MULTILINE))
    return found


def test_the_manual_gives_the_numbers_of_the_scripts() -> None:
    lua = lua_constants()
    told = section(OPERATION, "Priorities and tenants")
    assert f"one claimed job in {lua['BATCH_EVERY']} is" in told
    assert f"made {lua['QUANTUM_TOKENS']} tokens or more" in told
    assert f"fewer than {lua['PROGRESS_TOKENS']} new tokens" in section(OPERATION, "When a job crashes its workers")
    strikes = names(section(STATES, "Strikes"), "strikes in a row", "the job")
    assert strikes[1:] == [lua["SUSPECT_STRIKES"], lua["MAX_STRIKES"]]
    assert f"the {lua['MAX_FAULTS']}th (`MAX_FAULTS`)" in section(STATES, "Strikes")
    assert f"until {int(lua['LOADING_MS']) // 60000} minutes (`LOADING_MS`)" in section(STATES, "Versions")
    assert f"One that holds none renews every {IDLE_RENEWAL_S:g} s" in section(STATES, "Lease life")
    assert f"was within {lua['SWEEP_EVERY_MS']} ms" in section(STATES, "Departures from the design")
    (most,) = re.findall(r"if #ids > (\d+) then return redis\.error_reply", SCRIPTS["submit"])
    assert f"One call of `submit` takes at most {most} jobs" in section(FORMAT, "Bounds")


def test_bounds_are_those_of_the_code() -> None:
    in_lua, described = lua_constants(), set()
    for name, value, _ in rows(section(FORMAT, "Bounds"), "bound", "value", "of"):
        module, _, constant = name.strip("`").rpartition(".")
        package = "headpond_workers" if module in ("token_writer", "totals") else "headpond"
        found = getattr(importlib.import_module(f"{package}.{module}"), constant) if module else in_lua[constant]
        assert float(value) == float(found), name
        described.add(constant)
    assert in_lua.keys() <= described


def test_every_way_in_which_a_lease_ends_without_its_job_is_described() -> None:
    described = set(names(section(STATES, "How leases end"), "how", "when"))
    assert described == set(re.findall(r"'(\w+)'", wire.Attempt.__doc__ or ""))
    in_lua = {how for text in ALL_LUA.values() for how in re.findall(r"take_back\([^')]*'(\w+)'", text)}
    # What a settlement or a park may say is written where their arguments are.
    for name in ("park", "claim"):
        (said,) = re.findall(r"(?:how|what) \(('.*?)\), (?:reason|offset)", SCRIPTS[name], re.DOTALL)
        in_lua |= set(re.findall(r"'(\w+)'", said)) - {"finished", "faulty"}
    assert described == in_lua


def test_every_state_is_described() -> None:
    assert names(section(STATES, "Job states"), "state", "meaning", "ended") == list(JobState)
    ends = names(section(STATES, "Job states"), "state", "meaning", "ended", column=2)
    assert ends == ["yes" if state.ended else "no" for state in JobState]
    assert names(section(STATES, "Worker states"), "state", "meaning") == list(WorkerState)


def edges(pattern: str) -> list[tuple[str, str, str]]:
    return sorted(re.findall(pattern, section(STATES, "Job states"), re.MULTILINE))


def test_drawing_text_and_table_of_transitions_are_the_same() -> None:
    drawn = edges(r"^    (\S+) --> (\w+): (.+)$")
    told = edges(r"^(\S+) +-> (\w+) +(.+)$")
    assert drawn == told

    in_table: dict[tuple[str, str], set[str]] = {}
    for cells in rows(section(STATES, "Transitions"), "from", "to", "script"):
        for start in cells[0].replace("none", "[*]").split(", "):
            in_table.setdefault((start, cells[1]), set()).update(cells[2].replace("`", "").split(", "))
    assert in_table == {(start, end): set(scripts.split(", ")) for start, end, scripts in drawn}
    assert {state for start, end, _ in drawn for state in (start, end)} == {"[*]", *JobState}


def asked_by() -> dict[str, set[str]]:
    """Script -> the functions whose operation it is."""
    found: dict[str, set[str]] = {}
    for module in (operations, session_operations, upkeep, restoring, switching, name_operations):
        for function in ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8")).body:
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Operation":
                    name = node.args[0]
                    assert isinstance(function, ast.FunctionDef)
                    assert isinstance(name, ast.Constant)
                    by = f"{module.__name__.rpartition('.')[2]}.{function.name}"
                    found.setdefault(str(name.value), set()).add(by)
    return found


def test_every_script_is_named_with_the_operations_that_send_it() -> None:
    described = {
        cells[0].strip("`").removesuffix(".lua"): set(re.findall(r"`([\w.]+)`", cells[1]))
        for cells in rows(section(STATES, "Scripts"), "script", "operation", "called by")
    }
    assert described.keys() == SCRIPTS.keys()
    assert described == asked_by()


def test_every_part_is_named_in_the_order_of_what_builds_on_what() -> None:
    described = [cells[0].strip("`").removesuffix(".lua") for cells in rows(section(STATES, "Parts"), "part", "holds")]
    assert described == [*scripts.PARTS, scripts.GUARD, *scripts.NAMES_PARTS]
    assert set(described) == PARTS.keys()


def test_the_queue_modules_alone_send_scripts() -> None:
    senders = {
        path.stem
        for root in ("broker", "workers")
        for path in (ROOT / root).rglob("*.py")
        if "load_script(" in path.read_text(encoding="utf-8")
    }
    assert senders == {"scripts", "queue", "aio_queue", "connections"}
    assert all(f"`headpond.{name}`" in STATES for name in senders - {"scripts"})


def test_every_setting_is_described_as_the_code_has_it() -> None:
    spec = importlib.util.spec_from_file_location("settings_tables", ROOT / "scripts" / "settings_tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = TEXTS["configuration.md"]
    assert tables.missing(text) == []
    assert tables.rendered(text) == text, "python scripts/settings_tables.py"
    # The tables themselves say what the classes say: some that are known.
    assert "| `slots` | integer, 1 to 1024 | `4` | Sequences that one worker runs together. |" in text
    assert "| `password` | [secret reference](#secrets) | none | Put into `url`. |" in text


def test_the_keys_that_a_name_does_not_mean_are_those_of_the_code() -> None:
    told = {cells[0].strip("`"): set(re.findall(r"`(\w+)`", cells[1]))
            for cells in rows(section(OPERATION, "Names"), "engine", "keys that do not count")}  # fmt: skip
    shared = told.pop("any")
    assert shared == ModelTable.all_host_keys()
    # An engine whose row is missing has no key of its own that does not count.
    for name, model in ENGINES.items():
        assert told.pop(name, set()) == model.all_host_keys() - shared, name
    assert told == {}
    live = section(OPERATION, "Reload").partition("hold without a restart")[0].rpartition("\n- ")[2]
    assert set(re.findall(r"`(\w+)`", live)) == ModelTable.all_live_keys() - {"workers"}


def test_every_command_is_in_the_manual() -> None:
    for name in typer.main.get_command(build_app()).commands:  # type: ignore[attr-defined]
        assert f"`headpond {name}" in OPERATION, name


def test_exit_codes_are_those_of_the_code() -> None:
    described = {cells[1].strip("`"): int(cells[0]) for cells in rows(section(OPERATION, "Exit codes"), "code")[1:]}
    assert described == {name: code for name, code in vars(exits).items() if name.isupper() and isinstance(code, int)}
    processes = {(cells[0], int(cells[1])) for cells in rows(section(OPERATION, "Exit codes"), "process", "code")}
    assert {("worker", code) for code in programs.WORKER_ENDS_FOR_GOOD} <= processes
    assert {("launcher", launcher.USAGE_STATUS), ("launcher", launcher.CANNOT_EXECUTE_STATUS)} <= processes


def test_files_programs_and_the_allowed_environment_are_in_the_manual() -> None:
    files = names(section(OPERATION, "Files"), "path", "what")
    listed = {name.rstrip("/") for cell in files for name in cell.split("`, `")}
    folders = (programs.LOG_FOLDER, programs.CONF_FOLDER, programs.STARTS_FOLDER)
    servers = (embedded_valkey.FOLDER, embedded_seaweed.FOLDER)
    remembered = (UP_FILE, scaling.SCALE_FILE, STOPPED_FILE, APPLIED_FILE, SECRETS_FILE, IDENTITY_FILE, RUNNING_FOLDER)
    assert {*folders, *servers, *remembered, LOCKS_FOLDER, BOOTS_FOLDER, LOCK_FILE, CONF_NAME, RUN_FILE} <= listed
    for name in (*programs.SERVERS, programs.PERSISTER):
        assert f"| `{name}` |" in section(OPERATION, "What runs")
    variables = set(re.findall(r"`([A-Za-z_*]+)`", section(OPERATION, "Environment")))
    assert set(launcher.ALWAYS_ALLOWED) <= variables


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{path.name} links to {target}"
        assert file.is_relative_to(ROOT), f"{path.name} links out of the repository: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_no_document_names_a_machine_or_a_package_registry(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    machine_paths = re.findall(r"(?<![\w.~])/(?:work|home|root|Users|mnt)/\S*", text)
    registries = re.findall(r"\b\S*(?:pypi|pythonhosted|debian|crates|npmjs)\.(?:org|io|com)\b", text)
    assert machine_paths + registries == []
