"""One worker process: binds one model, loads it, then serves its queue until it is told to leave.

    python -m headpond_workers.worker --config headpond.toml --model chat --instance chat-0

With `rollover = "side-by-side"` this becomes the parent of two such processes at most: see `headpond_workers.pair`.

SIGTERM drains: no job is claimed any more, running ones may end within drain_timeout_s, the rest are parked with
their tokens. SIGHUP reads the configuration again, for what needs no restart: settings of the queue, secret files.
Exit codes: 0 drained; 78 (EX_CONFIG) the configuration or the model cannot be loaded, another deployment means another
model by this name, or a worker of this instance name runs already: starting again would not help.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NoReturn

from headpond.errors import ConfigError, HeadpondError
from headpond.settings import Settings
from headpond_workers.naming.identity import identity_or_passing, named_identity
from headpond_workers.naming.instance_lock import instance_lock
from headpond_workers.naming.name_keeper import Started
from headpond_workers.redaction import Secrets
from headpond_workers.rollover.pair_line import PairLine
from headpond_workers.rollover.pair_program import changes_side_by_side, pair_argv
from headpond_workers.secret_filter import start_logging
from headpond_workers.supervised import SUPERVISED, settings_of_process
from headpond_workers.worker_process import EX_CONFIG, WorkerProcess, one_line

logger = logging.getLogger(__name__)

DEPLOYMENT = "HEADPOND_DEPLOYMENT"
"""The id of the deployment to which a worker belongs that something else starts: of all containers of one service."""


def leave(code: int) -> NoReturn:
    """Flush and end at once: an engine's library may hang in its destructors."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def become_pair(settings: Settings, model: str, instance: str) -> NoReturn:
    """Go on as the parent that starts such a worker: one that a supervisor of ours did not start as that already."""
    argv = pair_argv(settings, model, instance)
    logging.shutdown()
    os.execv(argv[0], argv)  # noqa: S606 - its purpose


def main(argv: list[str] | None = None) -> NoReturn:
    parser = argparse.ArgumentParser(prog="headpond-worker", description="Serve one model's queue in this process.")
    parser.add_argument("--config", type=Path, required=True, help="headpond.toml")
    parser.add_argument("--model", required=True, help="a table [models.NAME] of it")
    parser.add_argument("--instance", default=None, help="this worker's name, such as chat-0")
    options = parser.parse_args(argv)
    secrets = Secrets()
    start_logging(secrets)
    logging.getLogger("dramatiq").setLevel(logging.WARNING)
    try:
        read = partial(settings_of_process, options.config, os.environ, needed=[options.model])
        settings = read()
        instance = options.instance or f"{options.model}-{os.getpid()}"
        started = Started.BY_SUPERVISOR if SUPERVISED in os.environ else Started.BY_HAND
        named = os.environ.get(DEPLOYMENT) if started is Started.BY_HAND else None
        pair = PairLine.of(os.environ)
        if pair is None and changes_side_by_side(settings.model(options.model)):
            become_pair(settings, options.model, instance)
        # In a pair it is held by the parent, of whom there is one.
        with nullcontext() if pair is not None else instance_lock(settings.state_folder, instance):
            identity = named_identity(named) if named else identity_or_passing(settings.state_folder)
            code = WorkerProcess(
                settings,
                options.model,
                instance,
                identity=identity,
                started=started,
                secrets=secrets,
                read_again=read,
                pair=pair,
            ).run()
    except HeadpondError as error:
        logger.error("worker_failed error=%s", one_line(error))
        code = EX_CONFIG if isinstance(error, ConfigError) else 1
    except Exception:
        logger.exception("worker_crashed")
        code = 1
    leave(code)


if __name__ == "__main__":
    main()
