"""Asking optuna for designs and telling it what they have earned, in a journal that outlives its process."""

import contextlib
import itertools
import math
import time
import warnings

import torch

from . import ledger
from .errors import PeftlabError
from .paths import home

TRIES = 4  # designs that a sampler may ask for that are empty or known, before one is drawn at random


class Desk:
    """Asks a study of optuna for new designs, and tells it what they have earned.

    Every question gets a sampler of its own, seeded by the search's seed and the question's place. What it asks for
    thus follows from what has been told before, whether in this process or in one that was killed.
    """

    def __init__(self, study, space, how, first, seed, jobs):
        self.study, self.space, self.how, self.first, self.seed, self.jobs = study, space, how, first, seed, jobs
        for trial in self.trials("RUNNING"):
            if "accepted" not in trial.user_attrs:  # killed while it was asked for
                study.tell(trial.number, state=state("FAIL"))

    def trials(self, name):
        return self.study.get_trials(deepcopy=False, states=(state(name),))

    def done(self):
        """The records of what has been told."""
        kept = self.study.user_attrs
        return [kept[str(trial.number)] for trial in self.trials("COMPLETE")]

    def batch(self, evaluations):
        """The next designs, to be run side by side: [(number of optuna's trial, record)].

        They begin with those whose runs were killed. A batch ends at a multiple of `jobs`, with the first designs, or
        with the last.
        """
        done, due = len(self.trials("COMPLETE")), [(t.number, t.user_attrs["accepted"]) for t in self.trials("RUNNING")]
        ends = [done - done % self.jobs + self.jobs, evaluations, self.first]
        while done + len(due) < min(end for end in ends if end > done):
            due.append(self.ask(done + len(due)))
        return due

    def ask(self, place):
        """(number of optuna's trial, record) of a design that trains something and is not known yet."""
        start, known = time.perf_counter(), [self.space.design(t.params) for t in self.asked()]
        for attempt in itertools.count():
            by = "first" if place < self.first else self.how if attempt < TRIES else "random"
            self.study.sampler = sampler(self.space, self.how, by, self.first, seed_of(self.seed, place, attempt))
            trial = self.study.ask(self.space.distributions())
            settings, layers = design = self.space.design(trial.params)
            if (numbers := self.space.numbers(*design)) and design not in known:
                break
            self.study.tell(trial, state=state("FAIL"))
        asking = time.perf_counter() - start
        record = dict(number=place + 1, by=by, settings=settings, layers=layers, numbers=numbers, asking=asking)
        trial.set_user_attr("accepted", record)
        return trial.number, record

    def asked(self):
        return [t for name in ("COMPLETE", "RUNNING") for t in self.trials(name) if "accepted" in t.user_attrs]

    def tell(self, number, record, result):
        """Keep what a design has earned; returns its whole record."""
        record = record | dict(hash=result.hash, validation=result.validation, score=result.score)
        record |= dict(seconds=result.seconds, diverged=not result.metric)
        self.study.set_user_attr(str(number), record)
        self.study.tell(number, [result.validation, math.log10(record["numbers"])])
        return record


def state(name):
    from optuna.trial import TrialState

    return TrialState[name]


def seed_of(*what):
    return int(ledger.digest(what)[:8], 16)


def sampler(space, how, by, first, seed):
    """The sampler that answers one question. The first designs are the same in every kind of search."""
    from optuna import samplers

    if how == "evolution":  # also for a random design: those of other samplers belong to no generation
        everything = 1.0 if by == "random" else None
        return samplers.NSGAIISampler(population_size=max(2, first), mutation_prob=everything, seed=seed)
    if by != "bayes":
        return samplers.RandomSampler(seed=seed)
    from optuna_integration.botorch import BoTorchSampler

    from .proposing import proposer

    options = dict(n_startup_trials=1, consider_running_trials=True, seed=seed)
    return BoTorchSampler(candidates_func=proposer(space), **options)


@contextlib.contextmanager
def journal(key, fresh=False):
    """The study that is kept under `home()/search`, for one process at a time.

    The lock is the system's, which a killed process cannot leave behind, and so is the study's own.
    """
    import filelock
    import optuna
    from optuna.storages.journal import JournalFileBackend

    path = home() / "search" / f"{key}.journal"
    path.parent.mkdir(exist_ok=True)
    lock = filelock.FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        said = "this search is running in another process; wait for its end, or take another seed"
        raise PeftlabError(said) from None
    loud = optuna.logging.get_verbosity()
    try:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        if fresh:
            path.unlink(missing_ok=True)
        mend(path)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
        yield optuna.create_study(
            storage=storage, study_name=key, load_if_exists=True, directions=("maximize", "minimize")
        )
    finally:
        optuna.logging.set_verbosity(loud)
        lock.release(force=True)


def mend(path):
    """Cut off a last line that was killed while it was written; optuna would never read beyond it."""
    if path.exists() and not (text := path.read_bytes()).endswith(b"\n"):
        path.write_bytes(text[: text.rfind(b"\n") + 1])


@contextlib.contextmanager
def alone():
    """Samplers work in one thread, so that they repeat, and keep their warnings to themselves."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
