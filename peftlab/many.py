"""Many runs, side by side in processes of one thread each.

On a CPU that is the lever: a small backbone is bound by arithmetic, so that a batch of several runs takes as long as
the runs, and a second thread inside one costs more than it brings.
"""

import contextlib
import os
from unittest.mock import patch

from . import ledger
from .errors import PeftlabError
from .paths import home
from .results import Result
from .runs import run, versions
from .specs import identify, whole
from .training import NotFinite


def run_many(specs, jobs=None, fresh=False, stop=None):
    """The Results of these specs, in their order; what the ledger knows is not run again (unless `fresh`).

    jobs: processes, by default as many as there are cores. stop(): a true answer after a run ends the sweep, as Ctrl-C
    does in `run`; what is finished stays in the ledger, and the rest comes back as stopped. A run that diverged has the
    score 0. The scores are those that `run` gives one by one. PeftlabError for jobs that are no number from 1.
    """
    if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1):
        raise PeftlabError(f"jobs must be a whole number from 1, not {jobs!r}")
    specs = [*map(whole, specs)]
    keys = [*map(identify, specs)]
    due = {key: one for key, one in zip(keys, specs, strict=True) if fresh or not ledger.find(key)}
    made, jobs = {}, max(1, min(jobs or os.cpu_count() or 1, len(due)))
    with contextlib.closing(outcomes([*due.values()], jobs, fresh, stop)) as results:
        for key, result in zip(due, results, strict=False):
            made[key] = result
            if result.stopped or stop and stop():
                break
    never = lambda one, key: Result(one, key, one["task"], "", stopped=True)
    known = lambda one, key: never(one, key) if key in due else run(one)
    return [made.get(key) or known(one, key) for one, key in zip(specs, keys, strict=True)]


def outcomes(specs, jobs=1, fresh=False, stop=None, ordered=True):
    """The Results of these specs as they come, or in their order; with jobs > 1 from as many processes."""
    if jobs == 1:
        yield from (earned(one, fresh, stop) for one in specs)
        return
    import joblib

    with joblib.parallel_config("loky", inner_max_num_threads=1):
        away = joblib.delayed(elsewhere)
        come = "generator" if ordered else "generator_unordered"
        yield from joblib.Parallel(jobs, return_as=come)(away(str(home()), one, fresh) for one in specs)


def earned(one, fresh=False, stop=None):
    """The Result of a run. One that diverged has earned nothing."""
    try:
        return run(one, fresh=fresh, stop=stop)
    except NotFinite:
        return Result(one, identify(one), one["task"], "", score=0.0, validation=0.0, versions=versions())


def elsewhere(folder, one, fresh):
    """`earned` in another process, with this one's ledger."""
    with patch.dict(os.environ, PEFTLAB_HOME=folder):
        return earned(one, fresh)
