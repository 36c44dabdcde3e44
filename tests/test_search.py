"""AutoPEFT's search: its space and counts, its samplers, real runs."""

import itertools
import json
import random

import numpy as np
import pytest
import tiny
import torch
from searched import CALLS, PARTS, designs, lasting, stubbed  # noqa: F401
from small import home  # noqa: F401

import peftlab as pl
from peftlab import PeftlabError, ledger, searching
from peftlab.asking import Desk, journal
from peftlab.fronts import Search

# The space ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["roberta", "distilbert", "gpt2", "t5", "llama"])
def test_what_a_design_trains_is_known_without_training(family):
    model, draw = tiny.model(family), random.Random(0)
    space = searching.Space((0, 1, 2, 8, 32), {part: searching.prices(model, part, 32) for part in PARTS})
    assert space.layers == (4 if family == "t5" else 2) and pl.counts(model)["delta"] == 0
    for _ in range(6):
        settings = {part: draw.choice(space.sizes) for part in PARTS} | dict(serial=draw.choice((1, 8)))
        layers = sorted(draw.sample(range(space.layers), draw.randint(1, space.layers)))
        undo = pl.attach(model, pl.recipe("autopeft", layers=layers, **settings))
        assert space.numbers(settings, layers) == pl.counts(model)["delta"] > 0
        undo()


def test_the_space_of_a_backbone():
    space = searching.space("nano-encoder")
    assert space.sizes == (0, 1, 2, 4, 8, 16, 32, 64) and space.layers == 2 and space.designs == (8**3 - 1) * 3
    assert searching.space("nano-encoder", [4, 2, 2]).designs == 2**3 * 3  # without 0 each of the parts is there
    both = {part: 64 for part in PARTS}
    adapter, prefix = 64 * 129 + 64, 2 * 64 * 64
    assert space.numbers(both, [0, 1]) == space.numbers(*space.largest) == 2 * (2 * adapter + prefix)
    assert space.numbers(both, []) == space.numbers(dict.fromkeys(PARTS, 0), [0, 1]) == 0


def test_all_layers_are_the_run_that_the_method_names(stubbed):
    found = pl.search(how="random", evaluations=12, first=1)
    full = [t for t in found.trials if t["layers"] == [0, 1]]
    assert full and all(row["layers"] is None for row in found.spec(full[0])["recipe"])
    only = next(t for t in found.trials if t["layers"] == [1])
    assert {row["layers"][0] for row in found.spec(only)["recipe"]} == {1}
    assert found.spec(only, seed=7) == found.spec(only) | dict(seed=7)
    assert only["hash"] == ledger.digest(found.spec(only))


# The search ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", searching.HOW)
def test_the_same_call_gives_the_same_new_designs_as_many_as_are_wanted(stubbed, monkeypatch, how):
    first = pl.search(how=how, evaluations=8, first=5)
    monkeypatch.setenv("PEFTLAB_HOME", str(stubbed / "another"))
    torch.manual_seed(99)
    short = pl.search(how=how, evaluations=6, first=5)
    assert len(short.trials) == 6 and len(CALLS) == 8 + 6
    again = pl.search(how=how, evaluations=8, first=5)  # continues
    assert lasting(again) == lasting(first) and lasting(short) == lasting(first)[:6] and len(CALLS) == 16
    assert len(set(designs(first))) == len(first.trials) == 8 and not first.stopped
    assert all(t["layers"] and any(t["settings"].values()) for t in first.trials)
    assert [t["by"] for t in first.trials] == ["first"] * 5 + [how] * 3
    assert [t["number"] for t in first.trials] == [*range(1, 9)]
    assert pl.search(how=how, evaluations=5, first=5).trials == again.trials[:5] and len(CALLS) == 16
    assert Search.of(json.loads(json.dumps(first.json()))) == first


def test_every_kind_of_search_begins_alike_and_every_seed_differently(stubbed):
    begin = lambda how, seed: str(designs(pl.search(how=how, evaluations=4, first=4, seed=seed)))
    assert len({begin(how, 0) for how in searching.HOW} | {begin("random", 1)}) == 2


def test_the_bayesian_search_goes_where_there_is_something_to_gain(stubbed):
    found = pl.search(how="bayes", evaluations=12, first=8)
    growth = found.growth()
    assert sum(b > a for a, b in itertools.pairwise(growth[7:])) >= 2  # of four designs
    plain = pl.search(how="random", evaluations=12, first=8)
    assert found.hypervolume() > 1.1 * plain.hypervolume()


