"""What the sides of `peers` are asked: a seeded mix of short and long prompts, for short and long answers. No I/O."""

from __future__ import annotations

import random
from dataclasses import dataclass

from throughput import SUBJECTS

NOTES = (
    "The bridge was closed for two days in March, and the ferry took the carts across.",
    "Most of the flour came from the mill at the upper weir, which had three pairs of stones.",
    "A letter of that year says that the harvest was poor but the apples were plenty.",
    "The clock in the market square has been slow since the winter of the great frost.",
    "Travellers paid a small toll at the north gate, and nothing at the south gate.",
    "The school had one room, forty children and a stove that smoked when the wind was east.",
    "Nobody remembers who planted the limes along the road to the station.",
    "The river froze as far as the second lock, and people skated there by lamplight.",
    "Its copper roof turned green within ten years, which surprised everyone but the plumber.",
    "Wool was sold by the stone, cloth by the ell, and both prices rose after the fair.",
    "The lighthouse keeper wrote down the weather four times a day for thirty years.",
    "Bees were kept behind the orchard wall, where the sun stayed longest in autumn.",
)
CONTEXT_TOKENS = 512
"""Of each slot; the longest prompt and the longest answer fit into it together."""


@dataclass(frozen=True, slots=True)
class Ask:
    prompt: str
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Mix:
    """words: of the notes in each of eight prompts, before the question. tokens: of each of eight answers, at most."""

    words: tuple[int, ...] = (0, 15, 30, 45, 60, 80, 110, 150)
    tokens: tuple[int, ...] = (24, 32, 40, 44, 52, 56, 64, 72)

    @property
    def text(self) -> str:
        return (
            f"prompts with {min(self.words)} to {max(self.words)} words of notes before a question, answers of at most "
            f"{min(self.tokens)} to {max(self.tokens)} tokens, drawn anew for each pair (seeded; the same for all "
            "sides); temperature 0"
        )


MIX = Mix()
LONG_ANSWERS = Mix(words=(0, 15, 30, 45, 15, 30, 45, 60), tokens=(64, 68, 72, 76, 80, 84, 88, 96))
"""For a kill: every job of a run still runs when it comes."""
QUICK = Mix(words=(0, 0, 15, 15, 30, 30, 45, 45), tokens=(6, 8, 8, 10, 10, 12, 12, 12))


def draw_asks(mix: Mix, draw: random.Random, *, jobs: int, name: str) -> list[Ask]:
    """jobs: at most eight. name: stands at the beginning of each prompt, so that no cache holds it from another run."""
    words, tokens = draw.sample(mix.words, jobs), draw.sample(mix.tokens, jobs)
    subjects = draw.sample(SUBJECTS, jobs)
    return [
        Ask(f"{name}-{n}. {_notes(draw, words[n])}Write a long and detailed essay about {subjects[n]}.", tokens[n])
        for n in range(jobs)
    ]


def _notes(draw: random.Random, words: int) -> str:
    """At least so many words of notes, ending with a whole one."""
    chosen: list[str] = []
    while sum(len(note.split()) for note in chosen) < words:
        chosen.append(draw.choice(NOTES))
    return f"Some notes: {' '.join(chosen)} " if chosen else ""
