"""One reader of one stream, which has read all that it was ever given, also what a server forgot since."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from headpond.jobs import JobState
from headpond.wire import Ended, Rewound, unpack_event, unpack_tokens


@dataclass(slots=True)
class StreamReader:
    """tokens: what it holds to be true. end: the last entry, once there was one. last: id of the last entry."""

    serial: int
    tokens: list[int] = field(default_factory=list)
    end: JobState | None = None
    last: str = ""
    lagging: bool = False
    """The server went back since: what it reads next must be `rewound`, or the end after one."""

    def read(self, entries: Iterable[tuple[str, str, bytes]]) -> None:
        """Raises AssertionError where tokens are missing, come twice, or follow an end (invariants 3 to 5)."""
        for entry_id, field_name, payload in entries:
            gen, _, place = entry_id.partition("-")
            assert self.end is None, f"{entry_id} follows the end of its stream"
            assert not self.last or _key(self.last) < _key(entry_id), f"{entry_id} is not above {self.last}"
            if field_name == "t":
                assert not self.lagging, f"{entry_id}: tokens after a server went back, without rewound"
                run = unpack_tokens(payload)
                assert run.offset == len(self.tokens), f"{entry_id}: tokens at {run.offset}, not {len(self.tokens)}"
                self.tokens += run.ids
            else:
                event = unpack_event(payload)
                if isinstance(event, Rewound):
                    assert event.offset <= len(self.tokens), f"{entry_id}: rewound to {event.offset}, ahead of all"
                    self.tokens = self.tokens[: event.offset]
                    self.lagging = False
                else:
                    assert isinstance(event, Ended)
                    assert not self.lagging, f"{entry_id}: an end after a server went back, without rewound"
                    assert event.offset == len(self.tokens), f"{entry_id}: ended at {event.offset}"
                    self.end = event.state
            assert int(place) // 16 == len(self.tokens), f"{entry_id} does not stand at offset {len(self.tokens)}"
            assert int(gen) > 0
            self.last = entry_id


def _key(entry_id: str) -> tuple[int, int]:
    gen, _, place = entry_id.partition("-")
    return int(gen), int(place)
