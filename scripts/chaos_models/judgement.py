"""What is wrong with the versions of a run: each rule looks at a survey beside what was acknowledged. No I/O.

A rule that finds nothing yields nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from found import AliasFound, Hashes, MoveFound, Survey, VersionFound

from headpond_workers.checkpoints.version_document import VersionState

WHOLE = (VersionState.COMPLETE, VersionState.DELETING)
"""States in which each byte is there; `deleting` until the deletion is over, for it may yet be refused."""

Number = tuple[str, int]
"""Model, and number of a version."""


@dataclass(frozen=True, slots=True)
class Promised:
    """What processes were told. pushed: files by the push that had them, acknowledged or not. acknowledged: the push
    that was told this number. doomed: versions whose deletion was begun, and neither refused nor acknowledged.
    deleted: those whose deletion was. moves: by model and alias, then by seq, what a mover was told the alias names."""

    pushed: Mapping[str, Hashes]
    acknowledged: Mapping[Number, str]
    doomed: frozenset[Number] = frozenset()
    deleted: frozenset[Number] = frozenset()
    moves: Mapping[tuple[str, str], Mapping[int, int]] = field(default_factory=dict)


History = dict[tuple[str, str], dict[int, MoveFound]]
"""Every move that any survey has seen, by model and alias, then by seq."""


def judge(survey: Survey, promised: Promised, history: History, *, last: bool) -> list[str]:
    """All that is wrong. history: is added to. last: all that was killed has been cleared away since."""
    found = [f"a document cannot be read: {what}" for what in survey.unreadable]
    versions = {(version.model, version.number): version for version in survey.versions}
    found += _numbers(survey)
    found += _acknowledged(versions, promised)
    for version in survey.versions:
        found += _bytes(version, promised)
    for alias in survey.aliases:
        found += _names(alias, versions)
        found += _linear(alias)
        found += _same_history(alias, history.setdefault((alias.model, alias.alias), {}))
    present = {(alias.model, alias.alias) for alias in survey.aliases}
    found += [f"{model}@{alias}: lost: it was moved, and is not there" for model, alias in history.keys() - present]
    found += _moves(promised, history)
    found += sorted(f"{key}: a version needs it, and it is not there" for key in survey.needed - survey.stored)
    if last:
        found += _left_behind(survey)
    return found


def _numbers(survey: Survey) -> Iterator[str]:
    """Contiguous from 1 on. That each is there once is the key's doing."""
    numbers: dict[str, list[int]] = {}
    for version in survey.versions:
        numbers.setdefault(version.model, []).append(version.number)
    for model, given in numbers.items():
        missing = sorted(set(range(1, max(given) + 1)) - set(given))
        if missing:
            yield f"{model}: versions up to {max(given)}, without {', '.join(map(str, missing))}"


def _acknowledged(versions: Mapping[Number, VersionFound], promised: Promised) -> Iterator[str]:
    for (model, number), push in promised.acknowledged.items():
        version = versions.get((model, number))
        if version is None:
            yield f"{model}@{number}: lost: it was acknowledged, and there is no such version"
        elif (model, number) in promised.deleted:
            if version.state != VersionState.DELETED:
                yield f"{version.name}: its deletion was acknowledged, and it is {version.state}"
        elif (model, number) in promised.doomed:
            if version.state not in (*WHOLE, VersionState.DELETED):
                yield f"{version.name}: its deletion was cut off, and it is {version.state}"
        elif version.state != VersionState.COMPLETE:
            yield f"{version.name}: lost: it was acknowledged, nobody deleted it, and it is {version.state}"
        if version is not None and version.files and version.files != promised.pushed[push]:
            yield f"{version.name}: the files of this version are not those of the push that was told its number"


def _bytes(version: VersionFound, promised: Promised) -> Iterator[str]:
    """What is there verifies, also where nobody was told of it."""
    if version.state == VersionState.QUARANTINED:
        yield f"{version.name}: it was quarantined, and nothing was damaged"
    elif version.state in WHOLE and version.broken:
        yield f"{version.name}: it does not verify: {version.broken}"
    elif version.state in WHOLE:
        wanted = promised.pushed.get(version.note)
        if wanted is None:
            yield f"{version.name}: nobody made a push {version.note!r}"
        elif version.files != wanted:
            yield f"{version.name}: its bytes are not those that were pushed: {_difference(version.files, wanted)}"


def _difference(found: Hashes, wanted: Hashes) -> str:
    differ = {path for path, *_ in set(found) ^ set(wanted)}
    return ", ".join(sorted(differ))


def _names(alias: AliasFound, versions: Mapping[Number, VersionFound]) -> Iterator[str]:
    version = versions.get((alias.model, alias.to))
    if not alias.to and not alias.moves:
        return  # made by a mover that was killed before it let it name something
    if version is None:
        yield f"{alias.name}: it names version {alias.to}, which is not there"
    elif version.state != VersionState.COMPLETE:
        yield f"{alias.name}: it names version {alias.to}, which is {version.state}"


def _linear(alias: AliasFound) -> Iterator[str]:
    """Each move leaves what the one before went to, and the last goes to what the alias names."""
    for before, after in zip(alias.moves, alias.moves[1:], strict=False):
        if after.seq != before.seq + 1:
            yield f"{alias.name}: move {after.seq} follows move {before.seq}"
        elif after.left != before.to:
            yield f"{alias.name}: move {after.seq} leaves version {after.left}, and the one before went to {before.to}"
    if not alias.to and not alias.moves:
        return
    if not alias.moves or (alias.moves[-1].seq, alias.moves[-1].to) != (alias.seq, alias.to):
        yield f"{alias.name}: its last move is not to version {alias.to}, which it names since move {alias.seq}"


def _same_history(alias: AliasFound, known: dict[int, MoveFound]) -> Iterator[str]:
    for move in alias.moves:
        before = known.setdefault(move.seq, move)
        if before != move:
            yield f"{alias.name}: move {move.seq} was {before.left} to {before.to}, now {move.left} to {move.to}"
    if known and max(known) > alias.seq:
        yield f"{alias.name}: it was moved {max(known)} times, now {alias.seq}"


def _moves(promised: Promised, history: History) -> Iterator[str]:
    """What a mover was told is in the history."""
    for (model, alias), told in promised.moves.items():
        known = history.get((model, alias), {})
        for seq, to in told.items():
            if seq not in known:
                yield f"{model}@{alias}: lost: move {seq} was acknowledged, and the history has none"
            elif known[seq].to != to:
                yield f"{model}@{alias}: move {seq} was told to go to {to}, and went to {known[seq].to}"


def _left_behind(survey: Survey) -> Iterator[str]:
    """Nothing of a killed process, once the collector has been round."""
    states = Counter(version.state for version in survey.versions)
    for state in (VersionState.PENDING, VersionState.DELETING):
        if states[state]:
            names = ", ".join(version.name for version in survey.versions if version.state == state)
            yield f"versions are left {state.value} after all is over: {names}"
    if survey.intents:
        yield f"intents are left after all is over: {', '.join(survey.intents)}"
    if survey.rounds:
        yield f"rounds of the collector are left after all is over: {', '.join(map(str, survey.rounds))}"
    orphans = sorted(survey.stored - survey.reachable)
    if orphans:
        yield f"{len(orphans)} objects are left that nothing leads to, such as {orphans[0]}"
