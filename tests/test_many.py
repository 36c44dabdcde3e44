"""Many runs side by side: what each gives alone, once, and nothing is lost when they are stopped."""

import pytest
from small import home  # noqa: F401

import peftlab as pl
from peftlab import ledger, many, studies
from peftlab.methods import METHODS, method
from peftlab.methods.reparameterized import LoRA
from peftlab.specs import identify
from peftlab.widgets import panel

NANO = dict(task="entail", backbone="nano-encoder", steps=3, size=64)


def specs(seeds, **more):
    return [pl.spec("lora", seed=s, **NANO | more) for s in seeds]


@pytest.fixture
def counted(monkeypatch):
    made, real = [], many.run

    def run(one, **more):
        made.append(one["seed"])
        return real(one, **more)

    monkeypatch.setattr(many, "run", run)
    return made


def test_two_processes_give_what_one_gives_and_tell_it_meanwhile(home):  # noqa: F811
    alone = [pl.run(one) for one in specs((0, 1))]
    heard = []
    together = pl.run_many(specs((1, 0)), jobs=2, fresh=True, each=lambda one, row: heard.append((one["seed"], row)))
    assert [r.spec["seed"] for r in together] == [1, 0] and not any(r.cached for r in together)
    for one, other in zip(alone, together[::-1], strict=True):
        assert (one.score, one.validation) == pytest.approx((other.score, other.validation), abs=1e-6)
        assert [row["loss"] for row in one.rows] == pytest.approx([row["loss"] for row in other.rows], abs=1e-5)
        assert [row for seed, row in heard if seed == one.spec["seed"]] == other.rows


def test_two_processes_stop_at_their_next_step(home):  # noqa: F811
    heard, long = [], dict(steps=2000, every=1)
    both = lambda one, row: heard.append(one["seed"]) or {1, 2} <= {*heard}
    short, *cut = pl.run_many([*specs([0]), *specs((1, 2, 3), **long)], jobs=2, each=both)
    assert not short.stopped and ledger.find(short.hash), "2 begins when 0 has ended"
    assert all(r.stopped and not ledger.find(r.hash) for r in cut) and all(0 < len(r.rows) < 2000 for r in cut[:2])
    assert cut[2].rows == [], "it never began"


def test_another_process_tells_in_one_sentence_what_is_wrong_and_the_others_stop(home):  # noqa: F811
    wrong, long = specs([0], r=5000), specs([1], steps=2000)
    with pytest.raises(pl.PeftlabError, match="rank r = 5000 is above the width") as told:
        pl.run_many([*long, *wrong], jobs=2)
    assert told.value.__cause__ is None and not ledger.find(identify(long[0]))


def test_another_process_knows_methods_that_are_not_the_packages(home, monkeypatch):  # noqa: F811
    monkeypatch.setitem(METHODS, "mine", None)  # to be gone afterwards
    lora = METHODS["lora"]
    about = {n: getattr(lora, n) for n in "title review delta_tuning sparse_view paper lr where knobs".split()}
    method("mine", **about)(type("Mine", (LoRA,), dict(__module__="__main__", __doc__="y' = y")))
    mine, lora = (pl.spec(n, seed=0, **NANO) for n in ("mine", "lora"))
    found = pl.run_many([mine, lora], jobs=2)
    assert found[0].score == found[1].score and [r["loss"] for r in found[0].rows] == [r["loss"] for r in found[1].rows]


def test_a_panels_seeds_go_on_side_by_side_and_a_stop_keeps_what_is_finished(home, monkeypatch):  # noqa: F811
    monkeypatch.delenv("PEFTLAB_HEADLESS", raising=False)
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    board, said = panel(**NANO), []
    board.runner.message.observe(lambda change: said.append(change["new"]), "value")
    show = board.runner.show
    board.runner.show = lambda pairs: (show(pairs), 2 in dict(pairs) and board.runner.stop())
    board.run_seeds()
    board.runner.wait(300)
    assert "starting 2 processes …" in said
    kept = [r for r in board.results if not r.stopped]
    assert 1 <= len(kept) < 5 and all(ledger.find(r.hash) for r in kept)
    assert f"{len(kept)} of 5 runs are finished and kept" in board.runner.message.value
    for i, (r, curve) in enumerate(zip(board.results, board.loss.series, strict=True), 1):
        assert curve["name"].startswith(f"{i}: lora") and curve["name"].endswith(f"seed {r.spec['seed']}")
        assert curve["points"] == [[row["step"], row["loss"]] for row in r.rows]


def test_a_study_in_processes_has_its_rows_in_order(home):  # noqa: F811
    how = dict(backbone="nano-encoder", steps=1)
    assert pl.study("ceiling", (1, 0), jobs=2, **how) == pl.study("ceiling", (1, 0), **how), "the second is known"
    assert len(ledger.records(studies.own("ceiling"))) == 2


def test_what_is_known_is_not_run_again_and_nothing_runs_twice(home, counted):  # noqa: F811
    pl.run(specs([1])[0])
    found = pl.run_many(specs((0, 1, 0)), jobs=1)
    assert counted == [0, 1] and [r.cached for r in found] == [False, True, False], "1 is only looked up"
    assert found[0] is found[2] and ledger.find(identify(specs([0])[0]))
    assert all(r.cached for r in pl.run_many(specs((0, 1)))) and pl.run_many([]) == []


def test_a_stopped_sweep_keeps_what_is_finished(home, counted):  # noqa: F811
    found = pl.run_many(specs(range(3)), jobs=1, stop=lambda: len(counted) > 1)
    assert [r.stopped for r in found] == [False, True, True] and found[1].score is None
    assert pl.run_many(specs(range(3)), jobs=1)[0].cached and counted == [0, 1, 1, 2, 0], "0 is only looked up"


def test_ctrl_c_is_a_stop_that_comes_after_what_is_finished(home, monkeypatch):  # noqa: F811
    real = many.run
    cut = lambda one, each=None, **more: real(one, each=each if one["seed"] else None, **more)

    def press(one, row):
        raise KeyboardInterrupt

    monkeypatch.setattr(many, "run", cut)
    seen = []
    with pytest.raises(KeyboardInterrupt):
        for result in many.finished(many.outcomes(specs(range(3)), each=press)):
            seen.append(result.spec["seed"])
    assert seen == [0] and [r.stopped for r in pl.run_many(specs(range(3)), jobs=1, each=press)] == [False, True, True]


@pytest.mark.parametrize("jobs", [0, -1, 1.5, True])
def test_jobs_that_are_none_are_refused(jobs):
    with pytest.raises(pl.PeftlabError, match="jobs must be a whole number from 1"):
        pl.run_many([], jobs=jobs)


def test_a_run_that_diverges_scores_nothing_and_the_others_go_on(home):  # noqa: F811
    (bad,), (good,) = specs([0], lr=1e30, steps=8), specs([0])
    found = pl.run_many([bad, good], jobs=1)
    assert found[0].score == 0 and found[0].versions and found[1].score > 0 and not ledger.find(identify(bad))
