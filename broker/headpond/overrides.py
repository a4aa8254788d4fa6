"""Settings that stand in no file: variables such as HEADPOND_MODELS__CHAT__SLOTS, and `--set chat.slots=8`. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headpond.layers import KeyPath, Saying, Text, variable_part
from headpond.nearby import nearest
from headpond.origins import Layer, Origin, Problem
from headpond.toml_places import dotted, parse_key

PREFIX = "HEADPOND_"
SEPARATOR = "__"
SECTIONS = ("defaults", "redis", "storage")
OF_MODELS = f"{PREFIX}MODELS{SEPARATOR}"
_EXAMPLE = "HEADPOND_DEFAULTS__SLOTS, HEADPOND_MODELS__CHAT__SLOTS or HEADPOND_REDIS__URL"


@dataclass(slots=True)
class Overrides:
    """sections: sayings on redis, storage and defaults. models: on each model. In the order in which they count."""

    sections: dict[str, list[Saying]] = field(default_factory=lambda: {name: [] for name in SECTIONS})
    models: dict[str, list[Saying]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, section: str, model: str, saying: Saying) -> None:
        """section: "models", with the model's name, or another one."""
        (self.models.setdefault(model, []) if section == "models" else self.sections[section]).append(saying)


def settings_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Those variables that set something: HEADPOND_ and two underscores somewhere."""
    return {name: value for name, value in environment.items() if is_settings_variable(name)}


def is_settings_variable(name: str) -> bool:
    return name.upper().startswith(PREFIX) and SEPARATOR in name


def prefix_of(model: str) -> str:
    """How variables of one model begin."""
    return f"{OF_MODELS}{variable_part(model)}{SEPARATOR}"


def from_environment(environment: Mapping[str, str], models: Collection[str], *, folder: Path) -> Overrides:
    """What variables say. folder: what relative paths in them are relative to."""
    found = Overrides()
    for name, value in sorted(settings_variables(environment).items()):
        section, separator, rest = name.removeprefix(PREFIX).partition(SEPARATOR)
        if name != name.upper():
            found.problems.append(Problem(name, f"is not in capitals; write {name.upper()}"))
        elif section == "MODELS" and separator:
            _add_of_model(found, name, value, models, folder)
        elif section.lower() in SECTIONS and separator:
            _add(found, section.lower(), "", name, rest, value, folder)
        else:
            near = nearest(section, ("MODELS", *map(str.upper, SECTIONS))) or "."
            found.problems.append(Problem(name, f"sets nothing{near} Settings are named like {_EXAMPLE}"))
    return found


def from_command_line(words: Iterable[str], models: Collection[str], *, folder: Path) -> Overrides:
    """What `--set KEY=VALUE` says, each word being one. Of two words on one key the last one counts."""
    found = Overrides()
    for word in words:
        try:
            path, text = _split(word)
            section, model, rest = _addressed(path, models)
        except ValueError as error:
            # The word's value is not repeated: it may be what is secret.
            found.problems.append(Problem("--set", str(error)))
            continue
        layer = Layer.COMMAND_LINE_OF_ALL if section == "defaults" else Layer.COMMAND_LINE
        origin = Origin(layer, name=dotted(path), folder=folder)
        found.add(section, model, Saying(rest, Text(text), origin))
    return found


def of_present(
    environment: Mapping[str, str], words: Iterable[str], models: Collection[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Variables and words without those for models that are gone: of what was noted while they were there."""

    def present(word: str) -> bool:
        try:
            _addressed(_split(word)[0], models)
        except ValueError:
            return False
        return True

    kept = {
        name: value
        for name, value in environment.items()
        if not name.startswith(OF_MODELS) or any(name.startswith(prefix_of(model)) for model in models)
    }
    return kept, tuple(filter(present, words))


def _add_of_model(found: Overrides, name: str, value: str, models: Collection[str], folder: Path) -> None:
    meant = [model for model in models if name.startswith(prefix_of(model))]
    if len(meant) == 1:
        _add(found, "models", meant[0], name, name.removeprefix(prefix_of(meant[0])), value, folder)
        return
    if meant:
        names = " and ".join(f"'{model}'" for model in sorted(meant))
        for model in meant:
            message = f"could mean the models {names}: set it in their tables, or rename one of them"
            found.problems.append(Problem(name, message, model))
        return
    asked = name.removeprefix(OF_MODELS).partition(SEPARATOR)[0].lower()
    known = {variable_part(model).lower(): model for model in models}
    message = f"is for a model that the configuration does not have{nearest(asked, known)}"
    found.problems.append(Problem(name, message, asked or "?"))


def _add(found: Overrides, section: str, model: str, name: str, rest: str, value: str, folder: Path) -> None:
    path = tuple(rest.split(SEPARATOR))
    if not all(path):
        found.problems.append(Problem(name, f"names no key. Settings are named like {_EXAMPLE}", model))
        return
    layer = Layer.ENVIRONMENT_OF_ALL if section == "defaults" else Layer.ENVIRONMENT
    found.add(section, model, Saying(path, Text(value), Origin(layer, name=name, folder=folder)))


def _split(word: str) -> tuple[KeyPath, str]:
    """Key and value, at the first '=' that no quotes hold. Raises ValueError."""
    at = word.find("=")
    while at >= 0:
        try:
            return parse_key(word[:at]), word[at + 1 :].strip()
        except ValueError:
            at = word.find("=", at + 1)
    raise ValueError("takes KEY=VALUE, such as --set chat.slots=8 or --set defaults.slots=2")


def _addressed(path: KeyPath, models: Collection[str]) -> tuple[str, str, KeyPath]:
    """Section, model and the key below it. Raises ValueError with the nearest name."""
    if path[0] in SECTIONS:
        section, model, rest = path[0], "", path[1:]
    else:
        below = path[1:] if path[0] == "models" else path
        # A name may hold dots, which separate keys too: the longest name is meant.
        depth = next((n for n in range(len(below), 0, -1) if ".".join(below[:n]) in models), 0)
        if not depth:
            asked = below[0] if below else "models"
            raise ValueError(f"'{asked}' is neither a model nor a table{nearest(asked, (*models, *SECTIONS))}")
        section, model, rest = "models", ".".join(below[:depth]), below[depth:]
    if not rest:
        raise ValueError(f"'{dotted(path)}' names no key of that table, such as {dotted((*path, 'slots'))}=8")
    return section, model, rest
