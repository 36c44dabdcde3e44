"""The comparison of sparse methods and the studies beside it: what is shipped, how it was chosen, that it repeats."""

import numpy as np
import pytest
import torch
from small import home  # noqa: F401

import peftlab as pl
from peftlab import budgets, masks, shipped, sparse_league, sparse_studies, studies
from peftlab.specs import SPEC_KEYS


def test_the_ten_methods_are_near_the_density():
    model = pl.backbone("micro-encoder", head="classification", labels=3)
    weights = sum(m.weight.numel() for m in pl.sites(model, "q k v o up down"))
    assert weights == 786_432 and len(sparse_league.PAPER) == 10
    for name in set(sparse_league.PAPER) - {"full", "mixout", "bitfit"}:
        undo = pl.attach(model, sparse_league.entry(name, "entail", 0, None)["recipe"])
        assert 0.9 < pl.counts(model)["delta"] / (0.005 * weights) < 1.05, name
        undo()


def test_rates_are_the_best_on_validation_and_at_no_edge():
    found, rates = [*shipped.kept("06_rates").values()], sparse_league.chosen()
    assert rates.keys() == sparse_league.PAPER.keys()
    assert {r["spec"]["seed"] for r in found}.isdisjoint(sparse_league.SEEDS), "chosen with a seed of its own"
    for method, rate in rates.items():
        tried = budgets.tried(method, sparse_league.FACTORS)
        mine = [r for r in found if r["spec"]["recipe"][0]["method"] == method]
        mean = {lr: np.mean([r["validation"] for r in mine if r["spec"]["lr"] == lr]) for lr in tried}
        assert rate == max(mean, key=mean.get) and tried[0] < rate < tried[-1], method


@pytest.mark.parametrize("what, rows", [("main", 150), ("perturbed", 100), ("sweep", 100)])
def test_the_comparison_is_shipped(what, rows, home):
    results = pl.comparison(what)
    assert len(results) == rows and all(r.cached for r in results)
    assert {r.spec["seed"] for r in results} == set(range(5))


def test_perturbed_runs_see_nine_tenths_of_the_rows():
    whole = {t: len(pl.task(t).data["train"]) for t in sparse_league.TASKS}
    for spec in sparse_league.perturbed():
        assert spec["size"] == round(0.9 * whole[spec["task"]])
    one, other = (pl.task("entail", size=900, seed=s).data["train"]["text"][:] for s in (0, 1))
    assert set(one) != set(other)


def test_a_part_of_the_comparison_and_unknown_words(home):
    assert {r.spec["recipe"][0]["method"] for r in pl.comparison("main", [0, 1], ["sam"])} == {"sam"}
    with pytest.raises(pl.PeftlabError, match="unknown comparison 'mian'; the nearest is main"):
        pl.comparison("mian")
    with pytest.raises(pl.PeftlabError, match="unknown method of the comparison 'fish'"):
        pl.comparison(methods=["fish"])


def test_no_knob_is_named_like_a_part_of_a_spec():
    """`pl.spec("lt-sft", steps=7)` must not leave it open which steps are meant."""
    assert not {knob for m in pl.METHODS.values() for knob in m.knobs} & {*SPEC_KEYS, "where", "layers"}


# The studies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sam", "stability", "jumps"])
def test_the_studies_are_shipped(name, home):
    one = studies.STUDIES[name]
    rows = pl.study(name)
    assert len(rows) == len(studies.cases(one.cases)) * len(one.seeds)
    assert not studies.own(name).exists(), "nothing had to be made"


def test_sams_mask_has_the_density_and_its_choices_matter():
    sizes = {
        c: sparse_studies.sam_mask(0, "entail", 0.005, **sparse_studies.CHOICES[c]) for c in ("1 batch", "per tensor")
    }
    assert int(sizes["1 batch"].sum()) == 3932
    per = sizes["per tensor"].split(
        [m.weight.numel() for m in pl.sites(pl.backbone("micro-encoder"), "q k v o up down")]
    )
    assert all(int(part.sum()) == masks.share_of(0.005, part.numel()) for part in per)


@pytest.mark.parametrize("choice", ["reference", "4 batches"])
def test_a_shipped_overlap_repeats(choice):
    (row,) = pl.study("sam", [0], choice=choice)
    again = studies.STUDIES["sam"].make(0, choice, row["task"], row["p"])
    assert again["reference"] == pytest.approx(row["reference"], abs=0.02)


def test_leaving_rows_out_leaves_them_out():
    task = pl.task("entail", size=16, seed=0)
    rest = sparse_studies.part(task, range(4, 16))
    assert rest.data["train"]["text"][:] == task.data["train"]["text"][4:]
    assert rest.data["test"]["text"][:5] == task.data["test"]["text"][:5]


def test_losses_are_those_of_the_rows():
    task, model = pl.task("entail", size=8, seed=0), pl.backbone("nano-encoder", head="classification", labels=3)
    losses = sparse_studies.row_losses(model, task)
    batch = next(task.batches(model.tokenizer, "train", 8, seed=0))
    with torch.no_grad():
        assert losses.shape == (8,) and float(losses.mean()) == pytest.approx(float(model(**batch).loss), abs=1e-5)


def test_rounds_begin_anew_after_each_projection():
    rows = sparse_studies.rounds([dict(seed=3, every=50, step=[1, 50, 51, 100], loss=[4.0, 3.0, 9.0, 2.0])])
    assert [r["step"] for r in rows] == [1, 50, 1, 50] and rows[2] == dict(seed=3, step=1, loss=9.0)
