"""Bytes that were made to hurt whoever unpacks them. tests/fixtures/hostile has them as files:

python tests/hostile_bytes.py        # writes the files that are not there yet
"""

from __future__ import annotations

import struct
from pathlib import Path

FOLDER = Path(__file__).parent / "fixtures" / "hostile"
MANY = 20_000


def _claim(head: int, count: int) -> bytes:
    return bytes([head]) + struct.pack(">I", count)


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "never-used": b"\xc1",
    "deep-arrays": b"\x91" * MANY + b"\xc0",
    "deep-arrays-under-the-parser-s-own-bound": b"\x91" * 1000 + b"\xc0",
    "deep-maps": b"\x81\xa1k" * MANY + b"\xc0",
    "deep-arrays-32": _claim(0xDD, 1) * MANY + b"\xc0",
    "array-of-four-billion": _claim(0xDD, 0xFFFFFFFF),
    "map-of-four-billion": _claim(0xDF, 0xFFFFFFFF),
    "text-of-four-gigabytes": _claim(0xDB, 0xFFFFFFFF),
    "bytes-of-four-gigabytes": _claim(0xC6, 0xFFFFFFFF),
    "extension-of-four-gigabytes": _claim(0xC9, 0xFFFFFFFF) + b"\x05",
    "arrays-that-all-claim-the-rest": _claim(0xDD, MANY) * 1000 + bytes(MANY - 5000),
    "arrays-16-that-all-claim-the-rest": b"\xdc\x4e\x20" * 1000 + bytes(MANY - 3000),
    "many-empty-maps": _claim(0xDD, MANY) + b"\x80" * MANY,
    "many-empty-arrays": _claim(0xDD, MANY) + b"\x90" * MANY,
    "a-row-of-many-empty-maps": _claim(0xDD, MANY + 1) + b"\x01" + b"\x80" * MANY,
    "a-row-with-a-deep-field": b"\x99\x01" + (b"\x91" * 500 + b"\xc0") * 8,
    "a-map-with-one-key-twice": b"\x82\xa1v\x01\xa1v\x02",
    "a-map-whose-keys-are-arrays": b"\x81\x91\x01\x02",
    "a-map-whose-keys-are-maps": b"\x81\x80\x02",
    "text-that-is-not-utf-8": b"\x93\x01\xa2\xff\xfe\x01",
    "a-surrogate": b"\x91\xa3\xed\xa0\x80",
    "a-timestamp": b"\x92\x01\xd6\xff\x00\x00\x00\x01",
    "an-impossible-timestamp": b"\x92\x01\xd7\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    "not-a-number": b"\x92\x01\xcb\x7f\xf8\x00\x00\x00\x00\x00\x01",
    "the-largest-number": b"\x92\xcf" + b"\xff" * 8 + b"\x01",
    "deep-json": b"[" * MANY,
    "deep-json-objects": b'{"schema":' * MANY,
    "json-with-a-long-number": b'{"schema":"headpond/bundle","v":' + b"9" * MANY + b"}",
}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, data in HOSTILE.items():
        path = FOLDER / name
        if not path.exists():
            path.write_bytes(data)
            print(path)


if __name__ == "__main__":
    main()
