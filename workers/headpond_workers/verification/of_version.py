"""The version that made a result, where one did: whether storage still has it with the same files."""

from __future__ import annotations

from headpond.errors import HeadpondError
from headpond.jobs import Result
from headpond.provenance import Provenance
from headpond.settings import Settings
from headpond.tables.version_source import VERSION_NUMBER
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.resolving import open_storage
from headpond_workers.checkpoints.version_document import VersionState
from headpond_workers.verification.verdicts import Check, Verdict, compare, unknown

NAME = "version"
WRITER = "headpond verify"


def version_check(made_by: Provenance, result: Result, settings: Settings, table_name: str) -> Check | None:
    """None where no version made the result. table_name: of the model's table, whose source names the model in storage.

    What storage does not say is a check that cannot be told.
    """
    if made_by.model_digest is None or not VERSION_NUMBER.fullmatch(result.version):
        return None
    source = settings.model(table_name).version_source
    try:
        registry = Registry(open_storage(settings), result.model if source is None else source.name, writer=WRITER)
        document = registry.read(int(result.version)).document
    except HeadpondError as error:
        return unknown(NAME, str(error), stored=made_by.model_digest)
    found = compare(NAME, made_by.model_digest, document.model_digest)
    if found.verdict is Verdict.SAME and document.state is not VersionState.COMPLETE:
        return Check(NAME, Verdict.SAME, found.stored, found.found, f"the version is {document.state.value} by now")
    return found
