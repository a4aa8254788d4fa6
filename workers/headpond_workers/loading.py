"""From a model's settings to a loaded engine. The engine's own package is imported only here, only if needed."""

from __future__ import annotations

from headpond.engine_kinds import EngineTable
from headpond.errors import EngineUnavailable
from headpond.settings import Settings
from headpond.tables import ExLlamaV2Model, ExLlamaV3Model, LlamaCppModel, ModelTable, ScriptedModel
from headpond_workers.engines.protocol import Engine
from headpond_workers.models.prepare import digest_cache, prepared


def workers_of(settings: Settings) -> int:
    """Worker processes that this configuration puts on the machine, at least 1."""
    return max(1, sum(model.workers for model in settings.models.values()))


def load_engine(settings: ModelTable, *, workers_on_host: int) -> Engine:
    """Load a model and return its engine, warm.

    workers_on_host: worker processes that share this machine's cores.
    Raises EngineUnavailable, ModelFileError, ConfigError.
    """
    match settings:
        case ScriptedModel():
            from headpond_workers.engines.scripted import ScriptedEngine

            return ScriptedEngine(settings)
        case LlamaCppModel():
            return _llamacpp(settings, workers_on_host=workers_on_host)
        case ExLlamaV2Model():
            from headpond_workers.engines.exllamav2 import ExLlamaV2Engine

            return ExLlamaV2Engine(settings, digest_cache=digest_cache())
        case ExLlamaV3Model():
            from headpond_workers.engines.exllamav3 import ExLlamaV3Engine

            return ExLlamaV3Engine(settings, digest_cache=digest_cache())
        case EngineTable():
            engine: Engine = settings.load_engine(workers_on_host=workers_on_host)
            return engine
        case _:
            raise EngineUnavailable(f"Nothing here loads the engine '{settings.engine}'.")


def _llamacpp(settings: LlamaCppModel, *, workers_on_host: int) -> Engine:
    from headpond_workers.engines.llamacpp import LlamaCppEngine
    from headpond_workers.engines.llamacpp_embedding import LlamaCppEmbedder
    from headpond_workers.engines.llamacpp_model import default_threads

    path = settings.path if settings.source is None else prepared(settings.source)
    if path is None:
        raise EngineUnavailable(
            f"The model {settings.source} is not prepared on this machine. Prepare it with: "
            f"headpond models prepare {settings.source}"
        )
    kind = LlamaCppEmbedder if settings.task == "embed" else LlamaCppEngine
    return kind(settings, path, threads=settings.threads or default_threads(workers_on_host))
