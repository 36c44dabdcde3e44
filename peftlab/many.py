"""Many runs: on a CPU side by side in processes of one thread each, on a GPU in one pass over one backbone.

A CPU is bound by arithmetic: a batch of several runs takes as long as the runs, and a second thread inside one costs
more than it brings, so that processes are the lever. (Each run reads its backbone: micro's takes 40 ms and 4 MB, beside
the 600 MB of torch and transformers.) A GPU waits for launches, of which a pass has no more for many runs than for
one; what cannot go together there goes one by one.
"""

import concurrent.futures as futures
import contextlib
import functools
import json
import os
import pathlib
import signal
import tempfile
from unittest.mock import patch

from . import ledger
from .errors import PeftlabError
from .kernels import CACHES
from .methods import METHODS
from .paths import home
from .results import Result
from .runs import run, store, versions
from .specs import identify, whole
from .together import diverged, run_together, shape
from .training import NotFinite, OutOfMemory

AT_ONCE = 32  # runs in one pass
POLL = 1 / 8  # seconds between two looks at what the processes have written
IDLE = 60  # seconds after which a process that waits for work ends
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "BLIS")}


def run_many(specs, jobs=None, fresh=False, stop=None, each=None, together=None):
    """The Results of these specs, in their order; what the ledger knows is not run again (unless `fresh`).

    jobs: processes, by default as many as there are cores, and one on a GPU. together: whether runs of one shape go in
    one pass (`peftlab.together`), by default on a GPU. each(spec, row) is called for every row while the runs go on,
    stop() several times a second; a true answer of either, or Ctrl-C, ends the sweep: what is finished stays in the
    ledger, and the rest comes back as stopped. A run that diverged has the score 0. The scores are those that `run`
    gives one by one. PeftlabError for jobs that are no number from 1, and as `run` raises it.
    """
    jobs = (1 if on_gpu() else cores()) if jobs is None else counted(jobs)
    specs = [*map(whole, specs)]
    keys = [*map(identify, specs)]
    due = {key: one for key, one in zip(keys, specs, strict=True) if fresh or not ledger.find(key)}
    jobs = max(1, min(jobs, len(due)))
    made = dict(zip(due, outcomes([*due.values()], jobs, fresh, stop, each, together=together), strict=True))
    return [made.get(key) or run(one) for one, key in zip(specs, keys, strict=True)]


def cores():
    """How many this process may use, which in a container are fewer than there are."""
    import joblib

    return joblib.cpu_count()


def counted(jobs):
    """The jobs, if they are a number of processes."""
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise PeftlabError(f"jobs must be a whole number from 1, not {jobs!r}")
    return jobs


def on_gpu():
    import torch

    return torch.cuda.is_available() and os.environ.get("PEFTLAB_DEVICE") != "cpu"


def outcomes(specs, jobs=1, fresh=False, stop=None, each=None, ordered=True, together=None):
    """The Results of these specs in their order, or as they come; with jobs > 1 from as many processes.

    stop, each, together and Ctrl-C as in `run_many`: a run that was cut short has its rows, one that had not begun has
    none.
    """
    specs = list(specs)
    never = lambda one: Result(one, identify(one), one["task"], "", stopped=True)
    waiting, at = {}, 0
    for i, result in arriving(specs, jobs, fresh, stop, each, on_gpu() if together is None else together):
        waiting[i] = result or never(specs[i])
        at = at if ordered else i
        while at in waiting:
            yield waiting.pop(at)
            at += 1


def arriving(specs, jobs, fresh, stop, each, together):
    """Pairs (i, Result) of all specs as they come: first those that go together, if any may, halved until they fit."""
    left, over, waiting = dict(enumerate(specs)), False, groups(specs, fresh) if together else []
    while waiting and not over and not (stop and stop()):
        group = waiting.pop(0)
        tell = each and (lambda i, row, group=group: each(specs[group[i]], row))
        try:
            made = run_together([specs[i] for i in group], tell, stop) or ()
        except OutOfMemory:
            half = len(group) // 2
            waiting = [part for part in (group[:half], group[half:]) if len(part) > 1] + waiting
            continue
        for i, result in zip(group, made, strict=False):
            if not cut(result) and not diverged(result):
                store(result)
            over = over or cut(result)
            del left[i]
            yield i, result
    halt = (lambda: True) if over else stop
    keys = [*left]
    for i, result in side_by_side(functools.partial(earned, fresh=fresh), [*left.values()], jobs, halt, each):
        yield keys[i], result


def groups(specs, fresh):
    """Lists of the numbers of those that could be made in one pass."""
    found = {}
    for i, one in enumerate(specs):
        if fresh or not ledger.find(identify(one)):
            found.setdefault(shape(one), []).append(i)
    parts = (all_[i : i + AT_ONCE] for all_ in found.values() for i in range(0, len(all_), AT_ONCE))
    return [part for part in parts if len(part) > 1]


