"""exllamav2's job, with its pages linked so that no prompt is given keys and values of another place in a text.

A page is found by the page before it, and a page without one before it counts as the first of a prompt. Upstream
leaves three kinds of later pages without:

- the page that a sequence generates into, where its prompt ends with a whole page that is in the cache already;
- a whole page that was lent to a job, was not written to, and comes back after another page took its hash;
- the page into which a draft model's guesses reached, where the sequence ended on the page before.

A prompt that begins with the ids of such a page would be given its keys and values, made at other positions and after
another text.
"""

from __future__ import annotations

from typing import Any


def linked_job_class() -> type[Any]:
    """A subclass of ExLlamaV2DynamicJob, to be used in its place."""
    from exllamav2.generator import ExLlamaV2DynamicJob
    from exllamav2.generator.dynamic import _tensor_hash_checksum

    class LinkedJob(ExLlamaV2DynamicJob):  # type: ignore[misc]  # its base has no type
        def allocate_pages(self) -> None:
            super().allocate_pages()
            for sequence in self.sequences:
                whole = len(sequence.page_hashes)
                if 0 < whole < len(sequence.allocated_pages):
                    sequence.allocated_pages[whole].prev_hash = sequence.page_hashes[-1]

        def deallocate_pages(self) -> None:
            pages = [
                # A page that may be reverted was not written to: it becomes again what it was before it was lent.
                (page, number, page.can_revert)
                for sequence in self.sequences
                for number, page in enumerate(sequence.allocated_pages or ())
            ]
            super().deallocate_pages()
            if not self.generator.paged:
                return
            for page, number, lent in pages:
                if not page.ref_count and page.kv_position and page.prev_hash is None:
                    misplaced = _lost_its_hash(page) if lent else number > 0
                    if misplaced:
                        page.clear()

    def _lost_its_hash(page: Any) -> bool:
        whole: bool = page.kv_position == page.sequence.shape[1]
        return whole and page.phash != _tensor_hash_checksum(page.sequence, None)

    return LinkedJob
