"""`headpond models versions`, `show`, `diff`: the versions of a model in storage."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from headpond.errors import BlobMissing, VersionMissing
from headpond.terminal import escape_controls
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.comparing import Comparison, Shared, compare, shared
from headpond_workers.checkpoints.manifest import Manifest
from headpond_workers.checkpoints.names import PROD, VERSION_NUMBER
from headpond_workers.checkpoints.pushes.stored_chunks import read_versions
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.version_document import VersionDocument, VersionState
from headpond_workers.cli.config_option import AsJson, Config, say
from headpond_workers.cli.sizes import shown_size
from headpond_workers.cli.status_tables import table_console
from headpond_workers.cli.version_storage import registry_of, split_version

Name = Annotated[str, typer.Argument(metavar="NAME", help="The model.")]
_STYLES = {
    VersionState.COMPLETE: "green",
    VersionState.QUARANTINED: "bold red",
    VersionState.PENDING: "yellow",
}


def register(models_app: typer.Typer) -> None:
    """Add the commands to `headpond models`."""
    models_app.command("versions")(list_versions)
    models_app.command("show")(show_version)
    models_app.command("diff")(diff_versions)


def list_versions(name: Name, config: Config = None, *, as_json: AsJson = False) -> None:
    """List the versions of a model in storage, and which aliases name them.

    Examples:

      headpond models versions chat

      headpond models versions chat --json | jq '.versions[] | select(.state == "complete") | .number'
    """
    registry = registry_of(name, config)
    versions = read_versions(registry)
    documents = [at.document for at in versions.all]
    for error in versions.unreadable:
        say(f"the document of a version cannot be read: {error}")
    aliases = aliases_by_number(registry)
    if as_json:
        found = [_summary(document, aliases.get(document.number, [])) for document in documents]
        typer.echo(json.dumps({"model": name, "versions": found, "unreadable": [e.key for e in versions.unreadable]}))
        return
    if not documents:
        say(f"{name} has no version in storage. Push one with: headpond models push {name} PATH")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("version", justify="right")
    table.add_column("state")
    table.add_column("size", justify="right")
    table.add_column("files", justify="right")
    for title in ("when", "who", "aliases", "note"):
        table.add_column(title, overflow="fold")
    for document in documents:
        table.add_row(
            str(document.number),
            Text(document.state.value, style=_STYLES.get(document.state, "dim")),
            shown_size(document.size_bytes),
            str(document.files),
            _when(document.created_ms),
            Text(escape_controls(document.writer)),
            Text(", ".join(aliases.get(document.number, []))),
            Text(escape_controls(document.reason or document.note)),
        )
    table_console().print(table)


def show_version(
    version: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="chat@3 or chat@prod; chat is chat@prod.")],
    config: Config = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show one version: its files, its digest, what it was pushed with, and how much of it its parent has too.

    Examples:

      headpond models show chat@3

      headpond models show chat@prod --json | jq -r .digest
    """
    model, wanted = split_version(version)
    registry = registry_of(model, config)
    document = registry.complete(number_of(registry, wanted or PROD))
    manifest = registry.manifest_of(document)
    parent = _parent(registry, document)
    common = None if parent is None else shared(manifest, parent)
    names = aliases_by_number(registry).get(document.number, [])
    if as_json:
        typer.echo(json.dumps(_details(document, manifest, names, common)))
    else:
        _show(document, manifest, names, common)


