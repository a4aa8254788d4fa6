"""Logs without secrets: the last thing that happens to a line, whatever it was made of."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import traceback
from types import TracebackType

from headpond.errors import ConfigError
from headpond.tables import secrets_of
from headpond_workers.redaction import Secrets

LINE_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"

logger = logging.getLogger(__name__)


class SecretFilter(logging.Formatter):
    """Formats by another formatter, then masks what `secrets` knows: in the message, its arguments, extra fields, the
    traceback and the stack. What is masked, and which short parts are not, see `Secrets`.
    """

    def __init__(self, inner: logging.Formatter, secrets: Secrets) -> None:
        super().__init__()
        self._inner = inner
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        try:
            line = self._inner.format(record)
        except Exception:  # noqa: BLE001 - logging would print the arguments to stderr, unmasked
            line = (
                f"ERROR {record.name} log_line_failed message={record.msg!r} args={record.args!r}\n"
                f"{traceback.format_exc()}"
            )
        finally:
            # The inner formatter keeps the traceback here for the next handler: it is formatted anew instead.
            record.exc_text = None
        return self._secrets.redact(line)


def start_logging(secrets: Secrets, *, level: int = logging.INFO) -> None:
    """Log to stderr without secrets. For the composition root of a process, before anything else is logged.

    Also exceptions that end a thread or the process go this way, which Python would print as they are.
    """
    logging.basicConfig(level=level, stream=sys.stderr, format=LINE_FORMAT)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(SecretFilter(handler.formatter or logging.Formatter(LINE_FORMAT), secrets))
    threading.excepthook = _log_end_of_thread
    sys.excepthook = _log_end_of_process


def learn_references(secrets: Secrets, *tables: object) -> None:
    """Mask the secrets that these tables refer to, whoever reads them later."""
    for reference in secrets_of(tables):
        # Whoever needs a secret that cannot be read says so, with its place.
        with contextlib.suppress(ConfigError):
            reference.resolve(where="", learn=secrets.learn)


def _log_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
        name = ended.thread.name if ended.thread is not None else ""
        logger.error("thread_died thread=%s", name, exc_info=ended.exc_value)


def _log_end_of_process(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logger.critical("process_died", exc_info=(kind, error, trace))
