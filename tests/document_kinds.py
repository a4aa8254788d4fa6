"""One example of every kind of document and row that headpond stores, how it is read, and its file in tests/fixtures.

A file is named `<kind>.v<version>`, and `.<revision>` behind it where fields were added without a new version. It was
written by the release that first had these, is never changed, and must be readable for ever. After a new kind, version
or revision was added to KINDS or FILES:

    python tests/document_kinds.py        # writes the files that are not there yet
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headpond.bundle import BundleAttempt, new_bundle, pack_bundle, parse_bundle
from headpond.codec import pack_for_script, unpack_document
from headpond.commits import Commit, Origin, SessionRow, pack_commit, unpack_commit, unpack_session
from headpond.jobs import FinishReason, JobState, Priority, Result, Timings, Usage
from headpond.kept_settings import RUNNING_FOLDER, running_settings
from headpond.models import Holder, ModelRow, pack_model, unpack_model
from headpond.operations import (
    Claimed,
    Lease,
    LeaseStatus,
    Outcome,
    Submitted,
    _parse_append,
    _parse_claim,
    _parse_submit,
)
from headpond.provenance import AdapterDigest, Provenance
from headpond.requests import JobRequest, Message
from headpond.restoring import PutIn, _parse_put_in
from headpond.rows import RUN_HEAD, Attempt, RunRow, unpack_attempts, unpack_run
from headpond.settings import CONFIG_NAME, STATE_FOLDER, RedisSettings, StorageSettings
from headpond.switching import Outcome as TrialOutcome
from headpond.switching import parse_outcomes
from headpond.tables import ScriptedModel
from headpond.turns import Policy
from headpond.up_file import UP_FILE, Told, read_told
from headpond.upkeep import SpoolAnswer, _parse_spool
from headpond.wire import (
    Call,
    Ended,
    Header,
    Rewound,
    TokenRun,
    pack_data,
    pack_result,
    pack_tokens,
    unpack_entry,
    unpack_event,
    unpack_result,
    unpack_tokens,
)
from headpond.workers import WorkerRow, WorkerState, pack_worker, unpack_workers
from headpond_workers.checkpoints.alias_document import AliasDocument, Cause, Move, Trial, TrialBounds
from headpond_workers.checkpoints.collection.gc_documents import Condemned, GcState, Round
from headpond_workers.checkpoints.manifest import (
    AdapterNote,
    Manifest,
    StoredChunk,
    StoredFile,
    StoredObject,
    digest_of_files,
)
from headpond_workers.checkpoints.pulls.cache_entry import ENTRY, CacheEntry, _KeptFile
from headpond_workers.checkpoints.pushes.intent import Intent
from headpond_workers.checkpoints.version_document import VersionDocument, VersionState
from headpond_workers.naming.identity import IDENTITY_FILE, Identity, identity_of
from headpond_workers.persistence.batch import Batch
from headpond_workers.persistence.documents import Head, Segment
from headpond_workers.persistence.fair import BandTimes
from headpond_workers.persistence.items import CommitItem, JobItem, SessionItem
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.persistence.progress import Progress
from headpond_workers.persistence.records import (
    BackRecord,
    CommitRecord,
    DropRecord,
    EndRecord,
    SessionRecord,
    SubmitRecord,
)
from headpond_workers.persistence.snapshot_documents import Part, PartRef, Snapshot
from headpond_workers.persistence.spool_document import SpoolDocument
from headpond_workers.prefixes.document import StoredPrefixDocument
from headpond_workers.supervision import embedded_seaweed, embedded_valkey
from headpond_workers.supervision.applied import APPLIED_FILE, Applied, read_applied
from headpond_workers.supervision.run_file import RunFile, StorageAccess, read_run_file
from headpond_workers.supervision.scaling import SCALE_FILE, Scale, read_scales
from headpond_workers.supervision.shell_secrets import SECRETS_FILE, _noted
from headpond_workers.supervision.stopped import STOPPED_FILE, read_stopped

FIXTURES = Path(__file__).parent / "fixtures"
_NAME = re.compile(r"([a-z-]+)\.v([0-9]+)(?:\.([0-9]+))?")


@dataclass(frozen=True)
class Kind:
    """value: what `read` makes of the newest version. written: the bytes of that. reader: the function that `read`
    calls, by its dotted name."""

    value: object
    written: Callable[[], bytes]
    read: Callable[[bytes], object]
    reader: str
    version: int = 1
    revision: int = 0


TXN = "0123456789abcdef0123456789abcdef"
SHA = bytes(range(32))
WEIGHTS = (StoredFile("model.gguf", 5, SHA, (0,)),)
DIGEST = digest_of_files((file.path, file.size, file.sha256) for file in WEIGHTS)
BY: dict[str, Any] = {"txn": TXN, "created_ms": 1_800_000_000_000, "writer": "host:7:1"}
LATER = 1_800_000_000_500

CALL = Call("generate", (), {"request": {"prompt": "Wie geht es dir?", "max_tokens": 8}}, {"retries": 1}, LATER)
HEADER = Header("d" * 32, "acme", "batch", "3", 14)
TOKENS = TokenRun(5, (1, 70_000, -1), ("a", "\N{WATER WAVE}", ""))
RESULT = Result(
    "chat/a", JobState.FINISHED, "text", (1, 2), FinishReason.STOP, Usage(3, 2), Timings(0.5, 0.1, 1.0, 9.0), "chat",
    version="3", attempts=2, durable=True, pieces=("te", "xt"), embeddings=((0.5, -1.0),),
    provenance=Provenance(
        engine="llamacpp", fingerprint="f" * 64, weights_digest="a" * 64, model_digest="b" * 64,
        adapters=(AdapterDigest("tone", None),), request_digest="d" * 32, prompt_digest="c" * 64,
        sampling={"temperature": 1.0, "top_p": 0.5}, seed=7,
    ),
)  # fmt: skip
RUN = RunRow(
    state=JobState.RUNNING, fence="01FENCE.0", gen=1_800_000_000_000, offset=7, entries=2, claimed_offset=5,
    band="normal", attempt=2, strikes=1, worker="01BOOT", tag=3.5, lane="any", submitted_ms=1, claimed_ms=2, ended_ms=0,
    durable=False, reason="", parked="01FENCE.9", fingerprint="f" * 64, host="host:7", faults=1, struck="",
    pinned="", served_by="local-0123456789ab",
)  # fmt: skip
RUN_OF_SESSION = replace(RUN, session="support-4", place=3)
ATTEMPT = Attempt(1, "01BOOT", "host:7", "3", "f" * 64, 5, 9, "expired", 0, 3, "its worker was silent")
OUTCOME = TrialOutcome("chat/a", "4", JobState.FAILED, None, 12, 5, 900)
MODEL = ModelRow("scripted", 5, storage=True, context_tokens=64, spec="{}", holders=(Holder("d1", "h", "/srv", 9),))
WORKER = WorkerRow(
    "01BOOT", "chat", "3", "host", 7, "chat-0", 4, 2, WorkerState.READY, "", 1_800_000_000_000, tokens=9, jobs=2,
    tokens_per_s=2.5, device="cpu", memory_bytes=1024, deployment="d1",
)  # fmt: skip
REQUEST = JobRequest(prompt="Wie geht es dir?", max_tokens=8)
BUNDLE = new_bundle(
    headpond="0.1.0", exported_ms=LATER, id="chat/a", state=JobState.DEAD, tenant="acme", priority=Priority.NORMAL,
    pinned="", request=REQUEST, seed=REQUEST.seed_for("chat/a"), token_ids=(1, 2), text="text", fingerprint="f" * 64,
    version="3", submitted_ms=1, ended_ms=9, leases=1, strikes=3, faults=3, last_error="silent",
    attempts=[BundleAttempt(
        attempt=1, worker="01BOOT", host="host:7", version="3", fingerprint="f" * 64, claimed_ms=5, ended_ms=9,
        how="expired", from_offset=0, to_offset=2, reason="silent").model_dump()],
)  # fmt: skip
SESSION = SessionRow(
    "support-4", "c" * 64, "3", Policy.PIN, "acme", turns=4, created_ms=5, updated_ms=9, skipped=("chat/lost",),
    left=("d" * 64,),
)  # fmt: skip
_TURN = Commit(
    id="", parent="d" * 64, session="support-4", job="chat/a", finish_reason=FinishReason.STOP, model="chat",
    messages=(Message(role="user", content="Wie geht es dir?"), Message(role="assistant", content="text")),
    version="3", fingerprint="f" * 64, usage=Usage(3, 2), created_ms=LATER, turns=2, size=20, policy=Policy.MIGRATE,
    migrated_from=Origin("2", "e" * 64), skipped=("chat/lost",),
)  # fmt: skip
COMMIT = replace(_TURN, id=pack_commit(_TURN)[0])
HEAD_V1 = Head(
    **BY, lineage="l" * 32, epoch=2, seq=3, inc=9, watermark=JournalId(9, 40),
    segment="state/chat/segments/0000000002-0000000003",
)  # fmt: skip
HEAD = replace(
    HEAD_V1, as_of_ms=LATER, snapshot="state/chat/snapshots/0000000002-0000000002", snapshot_seq=2, floor=1,
    above_bytes=500, snapshot_bytes=900,
)  # fmt: skip
SEGMENT_V1 = Segment(
    **BY, model="chat", lineage="l" * 32, epoch=2, seq=3, prev="state/chat/segments/0000000002-0000000002",
    first=JournalId(9, 38), last=JournalId(9, 40), inc=9,
    records=(
        SubmitRecord(JournalId(9, 38), "chat/a", pack_data(CALL, digest="d" * 32)),
        EndRecord(JournalId(9, 40), "chat/a", JobState.FINISHED, pack_result(RESULT)),
    ),
)  # fmt: skip
FAIR = {"normal": BandTimes(2.5, {"acme": 3.0})}
SEGMENT = replace(
    SEGMENT_V1, first=JournalId(9, 1), as_of_ms=LATER, fair=FAIR,
    progress=(Progress("chat/b", b"row", 2, (3, 4), ("c", "d")),),
    records=(
        SubmitRecord(JournalId(9, 1), "chat/a", b"data", b"row", 5, 9),
        EndRecord(JournalId(9, 2), "chat/a", JobState.FINISHED, b"result", b"row"),
        BackRecord(JournalId(9, 3), "chat/b", b"row"),
        DropRecord(JournalId(9, 4), "chat/c"),
        CommitRecord(JournalId(9, 5), "commit", b"document"),
        SessionRecord(JournalId(9, 6), "session", b"row"),
    ),
)  # fmt: skip
SPOOL = SpoolDocument(
    **BY, model="chat", lineage="l" * 32,
    batch=Batch(
        first=SEGMENT.first, last=SEGMENT.last, inc=9, as_of_ms=LATER, records=SEGMENT.records,
        progress=SEGMENT.progress, fair=FAIR,
    ),
)  # fmt: skip
PREFIX = StoredPrefixDocument(
    **BY, model="chat", fingerprint="f" * 64, tokens=130, hashes=(b"a" * 16, b"b" * 16), size=900, sha256=SHA
)
SNAPSHOT = Snapshot(
    **BY, model="chat", lineage="l" * 32, epoch=2, seq=2, inc=9, watermark=JournalId(9, 40), as_of_ms=LATER,
    segment="state/chat/segments/0000000002-0000000002", prev="state/chat/snapshots/0000000001-0000000001", fair=FAIR,
    parts=(PartRef(f"state/chat/parts/{TXN}-0000000000", "commit/a", "job/b", 3, 900, SHA),),
)  # fmt: skip
PART = Part(
    **BY, model="chat",
    items=(
        CommitItem("commit", b"document"),
        JobItem("chat/a", b"data", b"row", 5, 9, state=JobState.FINISHED, result=b"result"),
        JobItem("chat/b", b"data", b"row", 5, 9, (3, 4), ("c", "d")),
        SessionItem("session", b"row"),
    ),
)  # fmt: skip
VERSION = VersionDocument(
    **BY, model="chat", number=3, state=VersionState.COMPLETE, push=TXN, manifest="manifests/x", manifest_digest=SHA,
    model_digest=DIGEST, size_bytes=5, files=1, engine="llamacpp", parent=2, note="a note",
)  # fmt: skip
MANIFEST = Manifest(
    **BY, model="chat", objects=(StoredObject("chunks/00/x", 5),), chunks=(StoredChunk(SHA, 5, 0, 0),), files=WEIGHTS,
    engine="llamacpp", parameters={"context_tokens": "64"}, adapters=(AdapterNote("tone", "a" * 64),), parent=2,
)  # fmt: skip
ALIAS = AliasDocument(
    **BY, model="chat", alias="prod", to=3, previous=2, seq=5, trial=Trial(4, 100, LATER, TrialBounds()),
    history=(Move(4, 2, 3, "who", LATER, Cause.PROMOTE, "note", TXN), Move(5, 3, 3, "who", LATER, Cause.CANARY)),
)  # fmt: skip
INTENT = Intent(**BY, model="chat", host="host", pid=7, objects=("chunks/00/x",), gc_txn="", revision=TXN)
GC = GcState(
    **BY, epoch=3, next_round=2, holder="host:7:1", until_ms=LATER, rounds=(Round(1, "gc/condemned/1", 2, 5, 9),)
)
CONDEMNED = Condemned(**BY, round=1, keys=("chunks/00/x", "chunks/01/y"))


def run_elements(row: RunRow) -> list[Any]:
    """The elements of a run row, its version first, as scripts write them."""
    stored = {"state": row.state.value, "durable": int(row.durable)}
    return [1, *(stored.get(name, getattr(row, name)) for name in RunRow.__slots__)]


def _script_run() -> bytes:
    elements = run_elements(RUN_OF_SESSION)
    return pack_for_script(elements[:RUN_HEAD]) + pack_for_script(elements[RUN_HEAD:])


def _script_attempts() -> bytes:
    return pack_for_script([1, [getattr(ATTEMPT, name) for name in Attempt.__slots__]])


def _script_model() -> bytes:
    """As `hold` packs it anew: text and bytes are one to a script."""
    return pack_for_script(
        {"schema": "headpond/model", "v": 1, **unpack_document(pack_model(MODEL), schema="headpond/model", v=1)}
    )


KINDS: dict[str, Kind] = {
    "data-entry": Kind(
        (HEADER, CALL),
        lambda: pack_data(CALL, digest=HEADER.digest, tenant="acme", band="batch", pinned="3", cost=14),
        unpack_entry,
        "headpond.wire.unpack_entry",
    ),
    "token-entry": Kind(TOKENS, lambda: pack_tokens(TOKENS), unpack_tokens, "headpond.wire.unpack_tokens"),
    "rewound": Kind(
        Rewound(5, "why"),
        lambda: pack_for_script([1, "rewound", 5, "why"]),
        unpack_event,
        "headpond.wire.unpack_event",
    ),
    "ended": Kind(
        Ended(JobState.EXPIRED, 7),
        lambda: pack_for_script([1, "ended", 7, "expired"]),
        unpack_event,
        "headpond.wire.unpack_event",
    ),
    "result": Kind(
        RESULT,
        lambda: pack_result(RESULT),
        lambda data: unpack_result(data, durable=True),
        "headpond.wire.unpack_result",
    ),
    "run-row": Kind(RUN_OF_SESSION, _script_run, unpack_run, "headpond.rows.unpack_run", revision=1),
    "session-row": Kind(
        SESSION,
        lambda: pack_for_script([1, "c" * 64, "3", "pin", "acme", 4, 5, 9, ["chat/lost"], ["d" * 64]]),
        lambda data: unpack_session("support-4", data),
        "headpond.commits.unpack_session",
    ),
    "commit": Kind(
        COMMIT,
        lambda: pack_commit(COMMIT)[1],
        lambda data: unpack_commit(hashlib.sha256(data).hexdigest(), data),
        "headpond.commits.unpack_commit",
    ),
    "attempts": Kind((ATTEMPT,), _script_attempts, unpack_attempts, "headpond.rows.unpack_attempts"),
    "outcome": Kind(
        [OUTCOME],
        lambda: pack_for_script([1, "chat/a", "4", "failed", -1, 12, 5, 900]),
        lambda data: parse_outcomes({b"4:7": data, b"4": b"7"}),
        "headpond.switching.parse_outcomes",
    ),
    "worker-row": Kind(
        [WORKER],
        lambda: pack_worker(WORKER),
        lambda data: unpack_workers("chat", {b"01BOOT": data}),
        "headpond.workers.unpack_workers",
    ),
    "model": Kind(MODEL, _script_model, unpack_model, "headpond.models.unpack_model"),
    "bundle": Kind(BUNDLE, lambda: pack_bundle(BUNDLE), parse_bundle, "headpond.bundle.parse_bundle"),
    "head": Kind(HEAD, HEAD.pack, Head.unpack, "headpond_workers.persistence.documents.Head.unpack", version=2),
    "segment": Kind(
        SEGMENT, SEGMENT.pack, Segment.unpack, "headpond_workers.persistence.documents.Segment.unpack", version=2
    ),
    "snapshot": Kind(
        SNAPSHOT, SNAPSHOT.pack, Snapshot.unpack, "headpond_workers.persistence.snapshot_documents.Snapshot.unpack"
    ),
    "part": Kind(PART, PART.pack, Part.unpack, "headpond_workers.persistence.snapshot_documents.Part.unpack"),
    "spool": Kind(
        SPOOL, SPOOL.pack, SpoolDocument.unpack, "headpond_workers.persistence.spool_document.SpoolDocument.unpack"
    ),
    "stored-prefix": Kind(
        PREFIX,
        PREFIX.pack,
        StoredPrefixDocument.unpack,
        "headpond_workers.prefixes.document.StoredPrefixDocument.unpack",
    ),
    "version": Kind(
        VERSION,
        VERSION.pack,
        VersionDocument.unpack,
        "headpond_workers.checkpoints.version_document.VersionDocument.unpack",
    ),
    "manifest": Kind(MANIFEST, MANIFEST.pack, Manifest.unpack, "headpond_workers.checkpoints.manifest.Manifest.unpack"),
    "alias": Kind(
        ALIAS, ALIAS.pack, AliasDocument.unpack, "headpond_workers.checkpoints.alias_document.AliasDocument.unpack"
    ),
    "intent": Kind(INTENT, INTENT.pack, Intent.unpack, "headpond_workers.checkpoints.pushes.intent.Intent.unpack"),
    "gc": Kind(GC, GC.pack, GcState.unpack, "headpond_workers.checkpoints.collection.gc_documents.GcState.unpack"),
    "condemned": Kind(
        CONDEMNED,
        CONDEMNED.pack,
        Condemned.unpack,
        "headpond_workers.checkpoints.collection.gc_documents.Condemned.unpack",
    ),
}
"""What stands in Redis, in storage, or comes from another machine: hostile until it is read."""

REPLIES: dict[str, Kind] = {
    "submit reply": Kind(
        [Submitted.NEW, Submitted.KNOWN],
        lambda: pack_for_script(["new", "known"]),
        _parse_submit,
        "headpond.operations._parse_submit",
    ),
    "claim reply": Kind(
        Claimed("open", 1.5, (Lease("chat/a", "01F.0", 1, 9, 0, 0.5, b"\xff\x00"),), (LeaseStatus.DONE,)),
        lambda: pack_for_script(["open", 1500, 900, ["done"], "chat/a", "01F.0", 1, 9, 0, 400, b"\xff\x00"]),
        _parse_claim,
        "headpond.operations._parse_claim",
    ),
    "append reply": Kind(
        [Outcome(LeaseStatus.APPENDED, 5)],
        lambda: pack_for_script(["appended", 5]),
        _parse_append,
        "headpond.operations._parse_append",
    ),
    "spool answer": Kind(SpoolAnswer.OK, lambda: b"ok", _parse_spool, "headpond.upkeep._parse_spool"),
    "restore reply": Kind(
        [PutIn.NEW, PutIn.KEPT],
        lambda: pack_for_script(["new", "kept"]),
        _parse_put_in,
        "headpond.restoring._parse_put_in",
    ),
}
"""What scripts answer: gone once it is read, so it has no version."""


def _in_folder(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Reads bytes as the file `name` of a folder. read: is given that folder."""

    def read_bytes(data: bytes) -> object:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / name).write_bytes(data)
            return read(Path(folder))

    return read_bytes


