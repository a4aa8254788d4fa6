"""What two versions have in common, from their manifests. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from headpond_workers.checkpoints.manifest import Manifest, StoredFile


@dataclass(frozen=True, slots=True)
class Shared:
    """Bytes of different chunks, each counted once: all of a version's, and those that the other has too."""

    bytes: int
    shared_bytes: int


@dataclass(frozen=True, slots=True)
class FileChange:
    """One file that two versions do not have alike. old_bytes, new_bytes: None where a version lacks it.

    differing_bytes: of chunks of the new file that are nowhere in the old version; of a file that is gone, of chunks
    that are nowhere in the new one.
    """

    path: str
    old_bytes: int | None
    new_bytes: int | None
    differing_bytes: int

    @property
    def kind(self) -> str:
        """`added`, `removed` or `changed`."""
        if self.old_bytes is None:
            return "added"
        return "removed" if self.new_bytes is None else "changed"


@dataclass(frozen=True, slots=True)
class ParameterChange:
    """key: of a parameter, `engine`, or `adapter NAME`. None where a version does not say."""

    key: str
    old: str | None
    new: str | None


@dataclass(frozen=True, slots=True)
class Comparison:
    files: tuple[FileChange, ...]
    parameters: tuple[ParameterChange, ...]
    new: Shared
    """Of the new version, against the old."""


def shared(manifest: Manifest, other: Manifest | None) -> Shared:
    """How much of a version is in another one too."""
    known = set() if other is None else {chunk.sha256 for chunk in other.chunks}
    sizes = {chunk.sha256: chunk.size for chunk in manifest.chunks}
    return Shared(sum(sizes.values()), sum(size for sha256, size in sizes.items() if sha256 in known))


def compare(old: Manifest, new: Manifest) -> Comparison:
    """What changed from one version to another."""
    before = {file.path: file for file in old.files}
    after = {file.path: file for file in new.files}
    files = []
    for path in sorted(before.keys() | after.keys()):
        was, now = before.get(path), after.get(path)
        if was is not None and now is not None and was.sha256 == now.sha256:
            continue
        if now is not None:
            differing = _bytes_beside(now, new, old)
        else:
            differing = 0 if was is None else _bytes_beside(was, old, new)
        files.append(FileChange(path, None if was is None else was.size, None if now is None else now.size, differing))
    said, says = _said(old), _said(new)
    parameters = tuple(
        ParameterChange(key, said.get(key), says.get(key))
        for key in sorted(said.keys() | says.keys(), key=lambda key: (key != "engine", key))
        if said.get(key) != says.get(key)
    )
    return Comparison(tuple(files), parameters, shared(new, old))


def _bytes_beside(file: StoredFile, of: Manifest, other: Manifest) -> int:
    known = {chunk.sha256 for chunk in other.chunks}
    chunks = {of.chunks[index].sha256: of.chunks[index].size for index in file.chunks}
    return sum(size for sha256, size in chunks.items() if sha256 not in known)


def _said(manifest: Manifest) -> dict[str, str]:
    """What a version says beside its files."""
    said = dict(manifest.parameters)
    if manifest.engine is not None:
        said["engine"] = manifest.engine
    return said | {f"adapter {adapter.name}": adapter.digest for adapter in manifest.adapters}
