"""Where a file is cut into chunks, so that two versions share what they have in common. docs/checkpoint-format.md.

Weights are cut at the bounds of their tensors, from the file's own header: a header that grew moves no other chunk.
Any other file is cut by its content.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pyfastcdc import FastCDC

from headpond.errors import ModelFileError
from headpond_workers.checkpoints.manifest import MAX_CHUNK_BYTES
from headpond_workers.engines.formats.gguf_header import read_header, tensor_extents
from headpond_workers.engines.formats.safetensors_header import read_safetensors_header

UNCUT_BYTES = 256 << 10
"""A smaller file that is no weights is one chunk."""
MIN_CONTENT_BYTES, AVERAGE_CONTENT_BYTES, MAX_CONTENT_BYTES = 256 << 10, 1 << 20, 4 << 20
"""Of chunks that are cut by content."""
_BY_CONTENT = FastCDC(AVERAGE_CONTENT_BYTES, min_size=MIN_CONTENT_BYTES, max_size=MAX_CONTENT_BYTES)


def known_cuts(path: Path, size: int) -> list[int] | None:
    """Sizes of the chunks of a file, in order; None if its content has to be read to tell: `content_cuts`.

    size: of the file in bytes. Raises ModelFileError for weights whose header is refused.
    """
    match path.suffix.lower():
        case ".safetensors":
            header = read_safetensors_header(path)
            start = header.data_start
            return _settled(
                path, size, header.size_bytes, ((start + t.begin, start + t.end) for t in header.tensors.values())
            )
        case ".gguf":
            gguf = read_header(path)
            return _settled(path, size, gguf.size_bytes, tensor_extents(gguf))
        case _ if size <= UNCUT_BYTES:
            return _pieces(size)
        case _:
            return None


def cuts_between(extents: Iterable[tuple[int, int]], size: int) -> list[int]:
    """Sizes of the chunks of a file of `size` bytes with tensors at `extents` (first byte, byte after the last).

    What lies before, between and after the tensors is cut off for itself. Raises ValueError if two overlap, or one
    ends outside.
    """
    sizes: list[int] = []
    at = 0
    for begin, end in sorted((begin, end) for begin, end in extents if begin != end):
        if not at <= begin < end <= size:
            raise ValueError(f"a tensor at the bytes {begin} to {end}, after byte {at} of {size}")
        sizes += _pieces(begin - at)
        sizes += _pieces(end - begin)
        at = end
    return sizes + _pieces(size - at)


def content_cuts(content: memoryview, *, last: bool) -> list[int]:
    """Sizes of the chunks at the start of `content`, which begins at a cut; what is left of it begins the next call's.

    last: nothing follows; then all of it is cut. However a file is handed over, it is cut alike.
    """
    sizes: list[int] = []
    left = len(content)
    for chunk in _BY_CONTENT.cut_buf(content):
        # A cut depends on no byte further than the largest chunk.
        if not last and left < MAX_CONTENT_BYTES:
            break
        sizes.append(chunk.length)
        left -= chunk.length
    return sizes


def _settled(path: Path, size: int, found: int, extents: Iterable[tuple[int, int]]) -> list[int]:
    if size != found:
        raise ModelFileError(f"{path} changed while it was read. Push it again when nothing writes to it.")
    try:
        return cuts_between(extents, size)
    except ValueError as error:
        raise ModelFileError(f"{path} cannot be cut by its tensors: {error}. Fetch it again.") from error


def _pieces(size: int) -> list[int]:
    whole, rest = divmod(size, MAX_CHUNK_BYTES)
    return [MAX_CHUNK_BYTES] * whole + ([rest] if rest else [])
