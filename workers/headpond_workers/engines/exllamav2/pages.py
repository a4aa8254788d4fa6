"""Which pages of exllamav2's cache hold a prompt's first tokens, and which may take them.

exllamav2 finds a whole page by a hash over its ids and the hash of the page before, a partial one by its ids and the
hash of the page before. Pages move (defragmentation), so they are looked up anew in every call, which comes from the
generator's thread between two steps. A page that a running sequence references is never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

SHORTEST_PIECE_TOKENS = 2
"""exllamav2 does not use a partial page of fewer matching tokens."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a prompt in one page: its tokens begin to begin + tokens are the page's first ones.

    phash: of a whole page; None for a partial one. prev_hash: of the page before; None for the prompt's first.
    """

    page: Any
    begin: int
    tokens: int
    phash: bytes | None
    prev_hash: bytes | None

    @property
    def end(self) -> int:
        return self.begin + self.tokens


class PageTable:
    """The page table of one generator (ExLlamaV2DynamicGenerator)."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self._page_tokens: int = generator.page_size

    def held(self, ids: Any) -> list[Span]:
        """The pages that hold the longest beginning of ids, int64 on the host, shape (1, n); in order."""
        spans: list[Span] = []
        prev_hash = None
        for begin, phash in self.whole_pages(ids):
            page = self._whole(phash)
            if page is None:
                break
            spans.append(Span(page, begin, self._page_tokens, phash, prev_hash))
            prev_hash = phash
        begin = len(spans) * self._page_tokens
        page, tokens = self._best_piece(ids, begin, prev_hash)
        if page is not None:
            spans.append(Span(page, begin, tokens, None, prev_hash))
        return spans

    def place(self, ids: Any, write: Callable[[Span], None]) -> int:
        """Have the pages of ids, shape (1, n), all n of them known, on the device. Returns how many tokens are there.

        write(span) puts the keys and values of span's tokens into span.page. It is called for pages that are not
        held yet; if it raises, that page is left empty and those before it are complete.
        """
        spans, kept = self._plan(ids)
        for span in spans:
            if span.page.page_index not in kept:
                # Empty, and not to be found, until its content is there.
                span.page.clear()
                write(span)
                self._enter(span, ids)
            if not span.page.ref_count:
                self._generator.access_serial += 1
                span.page.access_serial = self._generator.access_serial
        return spans[-1].end if spans else 0

    def _plan(self, ids: Any) -> tuple[list[Span], set[int]]:
        """Spans for the leading pages of ids, and the indices of those pages that hold their content already."""
        referenced, unreferenced = self._generator.referenced_pages, self._generator.unreferenced_pages
        chain = list(self.whole_pages(ids))
        last_hash = chain[-1][1] if chain else None
        begin = len(chain) * self._page_tokens
        rest = ids.shape[1] - begin
        piece, piece_tokens = self._best_piece(ids, begin, last_hash)
        held_piece = piece if piece_tokens == rest else None

        kept: set[int] = set()
        used: set[int] = set()
        spare = self._spare([phash for _, phash in chain], held_piece)
        spans: list[Span] = []
        prev_hash = None
        for start, phash in chain:
            page = self._whole(phash)
            if page is not None and page.page_index not in used:
                kept.add(page.page_index)
            elif phash in referenced:
                # A running sequence is about to fill it.
                return spans, kept
            else:
                # Where prefill was cut off, an unfilled page has this hash: no other one may get it.
                page = unreferenced.get(phash)
                if page is None or page.page_index in used:
                    page = next((each for each in spare if each.page_index not in used), None)
                if page is None:
                    return spans, kept
            used.add(page.page_index)
            spans.append(Span(page, start, self._page_tokens, phash, prev_hash))
            prev_hash = phash
        if rest >= SHORTEST_PIECE_TOKENS:
            page = held_piece
            if page is not None and page.page_index not in used:
                kept.add(page.page_index)
            else:
                page = next((each for each in spare if each.page_index not in used), None)
            if page is not None:
                spans.append(Span(page, begin, rest, None, prev_hash))
        return spans, kept

    def _spare(self, hashes: list[bytes], piece: Any | None) -> Iterator[Any]:
        """Unreferenced pages in the order in which they may be taken.

        The least recently used first. Those that hold a part of this very prompt come last, and its end before its
        beginning: without its beginning the rest cannot be found.
        """
        unreferenced = self._generator.unreferenced_pages
        own = [unreferenced[phash] for phash in hashes if phash in unreferenced]
        if piece is not None and not piece.ref_count:
            own.append(piece)
        kept_back = {page.page_index for page in own}
        others = [page for page in unreferenced.values() if page.page_index not in kept_back]
        yield from sorted(others, key=lambda page: page.access_serial)
        yield from reversed(own)

    def _enter(self, span: Span, ids: Any) -> None:
        """Let a page be found by what it holds now. It is unreferenced, and cleared."""
        page = span.page
        page.sequence[:, : span.tokens].copy_(ids[:, span.begin : span.end])
        page.prev_hash = span.prev_hash
        page.kv_position = span.tokens
        if span.phash is not None:
            unreferenced = self._generator.unreferenced_pages
            del unreferenced[page.phash]
            page.phash = span.phash
            unreferenced[page.phash] = page

    def whole_pages(self, ids: Any) -> Iterator[tuple[int, bytes]]:
        """(first token, hash) of each whole page of ids."""
        from exllamav2.generator.dynamic import _tensor_hash_checksum

        prev_hash = None
        for begin in range(0, ids.shape[1] - self._page_tokens + 1, self._page_tokens):
            prev_hash = _tensor_hash_checksum(ids[:, begin : begin + self._page_tokens], prev_hash)
            yield begin, prev_hash

    def _whole(self, phash: bytes) -> Any | None:
        """The page of that hash, if it is filled: a page has its hash before its content."""
        page = self._generator.referenced_pages.get(phash) or self._generator.unreferenced_pages.get(phash)
        return page if page is not None and page.kv_position == self._page_tokens else None

    def _best_piece(self, ids: Any, begin: int, prev_hash: bytes | None) -> tuple[Any | None, int]:
        """The page that goes on for longest with ids from `begin`, and for how many tokens; (None, 0) for none."""
        best, best_tokens = None, SHORTEST_PIECE_TOKENS - 1
        for page in self._generator.all_pages:
            if page.prev_hash != prev_hash:
                continue
            tokens = _common(page.sequence[0, : page.kv_position], ids[0, begin : begin + self._page_tokens])
            if tokens > best_tokens:
                best, best_tokens = page, tokens
        return (best, best_tokens) if best is not None else (None, 0)


def _common(a: Any, b: Any) -> int:
    """How many leading ids two tensors, shapes (n,) and (m,), share."""
    compared = min(a.shape[0], b.shape[0])
    differing = (a[:compared] != b[:compared]).nonzero()
    return int(differing[0, 0]) if len(differing) else compared
