"""What a step is predicted to keep in memory, beside what it kept."""

import pytest
from small import home  # noqa: F401

import peftlab as pl
from peftlab import memory

BY_DATA = "s-mam gate-lora gate-adapter gate-bias gate-norm s3delta".split()  # what they save is known when they chose


@pytest.mark.parametrize("method", pl.METHODS)
def test_prediction_and_measurement_agree(method, home):
    spec = pl.spec(method, task="reviews", backbone="nano-encoder", steps=1, size=64)
    said, peak = pl.footprint(spec), {}
    model, task, _ = pl.trained(spec, peak)
    counts, found = pl.counts(model), memory.parts_of(peak)
    chosen = memory.predict(model, memory.first_batch(task, model, 32)) if method in BY_DATA else said
    assert chosen["saved"] == pytest.approx(peak["saved_bytes"], rel=0.001)
    assert [said[part] for part in ("weights", "gradients", "optimizer")] == list(found.values())[:3]
    head = 0 if method == "warp" else counts["head"]  # its verbalizers take the head's place
    assert said["gradients"] == 4 * (counts["delta"] + head)
    assert said["total"] == sum(said[k] for k in ("weights", "gradients", "optimizer", "saved"))


def test_a_run_measures_what_its_first_step_does(home):
    spec = pl.spec("lt-sft", task="reviews", backbone="nano-encoder", steps=3, size=64, before=2)
    (row,), run = memory.held([spec]), pl.run(spec)
    assert {p: row[p] for p in memory.measured(run)} == {p: b / 1e6 for p, b in memory.measured(run).items()}
    assert row["looking"] == run.peak["looking_bytes"] / 1e6 > 0 and row["title"] == "LT-SFT"


def test_the_table_has_both_sides_of_every_part(home):
    table = memory.compared([pl.spec(m, task="topic", backbone="nano-encoder", steps=1) for m in ("lora", "full")])
    assert list(table.index) == ["LoRA", "full fine-tuning"] and table.shape == (2, 8)
    both = table.swaplevel(axis=1)
    assert both["predicted"].to_numpy() == pytest.approx(both["measured"].to_numpy(), rel=2e-3)


@pytest.mark.parametrize("backbone, task", [("nano-decoder", "describe"), ("nano-seq2seq", "translate")])
def test_other_families_too(backbone, task, home):
    spec = pl.spec("lora", task=task, backbone=backbone, steps=1, size=64)
    assert pl.footprint(spec)["saved"] == memory.first_step(spec)["saved_bytes"]


def test_in_half_precision_too(home):
    spec = pl.spec("lora", task="reviews", backbone="nano-encoder", steps=1, size=64, precision="bf16")
    assert pl.footprint(spec)["saved"] == pytest.approx(memory.first_step(spec)["saved_bytes"], rel=0.01)


def test_smaller_parts_and_lower_precision_take_less():
    kept = lambda **how: pl.footprint(pl.spec("full", backbone="nano-encoder", task="reviews", **how))["saved"]
    assert 0.4 < kept(accumulate=2) / kept() < 0.6
    assert kept(precision="bf16") < 0.8 * kept()
    assert pl.footprint(pl.spec("lora", backbone="nano-encoder"))["saved"] < 0.8 * kept()


def test_what_does_not_fit_is_refused_in_a_sentence(monkeypatch):
    assert memory.free() > 2**20
    parts = dict(weights=2**30, gradients=0, optimizer=0, saved=3 * 2**30, total=4 * 2**30)
    monkeypatch.setattr(memory, "free", lambda device="cpu": 2**31)
    with pytest.raises(pl.PeftlabError, match="needs about 4.0 GiB and 2.0 GiB are free on cpu; take a smaller batch"):
        memory.require(parts)
    memory.require(parts | dict(total=2**31))
