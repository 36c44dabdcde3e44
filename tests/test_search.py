"""AutoPEFT's search: its space and counts, its samplers, what survives a kill, fronts, winners and their figures."""

import itertools
import json
import math
import os
import pathlib
import random
import subprocess
import sys

import filelock
import numpy as np
import pytest
import tiny
import torch
from small import home  # noqa: F401

import peftlab as pl
from peftlab import PeftlabError, ledger, many, plots, search_plots, searching
from peftlab.asking import Desk, journal
from peftlab.fronts import Search, hypervolume
from peftlab.results import Result

TESTS = pathlib.Path(__file__).resolve().parent
PARTS = ("serial", "parallel", "n")


def stub(one, each=None, fresh=False, stop=None):
    """A run that takes no time: larger adapters behind the second layer are better; a little noise."""
    size = {r["method"]: (r["settings"].get("r") or r["settings"]["n"], r["layers"] or [0, 1]) for r in one["recipe"]}
    value = 0.4 + 0.005 * random.Random(ledger.digest(one)).gauss(0, 1)
    for method, worth in (("pfeiffer", 0.12), ("parallel-adapter", 0.08), ("prefix", 0.04)):
        r, layers = size.get(method, (0, []))
        value += worth * math.log10(1 + r) * sum(0.2 + 0.6 * i for i in layers)
    CALLS.append(ledger.digest(one))
    return Result(one, ledger.digest(one), one["task"], "accuracy", score=value - 0.01, validation=value)


CALLS = []


@pytest.fixture
def stubbed(home, monkeypatch):  # noqa: F811
    """Searches with runs that take no time, in a home of their own."""
    monkeypatch.setattr(many, "run", stub)
    CALLS.clear()
    return home


def lasting(search):
    """The trials without what the clock says."""
    return [{k: v for k, v in t.items() if k not in ("asking", "seconds")} for t in search.trials]


def designs(search):
    return [(*t["settings"].values(), *t["layers"]) for t in search.trials]


def trial(numbers, validation, number=1):
    settings = dict(serial=8, parallel=0, n=0)
    return dict(number=number, numbers=numbers, validation=validation, score=0.5, settings=settings, layers=[0, 1])


def made(*points, how="random", seed=0, reference=(1000, 0.0)):
    shared = dict(task="entail", backbone="nano-encoder")
    return Search(how, seed, shared, 2, "accuracy", [*reference], [trial(*p, i) for i, p in enumerate(points, 1)])


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


# What survives ------------------------------------------------------------------------------------


def child():
    """A search in a process of its own, which writes down every run that begins, and hangs in the sixth of seven."""
    import time

    def noted(one, each=None, fresh=False, stop=None):
        with open(os.path.join(os.environ["PEFTLAB_HOME"], "begun"), "a") as log:
            log.write(ledger.digest(one) + "\n")
        if len(CALLS) == 5:
            print("hangs", flush=True)
            time.sleep(600)
        return stub(one)

    many.run = noted
    pl.search(evaluations=7, first=4)  # of which the fifth was asked for by what the others have earned


def test_a_kill_loses_nothing_and_nothing_is_repeated(stubbed):
    folder = stubbed / "killed"
    folder.mkdir(parents=True)
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import test_search; test_search.child()"
    env = os.environ | dict(PEFTLAB_HOME=str(folder))
    process = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)
    whole = pl.search(evaluations=7, first=4)
    assert process.stdout.readline() == "hangs\n"
    process.kill()
    process.wait()
    process.stdout.close()
    begun = (folder / "begun").read_text().split()
    assert begun == [t["hash"] for t in whole.trials[:6]]
    CALLS.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTLAB_HOME", str(folder))
        found = pl.search(evaluations=7, first=4)
    assert lasting(found) == lasting(whole)
    assert CALLS == [t["hash"] for t in whole.trials[5:]]  # the run that was killed, and what was left


@pytest.mark.parametrize("how, at", [("bayes", 4), ("random", 4), ("evolution", 3), ("evolution", 4)])
def test_a_batch_that_was_cut_goes_on_as_it_began(stubbed, monkeypatch, how, at):
    one_by_one = searching.outcomes
    monkeypatch.setattr(searching, "outcomes", lambda specs, jobs, *more: one_by_one(specs, 1, *more))
    asked = dict(how=how, evaluations=5, first=3, jobs=2)  # batches of 2, 1 and 2
    whole = pl.search(**asked)
    assert len(set(designs(whole))) == 5

    def breaks(one, each=None, fresh=False, stop=None):
        if len(CALLS) == at:
            raise MemoryError
        return stub(one)

    CALLS.clear()
    monkeypatch.setattr(many, "run", breaks)
    with pytest.raises(MemoryError):
        pl.search(**asked, fresh=True)
    monkeypatch.setattr(many, "run", stub)
    assert lasting(pl.search(**asked)) == lasting(whole) and len(CALLS) == 5


