"""The sweep: which runs it makes and keeps, and the rate that it chooses."""

import json

import pytest
from benches import TINY, fake, home, tiny  # noqa: F401 (fixtures)

from peftlab.errors import PeftlabError
from peftlab.methods import get
from peftlab.world import embedded, sweep, verify


def test_the_sweep_makes_each_run_once_and_chooses_the_best_rate(tiny, tmp_path, monkeypatch):
    best = dict(full=1e-3, lora=1e-2)
    made = fake(monkeypatch, lambda one: 0.9 if one.spec["lr"] == best[one.arm] else 0.6)
    said = []
    sweep.sweep(say=said.append, **TINY)
    assert len(made) == 2 * 2 * len(sweep.SEEDS) and {one.spec["seed"] for one in made} == set(sweep.SEEDS)
    assert {m: sweep.rate(tiny, m) for m in best} == best
    assert "0.001*: 0.9000  0.01: 0.6000" in said[-2]
    sweep.sweep(say=said.append, **TINY)
    assert len(made) == 8
    first = json.loads((tmp_path / "sweep.jsonl").read_text().splitlines()[0])
    assert set(first) == set(sweep.FIELDS) and "score" not in first  # validation only


def test_of_equal_rates_the_lower_is_taken(tiny, monkeypatch):
    fake(monkeypatch)
    sweep.sweep(say=len, **TINY)
    assert sweep.rate(tiny, "full") == 1e-3


def test_a_sweep_cut_short_chooses_nothing(tiny, monkeypatch):
    fake(monkeypatch)
    every = sweep.grid(**TINY)
    for some in (1, len(every) // 2, len(every) - 1):
        sweep.fill(sweep.file(), dict(list(every.items())[:some]), sweep.FIELDS, say=len)
        assert sweep.winner(tiny, "lora") is None
        assert sweep.rate(tiny, "lora") == get("lora").lr


def test_a_rate_falls_back_on_the_first_backbone(tiny, monkeypatch):
    fake(monkeypatch, lambda one: one.spec["lr"])
    sweep.sweep(say=len, **TINY)
    monkeypatch.setattr(sweep, "FIRST", tiny)
    assert sweep.rate("nano-encoder", "lora") == 1e-2


def test_a_sweep_of_other_weights_or_another_world_is_not_used(tiny, monkeypatch):
    fake(monkeypatch)
    sweep.sweep(say=len, **TINY)
    monkeypatch.setattr(embedded, "version", lambda task: -1)
    assert sweep.winner(tiny, "full") is None
    monkeypatch.undo()
    weights = sweep.pathlib.Path(tiny) / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    assert not any(map(sweep.current, sweep.read(weights.parent.parent / "sweep.jsonl").values()))


def test_a_run_that_diverges_earns_nothing(tiny, monkeypatch):
    def diverges(spec, key, each=None, stop=None):
        raise sweep.NotFinite("the loss is not finite")

    monkeypatch.setattr(sweep.runs, "execute", diverges)
    record = sweep.outcome(next(iter(sweep.grid(**TINY).values())))
    assert record["diverged"] and record["score"] == record["validation"] == 0


def test_an_interrupted_sweep_keeps_what_had_ended(tiny, tmp_path, monkeypatch):
    made = []

    def interrupted(spec, key, each=None, stop=None):
        made.append(key)
        result = sweep.runs.Result(spec, key, spec["task"], "accuracy", score=0.5, validation=0.5)
        result.stopped = len(made) > 2
        return result, {}

    monkeypatch.setattr(sweep.runs, "execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep.fill(tmp_path / "sweep.jsonl", sweep.grid(**TINY), sweep.FIELDS, say=lambda words: None)
    assert set(sweep.read(tmp_path / "sweep.jsonl")) == set(made[:2]) and len(made) == 3, "the rest does not begin"


def test_files_keep_the_runs_of_other_backbones(tiny, tmp_path):
    wanted, path = sweep.grid(**TINY), tmp_path / "runs.jsonl"
    one, two = list(wanted)[:2]
    line = dict(task="reviews", method="full", seed=0, lr=0.1)
    others = [line | dict(key="a", backbone="other"), line | dict(key="b", backbone=tiny)]
    sweep.keep(path, [*others, line | dict(key=one, backbone=tiny)])
    assert set(sweep.keep(path, [line | dict(key=two, backbone=tiny)], wanted)) == {"a", one, two}
    assert set(sweep.read(path)) == {"a", one, two} and not list(tmp_path.glob("*.new"))


def test_an_unknown_backbone_or_method_is_told_the_nearest():
    with pytest.raises(PeftlabError, match="nearest .*micro-encoder"):
        sweep.sweep(["micro-encodr"])
    with pytest.raises(PeftlabError, match="nearest .*micro-encoder"):
        verify.verify(["micro-encodr"])
    with pytest.raises(PeftlabError, match="nearest is lora"):
        sweep.rate("micro-encoder", "lorra")


def test_the_tables_name_what_exists():
    assert len(sweep.JUDGED) == 10 and set(sweep.SWEPT) <= set(sweep.JUDGED)
    for part in sweep.BENCH.values():
        assert set(part.arms) <= set(sweep.ARMS) and set(part.tasks) <= set(sweep.KINDS)
    for arm in sweep.ARMS.values():
        assert list(arm.rates) == sorted(set(arm.rates)) and get(arm.changes["recipe"])


@pytest.mark.parametrize("arm", [arm for arm in sweep.ARMS if arm != "scratch"])
def test_a_methods_default_rate_is_the_sweeps_choice(arm):
    """Due whenever micro-encoder, the tasks of the sweep or a default changes."""
    found = sweep.winner(sweep.FIRST, arm)
    assert found, f"the sweep of {arm} on {sweep.FIRST} is missing or of other data; run `{sweep.COMMAND}`"
    assert get(arm).lr == found, f"{arm}: the sweep chose lr={found:g}; write that into its decorator"