def diff_versions(
    name: Name,
    old: Annotated[str, typer.Argument(metavar="V1", help="A number or an alias.")],
    new: Annotated[str, typer.Argument(metavar="V2", help="A number or an alias.")],
    config: Config = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show what changed from one version to another: files, bytes that differ, and parameters.

    Examples:

      headpond models diff chat 3 4

      headpond models diff chat prod 5 --json | jq '.files[].path'
    """
    registry = registry_of(name, config)
    numbers = number_of(registry, old), number_of(registry, new)
    manifests = [registry.manifest_of(registry.complete(number)) for number in numbers]
    found = compare(*manifests)
    if as_json:
        typer.echo(json.dumps(_comparison(name, numbers, found)))
    else:
        _show_comparison(name, numbers, found)


def aliases_by_number(registry: Registry) -> dict[int, list[str]]:
    """Names of aliases by the version that they name; one on trial is followed by its share."""
    found: dict[int, list[str]] = {}
    for alias in Aliases(registry).all():
        if alias.to:
            found.setdefault(alias.to, []).append(alias.alias)
        if alias.trial is not None:
            found.setdefault(alias.trial.version, []).append(f"{alias.alias} ({alias.trial.share_permille / 10:g} %)")
    return found


def number_of(registry: Registry, version: str) -> int:
    """The number that a number or an alias stands for. Raises VersionMissing, InvalidRequest."""
    if VERSION_NUMBER.fullmatch(version):
        return int(version)
    return Aliases(registry).resolve(version).number


def _parent(registry: Registry, document: VersionDocument) -> Manifest | None:
    """None if there is none, or it is there no more."""
    if not document.parent:
        return None
    try:
        return registry.manifest_of(registry.read(document.parent).document)
    except (BlobMissing, VersionMissing):
        return None


def _when(created_ms: int) -> str:
    return datetime.fromtimestamp(created_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _summary(document: VersionDocument, aliases: list[str]) -> dict[str, object]:
    return {
        "version": f"{document.model}@{document.number}",
        "number": document.number,
        "state": document.state.value,
        "reason": document.reason,
        "digest": document.model_digest,
        "size_bytes": document.size_bytes,
        "files": document.files,
        "engine": document.engine,
        "parent": document.parent,
        "note": document.note,
        "writer": document.writer,
        "changed_ms": document.created_ms,
        "aliases": aliases,
    }


def _details(
    document: VersionDocument, manifest: Manifest, aliases: list[str], common: Shared | None
) -> dict[str, object]:
    return _summary(document, aliases) | {
        "pushed_by": manifest.writer,
        "pushed_ms": manifest.created_ms,
        "file_list": [
            {"path": file.path, "size": file.size, "sha256": file.sha256.hex(), "chunks": len(file.chunks)}
            for file in manifest.files
        ],
        "parameters": dict(manifest.parameters),
        "adapters": [{"name": adapter.name, "digest": adapter.digest} for adapter in manifest.adapters],
        "chunks": len(manifest.chunks),
        "objects": len(manifest.objects),
        "chunk_bytes": shared(manifest, None).bytes,
        "shared_with_parent_bytes": None if common is None else common.shared_bytes,
    }


def _show(document: VersionDocument, manifest: Manifest, aliases: list[str], common: Shared | None) -> None:
    lines = {
        "version": f"{document.model}@{document.number}",
        "aliases": ", ".join(aliases) or "-",
        "digest": document.model_digest,
        "pushed": f"{_when(manifest.created_ms)} by {manifest.writer}",
        "note": document.note or "-",
        "engine": document.engine or "-",
        "size": f"{shown_size(document.size_bytes)} in {document.files} files",
        "chunks": f"{len(manifest.chunks)} in {len(manifest.objects)} objects",
        "parent": str(document.parent or "-"),
    }
    if common is not None:
        share = 100 * common.shared_bytes / common.bytes if common.bytes else 100.0
        lines["parent"] += f", which has {shown_size(common.shared_bytes)} ({share:.1f} %) of it too"
    grid = Table.grid(padding=(0, 2))
    for key, value in lines.items():
        grid.add_row(key, Text(escape_controls(value)))
    for key, value in manifest.parameters.items():
        grid.add_row("parameter", Text(escape_controls(f"{key} = {value}")))
    for adapter in manifest.adapters:
        grid.add_row("adapter", Text(escape_controls(f"{adapter.name} {adapter.digest}")))
    files = Table("file", box=None, pad_edge=False)
    files.add_column("size", justify="right")
    files.add_column("chunks", justify="right")
    files.add_column("sha256", overflow="fold")
    for file in manifest.files:
        files.add_row(Text(escape_controls(file.path)), shown_size(file.size), str(len(file.chunks)), file.sha256.hex())
    console = table_console()
    console.print(grid)
    console.print()
    console.print(files)


def _comparison(name: str, numbers: tuple[int, int], found: Comparison) -> dict[str, object]:
    return {
        "old": f"{name}@{numbers[0]}",
        "new": f"{name}@{numbers[1]}",
        "files": [
            {
                "path": change.path,
                "change": change.kind,
                "old_bytes": change.old_bytes,
                "new_bytes": change.new_bytes,
                "differing_bytes": change.differing_bytes,
            }
            for change in found.files
        ],
        "parameters": [{"key": p.key, "old": p.old, "new": p.new} for p in found.parameters],
        "new_bytes": found.new.bytes - found.new.shared_bytes,
        "shared_bytes": found.new.shared_bytes,
    }


def _show_comparison(name: str, numbers: tuple[int, int], found: Comparison) -> None:
    console = table_console()
    if found.files:
        files = Table("file", "change", box=None, pad_edge=False)
        for title in ("size before", "size after", "bytes that differ"):
            files.add_column(title, justify="right")
        for change in found.files:
            before, after = ("-" if size is None else shown_size(size) for size in (change.old_bytes, change.new_bytes))
            differs = shown_size(change.differing_bytes)
            files.add_row(Text(escape_controls(change.path)), change.kind, before, after, differs)
        console.print(files)
        console.print()
    if found.parameters:
        parameters = Table("parameter", box=None, pad_edge=False)
        for number in numbers:
            parameters.add_column(f"{name}@{number}", overflow="fold")
        for each in found.parameters:
            said = ("-" if value is None else Text(escape_controls(value)) for value in (each.old, each.new))
            parameters.add_row(Text(escape_controls(each.key)), *said)
        console.print(parameters)
        console.print()
    if not found.files and not found.parameters:
        console.print("They have the same files and parameters.")
    else:
        new = found.new.bytes - found.new.shared_bytes
        console.print(f"{name}@{numbers[1]} has {shown_size(new)} that {name}@{numbers[0]} has not.")
