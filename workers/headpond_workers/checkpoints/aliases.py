"""The aliases of a model in storage: names of its versions that are moved, each by one swap after the other.

Who moves an alias reads the alias first, then the version that it is to name, then swaps the alias as it was read.
`delete` swaps the version first, then every alias as it finds it: so either it sees the move, or the swap of the move
fails and its next look at the version shows the deletion. An alias that is not there yet is made first, naming none.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from headpond.errors import (
    AliasMoved,
    BlobChanged,
    BlobMissing,
    InvalidRequest,
    StorageUnavailable,
    VersionMissing,
    VersionUnusable,
)
from headpond_workers.checkpoints.alias_document import MAX_ALIAS_BYTES, MAX_WHO_CHARS, AliasDocument, Cause, Trial
from headpond_workers.checkpoints.alias_history import Change, Mover, blank, changed, is_blank, knows, last_move
from headpond_workers.checkpoints.document_io import checked, new_txn, now_ms
from headpond_workers.checkpoints.names import ALIAS_NAME, alias_key, aliases_prefix, check_alias
from headpond_workers.checkpoints.parallel import THREADS, in_parallel
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.version_document import MAX_NOTE_CHARS, VersionDocument, VersionState

PAUSE_S = 0.02
MAX_PAUSE_S = 0.5
"""Between two tries of movers of one alias; random below it, so that they do not meet again."""


@dataclass(frozen=True, slots=True)
class AliasAt:
    """An alias as it was read. etag: names this very body in a swap."""

    document: AliasDocument
    etag: str


Decide = Callable[[AliasDocument], Change | None]
"""What is to be done with an alias as it is now; None: nothing."""


class Aliases:
    """Of one model. Any call may raise StorageUnavailable; from one that changes something it is an unknown outcome,
    and a repeat is right. An alias that cannot be read is BlobCorrupt with its key.

    threads: calls at a time when the objects of a version are looked for. pause: waits this many seconds between two
    tries.
    """

    def __init__(
        self, registry: Registry, *, threads: int = THREADS, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self.registry, self._pause = registry, pause
        self._blobs, self._model, self._threads = registry.blobs, registry.model, threads

    def get(self, alias: str) -> AliasAt | None:
        """None: it names nothing. One that has a trial alone names version 0."""
        at = self._read(alias)
        return None if at is None or is_blank(at.document) else at

    def recorded(self, alias: str) -> AliasDocument | None:
        """With its history, also if it names nothing any more; None if it was never changed."""
        at = self._read(alias)
        return None if at is None or not at.document.history else at.document

    def all(self) -> list[AliasDocument]:
        """Every alias that names something, by name."""
        found = [self.get(name) for name in self._names()]
        return [at.document for at in found if at is not None]

    def resolve(self, alias: str) -> VersionDocument:
        """The version that an alias names, complete or not. Raises VersionMissing.

        A deletion of it that was begun, which its alias forbids, is undone: whoever deleted was killed amid it, or
        finds out and refuses.
        """
        at = self.get(alias)
        if at is None or not at.document.to:
            raise self._nameless(alias)
        while (version := self.registry.read(at.document.to)).document.state is VersionState.DELETING:
            with suppress(BlobChanged):
                self.registry.undo_deletion(version)
        return version.document

    def move(
        self, alias: str, *, to: int, left: int | None, who: str, note: str = "", cause: Cause = Cause.PROMOTE
    ) -> AliasDocument:
        """Let an alias name the version `to`, if it names `left` (0: none; None: whatever it names). A repeat changes
        nothing. A trial ends: it was compared with what the alias named.

        Raises AliasMoved, VersionMissing, VersionUnusable; the last also if an object of the version is not there.
        """
        if to < 1:
            raise InvalidRequest("an alias is moved to a version, whose number is 1 or more", field="to")

        def decide(now: AliasDocument) -> Change | None:
            if now.to == to:
                return None
            if left is not None and now.to != left:
                raise self._moved(alias, expected=left, found=now.to)
            return Change(to, cause, begins_to_name=to)

        return self._change(alias, decide, self._mover(who, note))

    def rollback(
        self, alias: str, *, left: int | None, who: str, note: str = "", cause: Cause = Cause.ROLLBACK
    ) -> AliasDocument:
        """Let an alias name what it named before, if it names `left` (None: whatever it names). A second rollback goes
        one further back. A repeat that names `left` changes nothing.

        Raises AliasMoved, VersionMissing if it named nothing before, VersionUnusable.
        """

        def decide(now: AliasDocument) -> Change | None:
            if left is not None and now.to != left:
                last = last_move(now)
                if last is not None and (last.left, last.cause) == (left, cause):
                    return None
                raise self._moved(alias, expected=left, found=now.to)
            if not now.previous:
                raise VersionMissing(
                    f"{self._model}@{alias}",
                    "it named no other version before, so there is nothing to go back to. See what there is with: "
                    f"headpond models versions {self._model}",
                )
            return Change(now.previous, cause, begins_to_name=now.previous)

        self._must_exist(alias)
        return self._change(alias, decide, self._mover(who, note))

    def begin_trial(self, alias: str, trial: Trial, *, who: str, note: str = "") -> AliasDocument:
        """Give a share of the jobs to another version than the one that the alias names. A trial of that version that
        is on goes on, with the share and the bounds that are given; one of another version ends.

        Raises InvalidRequest if it is what the alias names, VersionMissing, VersionUnusable.
        """

        def decide(now: AliasDocument) -> Change | None:
            if now.to == trial.version:
                raise InvalidRequest(
                    f"'{alias}' names version {trial.version} already, so there is nothing to try", field="version"
                )
            begun = trial
            if now.trial is not None and now.trial.version == trial.version:
                begun = replace(trial, since_ms=now.trial.since_ms)
            return None if begun == now.trial else Change(now.to, Cause.CANARY, begun, begins_to_name=begun.version)

        return self._change(alias, decide, self._mover(who, note))

    def end_trial(
        self, alias: str, *, version: int, who: str, note: str = "", cause: Cause = Cause.CANARY
    ) -> AliasDocument:
        """End the trial of this version; nothing happens if it is not on. Raises VersionMissing without the alias."""

        def decide(now: AliasDocument) -> Change | None:
            is_on = now.trial is not None and now.trial.version == version
            return Change(now.to, cause) if is_on else None

        self._must_exist(alias)
        return self._change(alias, decide, self._mover(who, note))

    def promote_trial(
        self, alias: str, *, version: int, who: str, note: str = "", cause: Cause = Cause.PROMOTE
    ) -> AliasDocument:
        """Let an alias name the version that is on trial. A repeat changes nothing.

        Raises VersionUnusable if it is not on trial, or no longer complete; VersionMissing without the alias.
        """

        def decide(now: AliasDocument) -> Change | None:
            if now.to == version:
                return None
            if now.trial is None or now.trial.version != version:
                raise VersionUnusable(f"{self._model}@{version}", f"it is not on trial at '{alias}'; nothing was moved")
            return Change(version, cause, begins_to_name=version)

        self._must_exist(alias)
        return self._change(alias, decide, self._mover(who, note))

    def swap_each(self) -> list[AliasDocument]:
        """Every alias, also one that names nothing, swapped for the same under another txn: whoever read one before,
        and has not swapped it yet, has to read it anew."""
        return [document for name in self._names() if (document := self._swap_for_itself(name)) is not None]

    def _swap_for_itself(self, alias: str) -> AliasDocument | None:
        while (at := self._read(alias)) is not None:
            same = replace(at.document, txn=new_txn(), created_ms=now_ms(), writer=self.registry.writer)
            with suppress(BlobChanged):
                self._blobs.put_if(alias_key(self._model, alias), same.pack(), etag=at.etag)
                return same
        return None

    def _change(self, alias: str, decide: Decide, mover: Mover) -> AliasDocument:
        """Decide and swap until a swap succeeds; one that fails is another mover's that succeeded."""
        key = alias_key(self._model, check_alias(alias))
        whole: set[int] = set()
        pause_s = PAUSE_S
        while True:
            at = self._read(alias)
            now = blank(self._model, alias, writer=self.registry.writer) if at is None else at.document
            if knows(now, mover) or (change := decide(now)) is None:
                return now
            if change.begins_to_name:
                self._check(change.begins_to_name, whole)
            if at is None:
                with suppress(BlobChanged):
                    self._blobs.put_new(key, now.pack())
                continue
            after = changed(now, change, mover, writer=self.registry.writer)
            try:
                self._blobs.put_if(key, after.pack(), etag=at.etag)
                return after
            except BlobChanged:
                self._pause(random.uniform(0, pause_s))  # noqa: S311 - no secret
                pause_s = min(MAX_PAUSE_S, 2 * pause_s)
            except StorageUnavailable:
                found = self._read(alias)
                if found is None or not knows(found.document, mover):
                    raise
                return found.document

    def _check(self, number: int, whole: set[int]) -> None:
        """Raises VersionMissing, VersionUnusable. whole: versions whose objects were found; those of a complete version
        stay, so they are looked for once."""
        version = self.registry.complete(number)
        if number in whole:
            return
        try:
            objects = self.registry.manifest_of(version).objects
        except BlobMissing as error:
            raise self._incomplete(number, error.key, found="not there") from error
        sizes = in_parallel(lambda stored: self._blobs.size_of(stored.key), objects, threads=self._threads)
        for stored, size in zip(objects, sizes, strict=True):
            if size != stored.size:
                found = "not there" if size is None else f"{size} bytes instead of {stored.size}"
                raise self._incomplete(number, stored.key, found=found)
        whole.add(number)

    def _incomplete(self, number: int, key: str, *, found: str) -> VersionUnusable:
        return VersionUnusable(
            f"{self._model}@{number}",
            f"{key} is {found}, so no alias may name it. Look at it with: headpond models verify {self._model}",
        )

    def _names(self) -> list[str]:
        prefix = aliases_prefix(self._model)
        names = (key[len(prefix) :] for key in self._blobs.list_keys(prefix))
        return [name for name in names if ALIAS_NAME.fullmatch(name)]

    def _read(self, alias: str) -> AliasAt | None:
        key = alias_key(self._model, check_alias(alias))
        try:
            blob = self._blobs.get(key, max_bytes=MAX_ALIAS_BYTES)
        except BlobMissing:
            return None
        return AliasAt(checked(key, lambda: AliasDocument.unpack(blob.body)), blob.etag)

    def _must_exist(self, alias: str) -> None:
        if self.get(alias) is None:
            raise self._nameless(alias)

    def _nameless(self, alias: str) -> VersionMissing:
        return VersionMissing(
            f"{self._model}@{alias}",
            f"this alias names no version yet. Let it name one with: headpond models promote {self._model} VERSION "
            f"--alias {alias}",
        )

    def _moved(self, alias: str, *, expected: int, found: int) -> AliasMoved:
        return AliasMoved(alias_key(self._model, alias), alias=alias, expected=expected, found=found)

    def _mover(self, who: str, note: str) -> Mover:
        if len(note) > MAX_NOTE_CHARS or not _is_text(note + who):
            raise InvalidRequest(
                f"a note is text of {MAX_NOTE_CHARS} characters at most; this one has {len(note)}", field="note"
            )
        return Mover(who[:MAX_WHO_CHARS], note, new_txn())


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
