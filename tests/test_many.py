"""Many runs side by side: what each gives alone, once, and nothing is lost when they are stopped."""

import pytest
from small import home  # noqa: F401

import peftlab as pl
from peftlab import ledger, many
from peftlab.specs import identify

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


def test_two_processes_give_what_one_gives(home):  # noqa: F811
    alone = [pl.run(one) for one in specs((0, 1))]
    together = pl.run_many(specs((1, 0)), jobs=2, fresh=True)
    assert [r.spec["seed"] for r in together] == [1, 0] and not any(r.cached for r in together)
    for one, other in zip(alone, together[::-1], strict=True):
        assert (one.score, one.validation) == pytest.approx((other.score, other.validation), abs=1e-6)
        assert [row["loss"] for row in one.rows] == pytest.approx([row["loss"] for row in other.rows], abs=1e-5)


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


@pytest.mark.parametrize("jobs", [0, -1, 1.5, True])
def test_jobs_that_are_none_are_refused(jobs):
    with pytest.raises(pl.PeftlabError, match="jobs must be a whole number from 1"):
        pl.run_many([], jobs=jobs)


def test_a_run_that_diverges_scores_nothing_and_the_others_go_on(home):  # noqa: F811
    (bad,), (good,) = specs([0], lr=1e30, steps=8), specs([0])
    found = pl.run_many([bad, good], jobs=1)
    assert found[0].score == 0 and found[0].versions and found[1].score > 0 and not ledger.find(identify(bad))
