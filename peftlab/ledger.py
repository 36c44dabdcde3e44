"""The ledger: finished runs, one JSON object a line, appended whole or not at all, found again by their hash.

A ledger that travels may be packed: `records("runs.jsonl")` reads `runs.jsonl.gz` too.
"""

import contextlib
import functools
import gzip
import hashlib
import json
import os
import pathlib
import zlib

from .paths import data, home

CLOSING = ', "crc": "%08x"}'


def own():
    """The user's ledger."""
    return home() / "results.jsonl"


def shipped():
    """The read-only ledgers that travel with the package."""
    found = (p for end in ("", ".gz") for p in (data() / "results").glob(f"*.jsonl{end}"))
    return sorted({p.with_name(p.name.removesuffix(".gz")) for p in found})


def digest(value):
    """16 hex digits of a JSON-able value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:16]


def line(record):
    """One line of bytes: the record with a checksum as its last key, so that no torn line can pass for a whole one."""
    body = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))[:-1].encode()
    return body + (CLOSING % zlib.crc32(body)).encode() + b"\n"


def parse(raw):
    """The record of a line, or None when the line is torn, changed or not of a ledger."""
    size = len(CLOSING % 0)
    body, closing = raw[:-size], raw[-size:]
    if closing != (CLOSING % zlib.crc32(body)).encode():
        return None
    return json.loads(body + b"}")


def append(record, path=None):
    """Add one record: under a lock, in a single write, synced. On an OSError (disk full) the file is as it was."""
    import filelock

    path = pathlib.Path(path or own())
    raw = line(record)
    with filelock.FileLock(f"{path}.lock", timeout=60):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
        try:
            before = os.lseek(handle, 0, os.SEEK_END)
            if before and last_byte(handle, before) != b"\n":
                raw = b"\n" + raw  # the previous writer was killed: leave its torn line, start a fresh one
            try:
                if os.write(handle, raw) != len(raw):
                    raise OSError(28, "no space left on the disk")
                os.fsync(handle)
            except OSError:
                with contextlib.suppress(OSError):  # the first error is the one to tell; readers ignore a torn rest
                    os.ftruncate(handle, before)
                raise
        finally:
            os.close(handle)


def last_byte(handle, size):
    os.lseek(handle, size - 1, os.SEEK_SET)
    return os.read(handle, 1)


def records(*paths):
    """All whole records of these ledgers, oldest first (default: the shipped ones, then the user's own)."""
    found = []
    for path in paths or (*shipped(), own()):
        for there in filter(pathlib.Path.exists, (packed(path), pathlib.Path(path))):
            stat = there.stat()
            found += load(there, stat.st_size, stat.st_mtime_ns)
    return found


def packed(path):
    """Where a ledger is when it is packed."""
    return pathlib.Path(f"{path}.gz")


def pack(path, records):
    """Leave these records, and no others, packed in a ledger; equal records give equal bytes."""
    packed(path).write_bytes(gzip.compress(b"".join(map(line, records)), mtime=0))
    pathlib.Path(path).unlink(missing_ok=True)


@functools.lru_cache(maxsize=64)
def load(path, size, changed):
    """`size` and `changed` are the key of the cache: a file that grew is read again."""
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    return tuple(r for r in map(parse, raw.split(b"\n")) if r is not None)


def find(key, *paths):
    """The newest record whose "hash" is `key`, or None."""
    return next((r for r in reversed(records(*paths)) if r.get("hash") == key), None)


def fingerprint(path):
    """A digest of a file's or folder's content, so that a result of changed data or weights is not found again."""
    path = pathlib.Path(path).expanduser()
    parts = [p for p in sorted(path.rglob("*")) if p.is_file()] if path.is_dir() else [path] if path.exists() else []
    return digest(
        [[p.name, content(p, p.stat().st_size, p.stat().st_mtime_ns)] for p in parts if not p.name.startswith(".")]
    )


@functools.lru_cache(maxsize=4096)
def content(path, size, changed):
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
