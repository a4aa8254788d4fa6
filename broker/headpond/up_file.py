"""What the `headpond up` of a running deployment was told: its `--set` options, and the settings of its environment.

`.headpond/up.json` keeps them, mode 0600, so that workers that start later, and `status` or `scale` in another shell,
see the configuration that was brought up. The next `up` replaces it, `down` removes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headpond.errors import ConfigError
from headpond.errors.documents import decoding_reason

UP_FILE = "up.json"
SCHEMA = "headpond/up"
VERSION = 1
MAX_BYTES = 16 << 20
"""An environment has no more than 2 MiB."""


@dataclass(frozen=True, slots=True)
class Told:
    """environment: variables that set something, by name. command_line: what followed each `--set`."""

    environment: Mapping[str, str] = field(default_factory=dict)
    command_line: tuple[str, ...] = ()

    def document(self) -> str:
        """The text of the file."""
        document = {
            "schema": SCHEMA, "v": VERSION, "set": list(self.command_line),
            "environment": dict(sorted(self.environment.items())),
        }  # fmt: skip
        return json.dumps(document, indent=1) + "\n"


def read_told(state_folder: Path) -> Told | None:
    """What was told; None if nothing was brought up. Raises ConfigError if the file is damaged."""
    path = state_folder / UP_FILE
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        found = json.loads(raw.decode("utf-8"))
        if found["schema"] != SCHEMA or found["v"] != VERSION:
            raise ValueError("it is of another version")
        words, variables = found["set"], found["environment"]
        texts = [*words, *variables.keys(), *variables.values()]
        if not (isinstance(words, list) and all(isinstance(text, str) for text in texts)):
            raise ValueError("it holds something else than texts")
        return Told(variables, tuple(words))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}. Check who owns it", where=str(path)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"cannot be used ({decoding_reason(error)}). Call headpond up again, with the --set options that it is to "
            "have",
            where=str(path),
        ) from error
