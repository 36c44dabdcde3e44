"""A search outlives what stops it: a kill, a torn line, a second process, an error, bad input."""

import os
import subprocess
import sys

import filelock
import pytest
import torch
from searched import CALLS, TESTS, designs, lasting, stub, stubbed  # noqa: F401
from small import home  # noqa: F401

import peftlab as pl
from peftlab import PeftlabError, ledger, many, searching
from peftlab.results import Result

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
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import test_search_lasts; test_search_lasts.child()"
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
