"""From a model's settings to a loaded engine. The engine's own package is imported only here, only if needed."""

from __future__ import annotations

from headpond.errors import EngineUnavailable
from headpond.settings import LlamaCppModel, ScriptedModel
from headpond_workers.engines.protocol import Engine


def load_engine(settings: ScriptedModel | LlamaCppModel, *, workers_on_host: int) -> Engine:
    """Load a model and return its engine, warm.

    workers_on_host: worker processes that share this machine's cores.
    Raises EngineUnavailable, ModelFileError, ConfigError.
    """
    if isinstance(settings, ScriptedModel):
        from headpond_workers.engines.scripted import ScriptedEngine

        return ScriptedEngine(settings)
    from headpond_workers.engines.llamacpp import LlamaCppEngine, default_threads
    from headpond_workers.models.prepare import prepared

    path = settings.path if settings.source is None else prepared(settings.source)
    if path is None:
        raise EngineUnavailable(
            f"The model {settings.source} is not prepared on this machine. Prepare it with: "
            f"headpond models prepare {settings.source}"
        )
    return LlamaCppEngine(settings, path, threads=settings.threads or default_threads(workers_on_host))
