"""The gate: what it makes, keeps and repeats, and that every check can fail."""

import json

import pandas as pd
import pytest
from benches import TINY, fake, home, tiny  # noqa: F401 (fixtures)
from scipy.stats import t

from peftlab.world import embedded, report, sweep, verify
from peftlab.world.__main__ import main


def gate(tmp_path, **changes):
    """The gate on the tiny bench: whether it passed, and all that it said."""
    said = []
    passed = verify.verify(path=tmp_path / "bench.jsonl", seeds=(0, 1), say=said.append, **TINY | changes)
    return passed, "\n".join(said)


def test_real_runs_repeat_in_two_processes(tiny, tmp_path):
    """Nothing is faked: made one after the other, then a sample again in two processes."""
    passed, said = gate(tmp_path)
    assert not passed and "rates come from the sweep: 0 of 2 rates" in said and "reviews  accuracy  50.0" in said
    lines = [json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and all(set(line) == set(verify.KEPT) for line in lines)
    _, said = gate(tmp_path, quick=True, jobs=2)
    assert said.count("0.00 points from the record") == 2 and "pass  runs repeat: 0.00 points" in said
    assert "versions" in lines[0] and lines[0]["sha256"] == sweep.weights(tiny)


def test_the_gate_takes_the_rates_of_the_sweep_and_makes_again_what_they_change(tiny, tmp_path, monkeypatch):
    made = fake(monkeypatch)
    gate(tmp_path)
    assert len(made) == 4
    sweep.sweep(say=len, **TINY)  # both arms get 1e-3; full has another default, as has LoRA
    passed, said = gate(tmp_path)
    assert passed and len(made) == 4 + 8 + 4 and "2 of 2 rates" in said
    assert len(sweep.read(tmp_path / "bench.jsonl")) == 4  # the runs with the former rates are gone
    gate(tmp_path)
    assert len(made) == 16


def test_quick_refuses_a_stale_bench_and_names_the_command(tiny, tmp_path, monkeypatch):
    fake(monkeypatch)
    sweep.sweep(say=len, **TINY)
    assert gate(tmp_path)[0] and gate(tmp_path, quick=True)[0]
    with monkeypatch.context() as other:
        other.setattr(embedded, "version", lambda task: -1)
        passed, said = gate(tmp_path, quick=True)
        assert not passed and "lacks 4 of the runs" in said and f"run `{verify.COMMAND}`" in said
    assert not gate(tmp_path, quick=True, steps=3)[0]
    (tmp_path / "bench.jsonl").unlink()
    assert not gate(tmp_path, quick=True)[0]


def test_quick_sees_a_changed_score(tiny, tmp_path, monkeypatch):
    fake(monkeypatch)
    sweep.sweep(say=len, **TINY)
    gate(tmp_path)
    fake(monkeypatch, lambda one: 0.5 + verify.TOLERANCE / 100 + 0.001)
    passed, said = gate(tmp_path, quick=True)
    assert not passed and "FAIL  runs repeat: 2.10 points" in said


def test_the_sample_fits_into_its_time(tiny, monkeypatch):
    fake(monkeypatch)
    wanted = verify.bench(seeds=(0, 1), **TINY)
    records = {r["key"]: r for r in sweep.outcomes(wanted.values())}
    assert {one.arm for one in verify.sample(records, wanted)} == {"full", "lora"}
    monkeypatch.setattr(verify, "QUICK", 3)
    assert [one.arm for one in verify.sample(records, wanted)] == ["full"]


def test_the_time_is_measured_alone_and_again_when_it_was_too_long(tiny, tmp_path, monkeypatch):
    made = fake(monkeypatch)
    for limit, runs in ((2, 4 + 3), (2, 7), (0.5, 7 + 3)):
        monkeypatch.setattr(verify, "LIMITS", {tiny: limit})
        gate(tmp_path)
        assert len(made) == runs
    assert [r.get("alone") for r in sweep.read(tmp_path / "bench.jsonl").values()].count(1.0) == 1


def test_the_interval_is_students():
    mean, half = report.interval([1.0, 2.0, 4.0, 5.0])
    low, high = t.interval(0.95, 3, 3.0, (10 / 3 / 4) ** 0.5)
    assert mean == 3 and mean - half == pytest.approx(low) and mean + half == pytest.approx(high)
    assert report.interval([1.0]) == (1.0, float("inf"))


# every check: a picture that is true, and one change to it that is not

SCORES = dict(full=90, scratch=65, head=70, lora=89, adapter=89.5, bitfit=85, prompt=78)
MORE = {"nano-encoder": dict(prompt=74), "mini-encoder": dict(prompt=86)}


def picture(**changes):
    """Runs with these mean scores, a little apart between seeds; changes: arm_of_backbone=points, or a column."""
    rows = []
    for backbone, part in sweep.BENCH.items():
        for task in part.tasks:
            metric = "bleu" if task in ("translate", "describe") else "accuracy"
            for arm in part.arms:
                points = (SCORES | MORE.get(backbone, {}))[arm]
                points = changes.get(f"{arm} {backbone}", points)
                for seed in verify.SEEDS:
                    score = (points + 0.1 * seed) / (1 if metric == "bleu" else 100)
                    rows.append(dict(backbone=backbone, task=task, method=arm, seed=seed, lr=1e-3, score=score))
                    rows[-1] |= dict(metric=metric, chance=0.5, percent=1.5, alone=3.0, key=str(len(rows)))
    given = {k: v for k, v in changes.items() if " " not in k}
    return report.frame({r["key"]: r | given for r in rows}, [r["key"] for r in rows])


BROKEN = {
    "headroom over scratch": {"scratch micro-encoder": 81},
    "headroom over the head": {"head micro-encoder": 81},
    "nothing is solved": {"full micro-encoder": 99},
    "nothing is at chance": {"full micro-encoder": 55},
    "LoRA is enough": {"lora micro-encoder": 87},
    "adapters are enough": dict(percent=2.1),
    "prompts lag on nano": {"prompt nano-encoder": 88},
    "prompts lag on micro": {"prompt micro-encoder": 88},
    "prompts gain with size": {"prompt mini-encoder": 77},
    "BitFit is in between": {"bitfit micro-encoder": 69},
    "translation is learnt": {"full micro-seq2seq": 59},
    "translation needs pretraining": {"scratch micro-seq2seq": 81},
    "description is learnt": {"full micro-decoder": 49},
    "description needs pretraining": {"scratch micro-decoder": 81},
    "micro is fast": dict(alone=10.1),
    "nano is fast": dict(alone=float("nan")),  # never measured
    "rates come from the sweep": dict(lr=2e-3),
}


def check(name, runs):
    (one,) = [c for c in verify.GATE if c.name == name]
    return one.measure(runs, *one.backbones, **one.limits)


@pytest.mark.parametrize("name", [c.name for c in verify.GATE])
def test_every_check_passes_a_true_picture_and_fails_a_false_one(name, monkeypatch):
    monkeypatch.setattr(verify, "winner", lambda backbone, arm: 1e-3)
    passed, figure, sentence = check(name, picture())
    assert passed, figure
    assert figure and sentence
    assert not check(name, picture(**BROKEN[name]))[0]


def test_a_gap_that_the_seeds_do_not_show_is_none():
    runs = picture()
    wild = runs.method.eq("prompt") & runs.seed.eq(0)
    assert not check("prompts lag on micro", runs.assign(points=runs.points.where(~wild, runs.points + 40)))[0]


def test_where_nothing_is_learnt_nobody_is_behind():
    runs = picture()
    lost = runs.backbone.eq("nano-encoder") & runs.task.eq("reviews")
    passed, figure, _ = check("prompts gain with size", runs.assign(score=runs.score.where(~lost, 0.5)))
    assert passed and "reviews" in figure.split(";")[0] and "reviews" not in figure.split(";")[1]
    assert not check(
        "prompts gain with size", runs.assign(score=runs.score.where(runs.backbone != "nano-encoder", 0.5))
    )[0]


def test_the_table_has_a_line_for_each_task():
    lines = report.aligned(report.table(picture()[lambda r: r.backbone == "micro-seq2seq"])).splitlines()
    assert lines[0].split() == ["task", "metric", "constant", "full", "scratch"]
    assert lines[1].split() == "translate bleu 0.5 90.2 ± 0.2 65.2 ± 0.2".split() and len(lines) == 2
    assert isinstance(picture(), pd.DataFrame)


def test_the_page_shows_tables_and_gate_from_the_file(tiny, tmp_path, monkeypatch):
    path = tmp_path / "bench.jsonl"
    assert "lacks 10 of the runs" in verify.page(path)[0]
    fake(monkeypatch)
    verify.verify(path=path, say=len)
    page = verify.page(path)
    assert "| task | metric | constant | full | lora |" in page
    assert "| reviews | accuracy | 50.0 | 50.0 ± 0.0 | 50.0 ± 0.0 |" in page
    assert page[-1].startswith("| rates come from the sweep | FAIL | 0 of 2 rates |")


@pytest.mark.slow
def test_the_recorded_bench_repeats_and_passes_its_gate(capsys):
    failed = main(["verify", "--quick"])
    said = capsys.readouterr().out
    assert not failed and "FAIL" not in said and "pass  runs repeat" in said, said