def finished(come):
    """What was not cut short of Results or other things that were made; in the end KeyboardInterrupt, if any was."""
    short = 0
    for made in come:
        short += cut(made)
        if not cut(made):
            yield made
    if short:
        raise KeyboardInterrupt


def cut(made):
    """Whether it was not begun, or not brought to its end."""
    return made is None or getattr(made, "stopped", False)


def earned(one, each=None, stop=None, fresh=False):
    """The Result of a run. One that diverged has earned nothing."""
    try:
        return run(one, each=each, fresh=fresh, stop=stop)
    except NotFinite as problem:
        known = dict(rows=getattr(problem, "rows", []), versions=versions())
        return Result(one, identify(one), one["task"], "", score=0.0, validation=0.0, **known)


# The processes ------------------------------------------------------------------------------------


def side_by_side(make, items, jobs=1, stop=None, each=None):
    """Pairs (i, make(item, each=…, stop=…)) of the items as they come, from as many processes; for one job from here.

    each(item, row) hears what make tells its own each. Once stop(), each or Ctrl-C says so, make's stop is true, and
    items that have not begun come with None. What make raises is raised here, after all others have stopped.
    """
    if jobs > 1:
        yield from elsewhere(make, items, jobs, stop, each)
        return
    over = False
    for i, item in enumerate(items):
        over = over or bool(stop and stop())
        made = None if over else make(item, each=each and functools.partial(each, item), stop=stop)
        over = cut(made)
        yield i, made


def elsewhere(make, items, jobs, stop, each):
    """`side_by_side` in other processes: rows come through files, and a file tells them to stop."""
    with tempfile.TemporaryDirectory(prefix="peftlab-") as folder:
        halt, letters = pathlib.Path(folder, "stop"), [pathlib.Path(folder, str(i)) for i in range(len(items))]
        pool, mine = workers(jobs), surroundings()
        send = functools.partial(pool.submit, there, make, *mine, bool(each))
        due = {send(item, letter): i for i, (item, letter) in enumerate(zip(items, letters, strict=True))}
        post = [news(letter) for letter in letters]
        try:
            while due:
                try:
                    ended, _ = futures.wait(due, POLL, futures.FIRST_COMPLETED)
                    said = [each(items[i], row) for i in due.values() for row in next(post[i])] if each else []
                    if any(said) or stop and stop():
                        halt.touch()
                except KeyboardInterrupt:
                    if halt.exists():  # asked twice: somebody is in a hurry
                        pool.shutdown(kill_workers=True)
                        raise
                    halt.touch()
                    continue
                for one in ended:
                    yield due.pop(one), answer(one)
        finally:
            halt.touch()
            futures.wait(due)


def workers(jobs):
    """A pool of so many processes of one thread; it is kept for the next sweep. Ctrl-C is for this process alone."""
    from joblib.externals import loky

    quiet = dict(initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    return loky.get_reusable_executor(jobs, timeout=IDLE, env=ONE_THREAD | CACHES, **quiet)


def surroundings():
    """What another process has to know: the folder, our part of the environment, methods that are not the package's."""
    ours = {k: v for k, v in os.environ.items() if k.startswith("PEFTLAB_")} | dict(PEFTLAB_HOME=str(home()))
    return os.getcwd(), ours, {n: m for n, m in METHODS.items() if not m.cls.__module__.startswith("peftlab.")}


def there(make, folder, ours, methods, told, item, letter):
    """make(item) in another process, which writes its rows into the letter; None when all is over before it begins."""
    METHODS.update(methods)
    halt = letter.with_name("stop")
    with contextlib.chdir(folder), patch.dict(os.environ, ours), open(letter, "a", buffering=1) as out:
        tell = lambda row: print(json.dumps(row), file=out)
        return None if halt.exists() else make(item, each=tell if told else None, stop=halt.exists)


def news(letter):
    """Lists of the rows that a letter has had since the last look."""
    read = 0
    while True:
        text = letter.read_bytes()[read:] if letter.exists() else b""
        text = text[: text.rfind(b"\n") + 1]  # the last line may still be on its way
        read += len(text)
        yield [*map(json.loads, text.splitlines())]


def answer(one):
    """What a process has made; what it raised is told as it would be here."""
    try:
        return one.result()
    except futures.process.BrokenProcessPool as problem:
        raise PeftlabError("a process was ended from outside, perhaps for want of memory; take fewer jobs") from problem
    except PeftlabError as problem:
        problem.__cause__ = None  # the other process's traceback
        raise
