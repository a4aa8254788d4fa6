"""From a model's settings to a loaded engine. The engine's own package is imported only here, only if needed."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory

from headpond.engine_kinds import EngineTable
from headpond.errors import EngineUnavailable
from headpond.settings import Settings
from headpond.tables import (
    ExLlamaV2Model,
    ExLlamaV3Model,
    LlamaCppModel,
    ModelTable,
    OpenAIModel,
    ScriptedModel,
    secrets_of,
)
from headpond_workers.engines.protocol import DeviceUse, Engine, RelayEngine
from headpond_workers.models.prepare import digest_cache, prepared


class Digests(Enum):
    """Where the digest of a weight file comes from that is as large and as old as when it was last read."""

    REMEMBERED = "remembered"
    ANEW = "anew"
    """From its bytes: what changed without a trace in its times is seen."""


def workers_of(settings: Settings) -> int:
    """Worker processes that this configuration puts on the machine, at least 1."""
    return max(1, sum(model.workers for model in settings.models.values()))


def load_any(settings: ModelTable, *, workers_on_host: int, slot_folder: Path | None = None) -> Engine | RelayEngine:
    """As `load_engine`, and the proxy of a model that another server runs."""
    if not isinstance(settings, OpenAIModel):
        return load_engine(settings, workers_on_host=workers_on_host, slot_folder=slot_folder)
    try:
        from headpond_workers.engines.openai.engine import OpenAIEngine
    except ImportError as error:
        raise EngineUnavailable(
            f"A proxy needs the package openai ({error}). Install it with: pip install 'headpond[proxy]'"
        ) from error
    return OpenAIEngine(settings)


def load_engine(
    settings: ModelTable,
    *,
    workers_on_host: int,
    digests: Digests = Digests.REMEMBERED,
    slot_folder: Path | None = None,
) -> Engine:
    """Load a model and return its engine, warm.

    workers_on_host: worker processes that share this machine's cores. digests: of weights; an engine of a package of
    its own reads them as it does. slot_folder: of this process alone, for what an engine puts into files on the way of
    keys and values to a file and back; None: llama.cpp then has no capability for that.
    Raises EngineUnavailable, ModelFileError, ConfigError.
    """
    if digests is Digests.ANEW:
        with TemporaryDirectory(prefix="headpond-digests-") as empty:
            return _load(settings, workers_on_host, digests, remembered=Path(empty), slot_folder=slot_folder)
    return _load(settings, workers_on_host, digests, remembered=digest_cache(), slot_folder=slot_folder)


def _load(
    settings: ModelTable, workers_on_host: int, digests: Digests, *, remembered: Path, slot_folder: Path | None
) -> Engine:
    """remembered: the folder of digests that are known."""
    match settings:
        case ScriptedModel():
            from headpond_workers.engines.scripted import ScriptedEngine

            return ScriptedEngine(settings)
        case LlamaCppModel():
            return _llamacpp(settings, workers_on_host, digests, slot_folder)
        case ExLlamaV2Model():
            from headpond_workers.engines.exllamav2.engine import ExLlamaV2Engine

            return ExLlamaV2Engine(settings, digest_cache=remembered)
        case ExLlamaV3Model():
            from headpond_workers.engines.exllamav3 import ExLlamaV3Engine

            return ExLlamaV3Engine(settings, digest_cache=remembered)
        case OpenAIModel():
            raise EngineUnavailable(
                "This model runs in another server, so there are no tokens to go through here. To ask it again, use: "
                "headpond dead retry"
            )
        case EngineTable():
            engine: Engine = settings.load_engine(workers_on_host=workers_on_host)
            return engine
        case _:
            raise EngineUnavailable(f"Nothing here loads the engine '{settings.engine}'.")


def device_use_of(engine: object) -> DeviceUse:
    """What a DeviceEngine says; nothing of any other engine."""
    ask = getattr(engine, "device_use", None)
    use: DeviceUse = DeviceUse() if ask is None else ask()
    return use


def renew_secrets_of(engine: object, settings: ModelTable, *, where: str) -> None:
    """Have a SecretEngine take its secrets anew; any other engine has none. where: the table, for errors.

    Raises ConfigError if a secret file cannot be read; the engine keeps what it has then.
    """
    renew = getattr(engine, "renew_secrets", None)
    if renew is None:
        return
    for secret in secrets_of(settings):
        if secret.file is not None:
            secret.resolve(where=where)
    renew()


def _llamacpp(settings: LlamaCppModel, workers_on_host: int, digests: Digests, slot_folder: Path | None) -> Engine:
    from headpond_workers.engines.formats.weights_digest import digest_of, sha256_of
    from headpond_workers.engines.llamacpp.embedding import LlamaCppEmbedder
    from headpond_workers.engines.llamacpp.engine import LlamaCppEngine
    from headpond_workers.engines.llamacpp.model import default_threads
    from headpond_workers.engines.llamacpp.prefixes import LlamaCppPrefixEngine

    if settings.source is None or settings.version_source is not None:
        path: Path | None = settings.local_path
    else:
        path = prepared(settings.source)
    if path is None:
        raise EngineUnavailable(
            f"The model {settings.source} is not prepared on this machine. Prepare it with: "
            f"headpond models prepare {settings.source}"
        )
    threads = settings.threads or default_threads(workers_on_host)
    digest = sha256_of if digests is Digests.ANEW else digest_of
    if settings.task == "embed":
        return LlamaCppEmbedder(settings, path, threads=threads, digest_of=digest)
    if slot_folder is None or settings.exact:
        return LlamaCppEngine(settings, path, threads=threads, digest_of=digest)
    return LlamaCppPrefixEngine(settings, path, slot_folder=slot_folder, threads=threads, digest_of=digest)
