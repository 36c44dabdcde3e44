import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from small import home  # noqa: F401

from peftlab import ledger

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_what_is_appended_is_found(home, tmp_path):
    path = tmp_path / "l.jsonl"
    for i in range(3):
        ledger.append(dict(hash=f"h{i % 2}", score=i, text='ä\n"quoted"'), path)
    assert [r["score"] for r in ledger.records(path)] == [0, 1, 2]
    assert ledger.find("h0", path)["score"] == 2  # the newest counts
    assert ledger.find("h7", path) is None and ledger.find("h0") is None
    assert [json.loads(raw)["text"] for raw in path.read_text().splitlines()] == ['ä\n"quoted"'] * 3  # plain JSON lines


def test_no_prefix_of_a_line_is_ever_read(tmp_path):
    path, whole = tmp_path / "l.jsonl", ledger.line(dict(hash="a", score=0.5, nested=dict(b=[1, 2])))
    for n in range(len(whole) - 1):
        assert ledger.parse(whole[:n]) is None
    assert ledger.parse(whole[:-1])["score"] == 0.5
    assert ledger.parse(whole[:-1].replace(b"0.5", b"0.9")) is None  # nor one that was changed
    for n in (1, 10, len(whole) - 2):
        path.write_bytes(ledger.line(dict(hash="first")) + whole[:n])  # killed in the middle of the second
        assert [r["hash"] for r in ledger.records(path)] == ["first"]
        ledger.append(dict(hash="third"), path)
        assert [r["hash"] for r in ledger.records(path)] == ["first", "third"]


def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "l.jsonl"
    ledger.append(dict(hash="kept"), path)
    before, write = path.read_bytes(), os.write
    part = lambda handle, raw: write(handle, raw[:9]) if b"lost" in raw else write(handle, raw)
    monkeypatch.setattr(os, "write", part)  # room for nine bytes
    with pytest.raises(OSError) as told:
        ledger.append(dict(hash="lost"), path)
    assert told.value.errno == errno.ENOSPC and path.read_bytes() == before
    monkeypatch.setattr(os, "write", write)
    ledger.append(dict(hash="next"), path)
    assert [r["hash"] for r in ledger.records(path)] == ["kept", "next"]


WRITER = """
import sys
from peftlab import ledger
for i in range(int(sys.argv[2])):
    ledger.append(dict(hash=f"{sys.argv[3]}-{i}", rows=[i] * 500), sys.argv[1])
"""


def write(path, n, name):
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(n), name], cwd=ROOT)


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    path = tmp_path / "l.jsonl"
    writers = [write(path, 20, name) for name in "abc"]
    assert [w.wait(120) for w in writers] == [0, 0, 0]
    found = ledger.records(path)
    assert {r["hash"] for r in found} == {f"{name}-{i}" for name in "abc" for i in range(20)} and len(found) == 60


def test_a_killed_writer_leaves_only_whole_lines(tmp_path):
    path = tmp_path / "l.jsonl"
    writer = write(path, 10**6, "k")
    while not path.exists() or path.stat().st_size < 20_000:
        assert writer.poll() is None
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    writer.wait(60)
    found = [r["hash"] for r in ledger.records(path)]
    assert found == [f"k-{i}" for i in range(len(found))] and len(found) > 3
    ledger.append(dict(hash="after"), path)  # its lock died with it
    assert [r["hash"] for r in ledger.records(path)] == [*found, "after"]


def test_digest_and_fingerprint(tmp_path):
    assert ledger.digest(dict(a=1, b=[2])) == ledger.digest(dict(b=[2], a=1)) != ledger.digest(dict(a=1, b=[3]))
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "w").write_text("same")
    assert ledger.fingerprint(one) == ledger.fingerprint(two)  # the content counts, not the place or time
    (two / "w").write_text("changed")
    assert ledger.fingerprint(one) != ledger.fingerprint(two)


def test_a_packed_ledger_reads_as_before(tmp_path):
    path, records = tmp_path / "runs.jsonl", [dict(hash=f"h{i}", rows=[i] * 9) for i in range(30)]
    for r in records:
        ledger.append(r, path)
    size = path.stat().st_size
    ledger.pack(path, records)
    first = ledger.packed(path).read_bytes()
    assert not path.exists() and len(first) < size / 4
    strip = lambda found: [{k: v for k, v in r.items() if k != "crc"} for r in found]
    assert strip(ledger.records(path)) == records and ledger.find("h7", path)["rows"] == [7] * 9
    ledger.append(dict(hash="new"), path)  # what is added lies beside it until it is packed again
    assert [r["hash"] for r in ledger.records(path)][-1] == "new" and len(ledger.records(path)) == 31
    ledger.pack(path, records)
    assert ledger.packed(path).read_bytes() == first and len(ledger.records(path)) == 30
