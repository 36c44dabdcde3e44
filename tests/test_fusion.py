"""Adapters that build on other tasks, and the runs that train these tasks first."""

import copy
import subprocess
import sys

import pytest
import tiny
import torch
from small import backbone, home, sentences, write  # noqa: F401

import peftlab as pl
from peftlab import PeftlabError, sources
from peftlab.methods import fusion
from peftlab.methods.multitask import alternate
from peftlab.runs import execute, laid_out, run
from peftlab.specs import identify, spec

PARTS = ("D", "c", "U", "e")


def states(n, d=32, r=8, seed=0):
    """Trained adapters as a run keeps them, here drawn at random."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=g) * d**-0.5
    return [dict(D=draw(r, d), c=draw(r), U=draw(d, r), e=draw(d)) for _ in range(n)]


def permuted(state, seed=0):
    """The same function with its neurons in another order."""
    order = torch.randperm(len(state["D"]), generator=torch.Generator().manual_seed(seed))
    return dict(D=state["D"][order], c=state["c"][order], U=state["U"][:, order], e=state["e"])


# --- the mechanisms -----------------------------------------------------------------------------------------------


def made(name, **settings):
    method = pl.METHODS[name]
    torch.manual_seed(0)
    d = method.cls(torch.nn.Linear(32, 32), **method.defaults | settings)
    d.joined()
    return d


def test_fusion_weighs_its_adapters_and_leaves_them_alone():
    d, kept = made("adapter-fusion", sources="a b c"), states(3)
    d.take(kept)
    y = torch.randn(2, 5, 32)
    mixed = d(None, y) - y
    assert d.heard.shape == (2, 5, 3) and torch.allclose(d.heard.sum(-1), torch.ones(2, 5))
    alone = []
    for s in kept:
        one = pl.METHODS["adapter"].cls(torch.nn.Linear(32, 32), 8)
        one.load_state_dict(s)
        alone.append(one(None, y) - y)
    expected = sum(d.heard[..., [i]] * z for i, z in enumerate(alone))  # V is the identity at the start
    assert torch.allclose(mixed, expected, atol=1e-5)
    assert {n for n, p in d.named_parameters() if p.requires_grad} == {"Q", "K", "V"}
    assert all(torch.equal(getattr(d, n)[i], s[n]) for n in PARTS for i, s in enumerate(kept))
    assert all(p.requires_grad for p in made("adapter-fusion").parameters()), "without sources all is trained"


def test_fusion_listens_to_the_adapter_that_solves_the_task():
    d, kept = made("adapter-fusion", sources="a b c", pull=0.01), states(3)
    d.take(kept)
    solver = pl.METHODS["adapter"].cls(torch.nn.Linear(32, 32), 8)
    solver.load_state_dict(kept[1])
    opt, g = torch.optim.AdamW([p for p in d.parameters() if p.requires_grad], 1e-2), torch.Generator().manual_seed(1)
    for _ in range(150):
        y = torch.randn(64, 32, generator=g)
        loss = (d(None, y) - solver(None, y).detach()).square().mean() + d.penalty()
        loss.backward(), opt.step(), opt.zero_grad()
    d(None, torch.randn(500, 32, generator=g))
    heard = d.heard.mean(0)
    assert heard.argmax() == 1 and heard[1] > 0.6


def test_the_penalty_of_fusion_is_the_distance_of_V_from_the_identity():
    d = made("adapter-fusion", pull=0.1)
    assert d.penalty() == 0
    with torch.no_grad():
        d.V.add_(0.5)
    assert d.penalty().item() == pytest.approx(0.1 * 0.25 * 32**2)


def test_mera_of_an_adapter_and_its_permuted_copy_is_the_adapter():
    (state,) = states(1)
    others = [permuted(state, seed) for seed in (1, 2)]
    d = made("mera", sources="a b c")
    d.take([state, *others])
    assert all(torch.allclose(getattr(d, n), state[n], atol=1e-6) for n in PARTS)
    y, one = torch.randn(4, 32), pl.METHODS["adapter"].cls(torch.nn.Linear(32, 32), 8)
    one.load_state_dict(state)
    assert torch.allclose(d(None, y), one(None, y), atol=1e-5)
    one.load_state_dict({n: torch.stack([s[n] for s in (state, *others)]).mean(0) for n in PARTS})
    assert not torch.allclose(d(None, y), one(None, y), atol=1e-2), "without transport the mean is another function"


def test_the_transport_of_mera_keeps_the_function():
    a, b = states(2)
    moved = fusion.transported(b, a)
    y = torch.randn(6, 32)
    out = lambda s: torch.relu(y @ s["D"].T + s["c"]) @ s["U"].T + s["e"]
    assert torch.allclose(out(moved), out(b), atol=1e-5)
    distance = lambda s: (s["D"] - a["D"]).norm() ** 2 + (s["c"] - a["c"]).norm() ** 2 + (s["U"] - a["U"]).norm() ** 2
    assert all(distance(moved) <= distance(permuted(b, seed)) for seed in range(50)), "no order is nearer"


def test_hyperformer_makes_an_adapter_for_each_task_from_one_network():
    m = tiny.model()
    undo = pl.attach(m, "hyperformer")
    tiny.train(m, 3)
    first, *others = undo.deltas
    assert len(list(first.parameters())) == 7 and not any(list(d.parameters()) for d in others)
    y = torch.randn(2, 32)

    def at(task, d=first):
        d.task = task
        return d(None, y).detach() - y

    assert not torch.allclose(at(0), at(1), atol=1e-4), "another task"
    assert not torch.allclose(at(0), at(0, others[0]), atol=1e-4), "another position"
    assert len({(d.l, d.p) for d in undo.deltas}) == len(undo.deltas), "every place has its own embeddings"
    before = at(1)
    for d in undo.deltas:
        d.task = 0
    shared = [p for n, p in first.named_parameters() if n != "Z"]
    m(**tiny.batch(m)).loss.backward()
    assert first.Z.grad[0].any() and not first.Z.grad[1].any(), "the loss of task 0 does not touch the embedding of 1"
    with torch.no_grad():
        for p in shared:
            p -= 0.1 * p.grad
    assert not torch.allclose(at(1), before, atol=1e-5), "but the network that both share"


def test_hyperformer_alternates_and_copies():
    m = tiny.model("t5")
    rows = [dict(layers=[0, 1]), dict(layers=[2], settings=dict(r=4))]
    undo = pl.attach(m, [dict(method="hyperformer", **row) for row in rows])
    assert sum(bool(list(d.parameters())) for d in undo.deltas) == 2, "one network for each bottleneck"
    batches = alternate(undo.deltas, iter(lambda: tiny.batch(m), None), iter(lambda: tiny.batch(m, 2), None))
    list(pl.fit(m, batches, undo.deltas, lr=1e-2, steps=8))
    assert {d.task for d in undo.deltas} == {1}
    twin, y = copy.deepcopy(m), tiny.logits(m)
    assert torch.equal(tiny.logits(twin), y)
    for d in twin.modules():
        if hasattr(d, "settings"):
            d.task = 0
    assert not torch.equal(tiny.logits(twin), y) and torch.equal(tiny.logits(m), y)


# --- runs that train the sources first ----------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, home):  # noqa: F811
    """A tiny backbone, a target and two sources, on disk."""
    flipped = [r | dict(label=1 - r["label"]) for r in sentences(60, seed=2)]
    tasks = [write(tmp_path / f"{n}.tsv", rows) for n, rows in dict(a=sentences(60, seed=1), b=flipped).items()]
    target = write(tmp_path / "t.tsv", sentences(80))
    return dict(backbone=backbone(tmp_path / "tiny"), task=target, sources=" ".join(tasks), steps=4, batch=8, every=2)


def finds(home):  # noqa: F811
    return {p: p.stat().st_mtime_ns for p in (home / "deltas").glob("*")}


@pytest.mark.parametrize("name", [n for n, m in pl.METHODS.items() if hasattr(m.cls, "builds_on")])
def test_a_run_trains_its_sources_once_and_hands_them_over(name, place, home):  # noqa: F811
    wanted = spec(name, **place)
    (first, second) = sources.source_specs(wanted)[0]
    assert first["recipe"][0]["method"] == second["recipe"][0]["method"] == pl.METHODS[name].cls.builds_on
    assert (first["task"], second["task"]) == tuple(place["sources"].split()) and first["steps"] == 4
    result = run(wanted)
    assert result.score is not None and len(kept := finds(home)) == 2
    again, _ = execute(wanted, identify(wanted))
    assert finds(home) == kept, "the second time they are found"
    assert [r["loss"] for r in again.rows] == [r["loss"] for r in result.rows]
    alone = spec(name, **place | dict(sources=""))
    assert run(alone).rows[0]["loss"] != result.rows[0]["loss"] or name == "mera"
    assert identify(alone) != identify(wanted)


def test_the_fused_delta_holds_exactly_what_its_sources_learned(place, home, tmp_path):  # noqa: F811
    wanted = spec("adapter-fusion", **place)
    one, other = (sources.trained(s) for s in sources.source_specs(wanted)[0])
    assert any(not torch.equal(one[n], other[n]) for n in one) and all(one[n].any() for n in one)
    with laid_out(wanted) as (model, task, undo, accelerator):
        for i, d in enumerate(undo.deltas):
            for n in PARTS:
                assert torch.equal(getattr(d, n), torch.stack([one[f"{i}.{n}"], other[f"{i}.{n}"]]))
        batch = {k: v[:4] for k, v in next(task.batches(model.tokenizer, "train", 8, seed=0)).items()}
        list(pl.fit(model, iter(lambda: batch, None), undo.deltas, steps=3))
        assert torch.equal(undo.deltas[0].D[0], one["0.D"]), "training leaves them as they are"
        y = model(**batch).logits
        pl.save(model, undo, tmp_path / "kept")
        undo()
        again = pl.load(model, tmp_path / "kept")
        assert torch.equal(model(**batch).logits, y)
        assert pl.counts(model)["delta"] == len(again.deltas) * 3 * 32**2, "the sources' adapters are not trained"
        again()


def test_rows_of_a_hybrid_find_their_own_sources(place, home):  # noqa: F811
    a, b = place["sources"].split()
    rows = [
        dict(method="lora", settings=dict(r=2)),
        dict(method="mera", where="down", layers=[1], settings=dict(sources=a)),
        dict(method="adapter-fusion", settings=dict(r=4, sources=f"{b} {a}")),
    ]
    wanted = spec(rows, **{k: v for k, v in place.items() if k != "sources"})
    specs = sources.source_specs(wanted)
    assert [len(specs[i]) for i in (1, 2)] == [1, 2] and 0 not in specs
    row = specs[1][0]["recipe"][0]
    assert (row["method"], row["where"], row["layers"]) == ("adapter", "down", [1])
    assert specs[2][0]["recipe"][0]["settings"]["r"] == 4
    with laid_out(wanted) as (_, _, undo, _):
        mera = next(d for d in undo.deltas if d.row == 1)
        assert torch.equal(mera.D, sources.trained(specs[1][0])["0.D"])
        fused = [d for d in undo.deltas if d.row == 2]
        assert torch.equal(fused[-1].U[1], sources.trained(specs[2][1])[f"{len(fused) - 1}.U"])


def test_stop_while_a_source_trains_leaves_nothing_behind(place, home):  # noqa: F811
    result = run(spec("mera", **place), stop=lambda: True)
    assert result.stopped and result.score is None and not result.rows and not finds(home)
    assert not run(spec("mera", **place)).stopped


def test_another_content_of_a_source_is_another_run(place):
    before = identify(spec("mera", **place))
    with open(place["sources"].split()[0].removeprefix("file:"), "a") as f:
        f.write("a fine film\t1\n")
    assert identify(spec("mera", **place)) != before


@pytest.mark.parametrize("bad, why", [("reviws", "reviews"), (["reviews"], "names of tasks"), (3, "names of tasks")])
def test_a_wrong_source_is_told_before_anything_runs(bad, why):
    with pytest.raises(PeftlabError, match=why):
        spec("adapter-fusion", sources=bad)


def test_a_source_that_cannot_be_trained_says_so(place):
    with pytest.raises(PeftlabError, match="nowhere.tsv: no such file"):
        run(spec("mera", **place | dict(sources="file:/nowhere.tsv")))


def test_the_panel_weighs_and_runs_a_method_with_sources(place, monkeypatch):
    from peftlab.widgets import panel

    monkeypatch.setenv("PEFTLAB_HEADLESS", "1")
    given = {k: v for k, v in place.items() if k in ("backbone", "task")}
    board = panel("adapter-fusion", steps=4, **given)
    assert board.spec["recipe"][0]["settings"]["sources"] == ""
    fresh = board.text["counts"].value
    board.set(sources=place["sources"])
    assert board.spec["recipe"][0]["settings"]["sources"] == place["sources"]
    assert board.text["counts"].value != fresh, "what the sources bring is not trained"
    assert board.run().score is not None
    board.controls.knobs["sources"].value = "reviws"  # a learner's slip
    assert "the nearest are reviews" in board.text["counts"].value


@pytest.mark.slow
def test_the_embedded_tasks_are_sources(home):  # noqa: F811
    target = dict(task="paraphrase", backbone="nano-encoder", steps=4, size=64)
    assert run(spec("adapter-fusion", sources="reviews topic", **target)).score is not None and len(finds(home)) == 2


def test_pot_is_loaded_only_when_adapters_are_merged():
    code = "import sys, peftlab as pl; pl.METHODS; assert 'ot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