def test_evolution_takes_its_children_from_parents(stubbed):
    found = pl.search(how="evolution", evaluations=24, first=4)
    values = [[*t["settings"].values(), *(i in t["layers"] for i in (0, 1))] for t in found.trials]
    before = [{v[i] for v in values[: k // 4 * 4]} for k, i in itertools.product(range(4, 12), range(3))]
    own = [values[k][i] in seen for (k, i), seen in zip(itertools.product(range(4, 12), range(3)), before, strict=True)]
    assert np.mean(own) > 0.75 > np.mean([len(seen) / 8 for seen in before])  # the share that chance would give


def test_a_proposal_is_new_and_counted_exactly(stubbed):
    from peftlab.proposing import decades, something

    space = searching.space("nano-encoder", [0, 1, 4])
    names = sorted(space.distributions())
    params = [dict(zip(names, p, strict=True)) for p in itertools.product(range(2), range(2), *[range(3)] * 3)]
    counted = [space.numbers(*space.design(p)) for p in params]
    x = torch.tensor([[p[n] for n in names] for p in params], dtype=torch.float64)
    some = torch.tensor(counted) > 0
    assert (10 ** decades(space, names, x))[:, 0].round().tolist() == counted and 0 < some.sum() < len(params)
    width = torch.tensor([2.0, 2.0, 3.0, 3.0, 3.0], dtype=torch.float64)
    fits = [((x + 0.5) / width)[:, group] @ w >= bound for group, w, bound in something(space, names, width)]
    assert torch.equal(torch.stack(fits).all(0), some)
    found = pl.search(how="bayes", evaluations=21, first=20, sizes=[0, 1])  # all that there are
    assert len(set(designs(found))) == 21


def test_a_process_that_cannot_be_fitted_keeps_its_priors(stubbed, monkeypatch):
    import botorch.fit
    from botorch.exceptions import ModelFittingError

    def failing(mll):
        raise ModelFittingError("all attempts have failed")

    monkeypatch.setattr(botorch.fit, "fit_gpytorch_mll", failing)
    assert [t["by"] for t in pl.search(evaluations=3, first=2).trials] == ["first", "first", "bayes"]


def test_nothing_is_compiled(stubbed, monkeypatch):
    """botorch would compile C++ for the first search of a machine: half a minute, 600 MB, and its own way to round."""
    from botorch.acquisition.multi_objective import logei
    from torch.utils import cpp_extension

    tried = []
    for name, value in dict(_load_attempted=False, _C=None).items():  # as if this were the first search
        monkeypatch.setattr(logei, name, value)
    monkeypatch.setattr(cpp_extension, "load", lambda *args, **kwargs: tried.append(args))
    assert [t["by"] for t in pl.search(evaluations=3, first=2).trials] == ["first", "first", "bayes"]
    assert not tried


# Real runs ----------------------------------------------------------------------------------------


def test_searches_make_the_runs_of_pl_run_also_side_by_side(home):  # noqa: F811
    asked = dict(how="random", evaluations=2, first=2, seed=3, steps=2, size=64)
    found = pl.search(**asked, jobs=2)
    for t in found.trials:
        result = pl.run(found.spec(t))
        assert result.cached and result.hash == t["hash"]
        assert (result.validation, result.score) == (t["validation"], t["score"])
        assert result.counts["delta"] == t["numbers"] and result.spec["lr"] == pl.get("autopeft").lr
    assert len(ledger.records(ledger.own())) == 2
    assert lasting(pl.search(**asked, fresh=True)) == lasting(found) and len(ledger.records(ledger.own())) == 4
    (row,) = found.again([5], budgets=(None, 10**6))
    result = pl.run(found.spec(found.best(), seed=5))
    assert result.cached and (row["validations"], row["scores"]) == ([result.validation], [result.score])
    assert row["validation"] == found.best()["validation"]
    assert json.loads(json.dumps(row)) == row
    with pytest.raises(PeftlabError, match="seed 3 is the one of the search"):
        found.again([3, 4])
    with pytest.raises(PeftlabError, match="without seeds there is nothing of the search"):
        found.again([])


def test_the_desk_refuses_a_design_that_is_known(stubbed):
    """Thrice the same answer of a sampler: once taken, then passed over."""
    space = searching.space("nano-encoder", [0, 1])
    with journal("x") as study:
        desk = Desk(study, space, "random", 1, 0, 1)
        known = {str(desk.ask(place)[1]["settings"]) + str(desk.ask(place)[1]["layers"]) for place in (0, 0)}
        assert len(known) == 2 and len(desk.trials("RUNNING")) == 4