def test_a_line_that_was_torn_and_a_question_that_was_cut_do_no_harm(stubbed, monkeypatch):
    whole = pl.search(how="random", evaluations=6, first=2)
    (path,) = (stubbed / "search").glob("*.journal")
    lines = path.read_bytes().splitlines(keepends=True)
    for keep in (len(lines) - 1, len(lines) // 2, 1, 0):
        path.write_bytes(b"".join(lines[:keep]) + (lines[keep] if keep < len(lines) else b"")[:9])
        assert lasting(pl.search(how="random", evaluations=6, first=2)) == lasting(whole)


def test_one_search_is_made_by_one_process_at_a_time(stubbed):
    pl.search(how="random", evaluations=2, first=2)
    (path,) = (stubbed / "search").glob("*.journal")
    with filelock.FileLock(f"{path}.lock"), pytest.raises(PeftlabError, match="running in another process"):
        pl.search(how="random", evaluations=3, first=2)
    assert len(pl.search(how="random", evaluations=3, first=2).trials) == 3


def test_whoever_stops_a_search_gets_what_is_there(stubbed, monkeypatch):
    asked, seen = dict(how="random", evaluations=6, first=2), []
    found = pl.search(**asked, each=lambda t: seen.append(t) or len(seen) == 2)
    assert found.stopped and found.trials == seen and len(seen) == 2
    found = pl.search(**asked, stop=lambda: len(CALLS) >= 3)
    assert found.stopped and len(found.trials) == 3
    assert len(pl.search(**asked, seconds=0).trials) == 3 and not pl.search(**asked, seconds=0).stopped

    def interrupted(one, each=None, fresh=False, stop=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(many, "run", interrupted)
    found = pl.search(**asked)
    assert found.stopped and len(found.trials) == 3
    monkeypatch.setattr(many, "run", lambda one, **_: Result(one, "", "entail", "", stopped=True))
    assert pl.search(**asked).stopped
    monkeypatch.setattr(many, "run", stub)
    assert len(pl.search(**asked).trials) == 6 and len(CALLS) == 6


def test_a_run_that_diverges_has_earned_nothing(stubbed, monkeypatch):
    def diverges(one, each=None, fresh=False, stop=None):
        if len(CALLS) == 1:
            CALLS.append("")
            raise many.NotFinite("the loss is not finite at step 1")
        return stub(one)

    monkeypatch.setattr(many, "run", diverges)
    found = pl.search(how="random", evaluations=3, first=3)
    assert [t["diverged"] for t in found.trials] == [False, True, False]
    assert found.trials[1]["validation"] == found.trials[1]["score"] == 0 and found.best() is not found.trials[1]


def test_the_samplers_leave_no_trace_in_the_process(stubbed):
    import optuna

    threads, state, loud = torch.get_num_threads(), torch.get_rng_state(), optuna.logging.get_verbosity()
    torch.set_num_threads(2)
    try:
        pl.search(evaluations=3, first=2)
        assert torch.get_num_threads() == 2 and torch.equal(torch.get_rng_state(), state)
        assert optuna.logging.get_verbosity() == loud
    finally:
        torch.set_num_threads(threads)


BAD = {
    "how": (dict(how="bayess"), "unknown kind of search 'bayess'; the nearest is bayes"),
    "evaluations": (dict(evaluations=0), "evaluations must be a whole number from 1, not 0"),
    "half": (dict(evaluations=2.5), "evaluations must be a whole number from 1, not 2.5"),
    "first": (dict(evaluations=5), "first 8 is above evaluations 5; take at most 5"),
    "jobs": (dict(jobs=0), "jobs must be a whole number from 1, not 0"),
    "task": (dict(task="entale"), "unknown task 'entale'; the nearest"),
    "backbone": (dict(backbone="nano"), "unknown backbone 'nano'; the nearest"),
    "setting": (dict(step=3), "unknown setting of a search 'step'; the nearest"),
    "seed": (dict(seed=-1), "seed must be a whole number from 0, not -1"),
    "steps": (dict(steps=0), "steps must be a whole number from 1, not 0"),
    "sizes": (dict(sizes=[0.5]), "sizes must be a list of whole numbers from 0, such as [0, 4, 16], not [0.5]"),
    "no sizes": (dict(sizes=4), "sizes must be a list of whole numbers from 0, such as [0, 4, 16], not 4"),
    "wide": (dict(sizes=[0, 65]), "above the width 64"),
    "many": (dict(sizes=[0, 1], evaluations=22), "evaluations 22 are more than the 21 designs that these sizes allow"),
    "falls": (dict(task="describe", backbone="nano-decoder", task_knobs=dict(metric="perplexity")), "is to rise"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(stubbed, case):
    asked, sentence = BAD[case]
    with pytest.raises(PeftlabError) as told:
        pl.search(**asked)
    assert sentence in str(told.value) and "\n" not in str(told.value) and not CALLS


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


# Fronts -------------------------------------------------------------------------------------------


def test_front_and_hypervolume_are_those_of_brute_force():
    from botorch.utils.multi_objective.hypervolume import Hypervolume

    draw = random.Random(0)
    for _ in range(60):
        points = [(10 ** draw.randint(0, 5), draw.randint(0, 10) / 10) for _ in range(draw.randint(1, 12))]
        reference = (10 ** draw.randint(3, 5), draw.randint(0, 4) / 10)
        search = made(*points, reference=reference)
        best = lambda p, points=points: all(q == p or q[0] > p[0] or q[1] < p[1] for q in points)
        assert [(t["numbers"], t["validation"]) for t in search.front()] == sorted(p for p in points if best(p))
        cells = sum(  # of one decade by 0.1
            any(math.log10(n) <= i and round(10 * v) > j for n, v in points)
            for i in range(round(math.log10(reference[0])))
            for j in range(round(10 * reference[1]), 10)
        )
        assert search.hypervolume() == pytest.approx(cells / 10)
        corner = torch.tensor([-math.log10(reference[0]), reference[1]])
        theirs = Hypervolume(corner).compute(torch.tensor([[-math.log10(n), v] for n, v in points]))
        assert search.hypervolume() == pytest.approx(theirs, abs=1e-6)
        assert search.growth()[-1] == search.hypervolume() and search.growth() == sorted(search.growth())
        assert search.hypervolume((10**6, 0.0)) == hypervolume(search.trials, (10**6, 0.0)) >= search.hypervolume()


def test_the_best_within_a_budget_is_on_the_front():
    search = made((100, 0.5), (200, 0.7), (200, 0.6), (400, 0.7), (50, 0.4), (50, 0.4), (800, 0.65))
    assert [(t["numbers"], t["number"]) for t in search.front()] == [(50, 5), (50, 6), (100, 1), (200, 2)]
    for budget, number in ((50, 5), (99, 5), (100, 1), (199, 1), (200, 2), (10**9, 2), (None, 2)):
        assert search.best(budget)["number"] == number
    with pytest.raises(PeftlabError, match="at most 49 numbers; its smallest trains 50"):
        search.best(49)
    with pytest.raises(PeftlabError, match="it has no trials yet"):
        made().best()


def test_the_winners_on_fresh_seeds_are_counted_once(stubbed):
    found = pl.search(how="random", evaluations=8, first=2)
    least = found.front()[0]["numbers"]
    rows = found.again(range(50, 53), budgets=(least, least, None))
    assert [r["budget"] for r in rows] == [least, None] and CALLS[8:] == [
        ledger.digest(found.spec(found.best(b), seed=s)) for b in (least, None) for s in (50, 51, 52)
    ]
    for row in rows:
        low, high = (row["score_mean"] + k * row["score_half"] for k in (-1, 1))
        assert (row["score_mean"], low, high) == pytest.approx(plots.interval(row["scores"]))
    assert found.again([50])[0]["validation_half"] is None


# Figures ------------------------------------------------------------------------------------------


SEVERAL = [
    made((100, 0.5), (10, 0.3), (500, 0.4), how=how, seed=s) for how in ("random", "bayes") for s in range(2)
] + [made((100, 0.9), how="evolution")]  # fmt: skip


def test_the_figure_of_fronts_has_every_trial_and_the_steps():
    figure = plots.front(SEVERAL)
    dots = [t for t in figure.data if t.mode == "markers"]
    assert [len(t.x) for t in dots] == [6, 1, 6] and "serial 8 in layers 0 1" == dots[0].text[0]
    lines = [t for t in figure.data if t.mode == "lines+markers"]
    assert [(t.x, t.y, t.line.shape) for t in lines][0] == ((10, 100, 1000), (0.3, 0.5, 0.5), "hv")
    assert [t.name for t in lines if t.showlegend] == [
        "bayes, 3 runs: hypervolume 0.800 ± 0.000 (2 seeds)",
        "evolution, 1 runs: hypervolume 0.900 (1 seed)",
        "random, 3 runs: hypervolume 0.800 ± 0.000 (2 seeds)",
    ]
    assert len({t.line.color for t in lines}) == 3 and figure.layout.xaxis.type == "log"
    assert plots.front(SEVERAL[2]).data[1].line.color == lines[0].line.color  # of bayes, also when it is alone


def test_the_figure_of_progress_has_means_and_bands():
    other = made((10, 0.2), (100, 0.5), (1000, 0.9), (1000, 0.9), how="bayes", seed=1)
    figure = plots.progress([SEVERAL[2], other])
    band, mean = figure.data
    growth = np.array([SEVERAL[2].growth(), other.growth()[:3]])
    assert mean.y == pytest.approx(growth.mean(0)) and mean.name == "bayes (2 seeds)" and list(mean.x) == [1, 2, 3]
    low = [plots.interval(values)[1] for values in growth.T]
    steps = np.repeat(low, 2)[:-1]  # each value lasts until the next run
    assert band.y[:4:-1] == pytest.approx(steps) and list(band.x[:5]) == [1, 2, 2, 3, 3]
    assert len(plots.progress(SEVERAL[0]).data) == 1


def test_the_front_of_several_seeds_is_their_mean_in_a_band():
    other = made((20, 0.2), (200, 0.7), how="bayes", seed=1)
    x, mean, half = search_plots.attained([SEVERAL[2], other])
    assert x == [20, 100, 200, 1000] and mean == pytest.approx([0.25, 0.35, 0.6, 0.6])
    assert half[1] == pytest.approx(plots.interval([0.5, 0.2])[2] - 0.35)
    band = plots.front([SEVERAL[2], other]).data[1]
    assert (band.y[1], band.y[-2]) == pytest.approx((0.25 + half[0], 0.25 - half[0])) and band.x[0] == band.x[-1] == 20


def test_the_figure_of_the_curse_has_what_won_beside_what_came_after():
    row = dict(numbers=100, settings=dict(serial=8, parallel=0, n=2), layers=[1], metric="accuracy")
    row |= dict(validation=0.8, validations=[0.7, 0.72], score=0.6, scores=[0.6, 0.64])
    rows = [row | dict(numbers=n) for n in (9, 4)]
    figure = plots.curse(rows)
    won, fresh, dots = (t for t in figure.data if t.xaxis == "x")
    assert won.y == (0.8, 0.8) and fresh.y == pytest.approx((0.71, 0.71)) and len(dots.y) == 4
    assert fresh.error_y.array[0] == pytest.approx(plots.interval([0.7, 0.72])[2] - 0.71)
    assert [a.text for a in figure.layout.annotations] == [
        "chosen on validation: −0.090 on fresh seeds",
        "not chosen on test: +0.020 on fresh seeds",
    ]
    assert figure.layout.xaxis.ticktext == ("4", "9") and won.text[0] == "serial 8, prefix 2 in layer 1"


def test_figures_that_cannot_be_drawn_say_why():
    for none in ([], [made()]):
        with pytest.raises(PeftlabError, match="no trials to draw"):
            plots.front(none)
    with pytest.raises(PeftlabError, match="one task, backbone and space, not entail with nano-encoder, 9 numbers and"):
        plots.progress([made((1, 1)), made((1, 1), reference=(9, 0))])
    with pytest.raises(PeftlabError, match="no rows to draw"):
        plots.curse([])


def test_no_torch_and_no_optuna_behind_the_figures(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps(SEVERAL[0].json()))
    code = (
        "import sys, json, peftlab as pl; s = pl.Search.of(json.load(open(sys.argv[1]))); pl.plots.front(s); "
        "pl.plots.progress([s]); assert not {'torch', 'optuna', 'botorch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "s.json"], check=True)


def test_the_desk_refuses_a_design_that_is_known(stubbed):
    """Thrice the same answer of a sampler: once taken, then passed over."""
    space = searching.space("nano-encoder", [0, 1])
    with journal("x") as study:
        desk = Desk(study, space, "random", 1, 0, 1)
        known = {str(desk.ask(place)[1]["settings"]) + str(desk.ask(place)[1]["layers"]) for place in (0, 0)}
        assert len(known) == 2 and len(desk.trials("RUNNING")) == 4
