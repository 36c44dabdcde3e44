"""The benchmark runs, compares like with like, and autograd keeps no more for our LoRA than for HF PEFT's."""
import json

import pytest

from peftlab import bench

TINY = dict(layers=2, width=64, batch=2, tokens=16, r=4, repeats=2)


@pytest.fixture(scope="module")
def found():
    pytest.importorskip("peft")
    return bench.compare(**TINY)


def test_both_sides_train_the_same_thing(found):
    ours, theirs = found["peftlab"], found["peft"]
    assert ours["parameters"] == theirs["parameters"] == 2 * 2 * 2 * 64 * 4
    assert ours["first_loss"] == pytest.approx(theirs["first_loss"], abs=1e-5)
    assert ours["step_ms"] > 0 and theirs["step_ms"] > 0 and found["ratio"]["step_ms"] > 0


def test_no_more_is_kept_for_the_backward_pass(found):
    assert 0 < found["peftlab"]["saved_bytes"] <= found["peft"]["saved_bytes"]
    assert found["ratio"]["saved_bytes"] <= 1


def test_it_prints_a_table_or_json(found, capsys, monkeypatch):
    monkeypatch.setattr(bench, "compare", lambda **options: found)
    assert bench.main(["--repeats", "2"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[2:]] == ["peftlab", "peft", "ratio"]
    assert bench.main(["--json"]) == 0 and json.loads(capsys.readouterr().out) == found
