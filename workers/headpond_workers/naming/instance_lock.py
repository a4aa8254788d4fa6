"""The lock of an instance name, for processes that tell of it as of any other mistake of a configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from headpond.errors import ConfigError
from headpond_workers.naming.instance_file import InstanceRefused, held_instance


@contextmanager
def instance_lock(state_folder: Path, instance: str) -> Iterator[None]:
    """`held_instance`. Raises ConfigError if another process of this deployment has the name, or if it is none."""
    with ExitStack() as stack:
        try:
            stack.enter_context(held_instance(state_folder, instance))
        except InstanceRefused as error:
            raise ConfigError(str(error), where=error.where) from None
        yield