def _json(schema: str, **fields: object) -> Callable[[], bytes]:
    return lambda: (json.dumps({"schema": f"headpond/{schema}", "v": 1, **fields}, indent=1) + "\n").encode()


def _running(data: bytes) -> object:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / CONFIG_NAME
        path = config.parent / STATE_FOLDER / RUNNING_FOLDER / "0a.json"
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        found = running_settings(config, "0a")
        return found and (found.redis, found.storage, found.models)


def _kept(folder: Path) -> object:
    entry = CacheEntry(folder, DIGEST)
    entry.folder.mkdir()
    (folder / ENTRY).rename(entry.folder / ENTRY)
    return entry._kept()


_PORTS = {part: 20_000 + number for number, part in enumerate(embedded_seaweed.PARTS)}
_STORAGE = {
    "endpoint_url": "http://127.0.0.1:9", "bucket": "b", "region": "r", "access_key": "AK", "secret_key": "SK",
}  # fmt: skip
FILES: dict[str, Kind] = {
    "run": Kind(
        RunFile("redis://127.0.0.1:9", StorageAccess(**_STORAGE), "/run/s.sock", 7, "/srv/headpond.toml"),
        _json(
            "run", redis_url="redis://127.0.0.1:9", storage=_STORAGE, supervisor_socket="/run/s.sock",
            supervisor_pid=7, config="/srv/headpond.toml",
        ),
        _in_folder("run.json", read_run_file),
        "headpond_workers.supervision.run_file.read_run_file",
    ),
    "applied": Kind(
        Applied({"redis": {"url": None}, "storage": {"bucket": "b"}}, {"chat": {"engine": "scripted"}}),
        _json("applied", redis={"url": None}, storage={"bucket": "b"}, models={"chat": {"engine": "scripted"}}),
        _in_folder(APPLIED_FILE, read_applied),
        "headpond_workers.supervision.applied.read_applied",
    ),
    "running": Kind(
        (RedisSettings(url="redis://10.0.0.1"), StorageSettings(), {"chat": ScriptedModel(engine="scripted", slots=2)}),
        _json(
            "running", redis={"url": "redis://10.0.0.1"}, storage={"bucket": "headpond"},
            models={"chat": {"engine": "scripted", "slots": 2}},
        ),
        _running,
        "headpond.kept_settings.running_settings",
    ),
    "up": Kind(
        Told({"HEADPOND_DEFAULTS__SLOTS": "2"}, ("chat.slots=3",)),
        _json("up", set=["chat.slots=3"], environment={"HEADPOND_DEFAULTS__SLOTS": "2"}),
        _in_folder(UP_FILE, read_told),
        "headpond.up_file.read_told",
    ),
    "stopped": Kind(
        frozenset({"chat"}),
        _json("stopped", models=["chat"]),
        _in_folder(STOPPED_FILE, read_stopped),
        "headpond_workers.supervision.stopped.read_stopped",
    ),
    "scale": Kind(
        {"chat": Scale(3, 1)},
        _json("scale", models={"chat": {"workers": 3, "configured": 1}}),
        _in_folder(SCALE_FILE, read_scales),
        "headpond_workers.supervision.scaling.read_scales",
    ),
    "secrets": Kind(
        {"KEY_A": "a" * 64},
        _json("secrets", variables={"KEY_A": "a" * 64}),
        _in_folder(SECRETS_FILE, _noted),
        "headpond_workers.supervision.shell_secrets._noted",
    ),
    "deployment": Kind(
        Identity("0123456789abcdef", SHA),
        _json("deployment", id="0123456789abcdef", key=SHA.hex()),
        _in_folder(IDENTITY_FILE, identity_of),
        "headpond_workers.naming.identity.identity_of",
    ),
    "valkey-access": Kind(
        (20_001, "p" * 64),
        _json("valkey-access", port=20_001, password="p" * 64),
        _in_folder("access.json", lambda folder: embedded_valkey._access(folder / "access.json")),
        "headpond_workers.supervision.embedded_valkey._access",
    ),
    "seaweedfs-access": Kind(
        embedded_seaweed._Access(_PORTS, "AK", "SK"),
        _json("seaweedfs-access", ports=_PORTS, access_key="AK", secret_key="SK"),  # noqa: S106 - of nobody
        _in_folder("access.json", lambda folder: embedded_seaweed._access(folder / "access.json")),
        "headpond_workers.supervision.embedded_seaweed._access",
    ),
    "cached-version": Kind(
        [_KeptFile("model.gguf", 5, 9, SHA.hex())],
        _json(
            "cached-version", files=[{"path": "model.gguf", "size": 5, "mtime_ns": 9, "sha256": SHA.hex()}]
        ),
        _in_folder(ENTRY, _kept),
        "headpond_workers.checkpoints.pulls.cache_entry.CacheEntry._kept",
    ),
}  # fmt: skip
"""What a deployment keeps for itself on its own disk."""

OLDER: dict[str, object] = {"head.v1": HEAD_V1, "segment.v1": SEGMENT_V1, "run-row.v1": RUN}
"""What a file of an older version or revision becomes when it is read, by the name of the file."""


def fixture_of(name: str, kind: Kind) -> Path:
    return FIXTURES / (f"{name}.v{kind.version}" + (f".{kind.revision}" if kind.revision else ""))


def parsed_name(path: Path) -> tuple[str, tuple[int, int]]:
    """The kind, and version and revision, in the name of a fixture."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return match[1], (int(match[2]), int(match[3] or 0))


def main() -> None:
    FIXTURES.mkdir(exist_ok=True)
    for name, kind in {**KINDS, **FILES}.items():
        path = fixture_of(name, kind)
        if not path.exists():
            path.write_bytes(kind.written())
            print(path)


if __name__ == "__main__":
    main()
