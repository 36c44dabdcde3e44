"""What a search has found: its trials, those that nothing beats, and the best of them on fresh seeds. No torch here."""

import dataclasses
import math

from .errors import PeftlabError


@dataclasses.dataclass
class Search:
    """The trials of one search, in the order in which they were asked for.

    settings: what all runs share. layers: how many the backbone has. reference: [numbers, score], the corner from which
    hypervolume is measured: the largest design, and the best constant answer. A trial: number; by (who asked for it:
    "first", "bayes", "evolution" or "random"); settings and layers of the design; numbers (trained, without the head);
    hash of its run; validation; score on test, which nothing is chosen by; seconds of training; asking, seconds of the
    sampler; diverged.
    """

    how: str
    seed: int
    settings: dict
    layers: int
    metric: str
    reference: list
    trials: list = dataclasses.field(default_factory=list, repr=False)
    stopped: bool = False

    @classmethod
    def of(cls, record):
        """The Search that `json()` has written down."""
        return cls(**record)

    def json(self):
        """A JSON-able dict of all fields."""
        return dataclasses.asdict(self)

    def front(self):
        """The trials that no other beats: none has at most their numbers and at least their validation, and differs."""
        return sorted((t for t in self.trials if not any(beats(o, t) for o in self.trials)), key=order)

    def hypervolume(self, reference=None):
        """The area that the front covers: score on validation times decades (powers of ten) of numbers.

        reference: (numbers, score) of the corner; None is the search's own.
        """
        return hypervolume(self.trials, reference or self.reference)

    def growth(self, reference=None):
        """The hypervolume after each trial."""
        return [hypervolume(self.trials[:i], reference or self.reference) for i in range(1, len(self.trials) + 1)]

    def best(self, budget=None):
        """The best trial on validation among those of at most `budget` numbers (None: all); of equals the smallest."""
        within = [t for t in self.trials if budget is None or t["numbers"] <= budget]
        if not within:
            least = min((t["numbers"] for t in self.trials), default=None)
            known = "it has no trials yet" if least is None else f"its smallest trains {least:,}"
            raise PeftlabError(f"no trial of this search trains at most {budget} numbers; {known}")
        return min(within, key=lambda t: (-t["validation"], t["numbers"], t["number"]))

    def spec(self, trial, seed=None):
        """The spec of a trial, as it ran or with another seed."""
        from .specs import spec

        layers = trial["layers"] if len(trial["layers"]) < self.layers else None  # as a run of all layers has it
        seed = self.seed if seed is None else seed
        return spec("autopeft", layers=layers, seed=seed, **trial["settings"], **self.settings)

    def again(self, seeds=range(100, 105), budgets=(None,), jobs=1):
        """Rows, one for the winner of each budget: what it won with, and what it gets with seeds that chose nothing.

        validation and score: in the search. validations and scores: with each of the seeds. `…_mean` and `…_half`:
        their mean and half of its 95 % interval (None for one seed). Winners are chosen on validation; one that wins
        several budgets has one row. PeftlabError for the seed of the search itself.
        """
        from .findings import spread
        from .many import outcomes

        seeds = list(seeds)
        if not seeds or self.seed in seeds:
            said = f"seed {self.seed} is the one" if seeds else "without seeds there is nothing"
            raise PeftlabError(f"fresh seeds are needed, and {said} of the search; take for example range(100, 105)")
        won = {}
        for budget in budgets:
            won.setdefault(self.best(budget)["number"], budget)
        winners = [next(t for t in self.trials if t["number"] == number) for number in won]
        specs = [self.spec(t, seed) for t in winners for seed in seeds]
        found = list(outcomes(specs, jobs))
        if any(r.stopped for r in found):
            raise KeyboardInterrupt
        rows = []
        for i, (t, budget) in enumerate(zip(winners, won.values(), strict=True)):
            mine = found[i * len(seeds) : (i + 1) * len(seeds)]
            row = {k: t[k] for k in ("number", "numbers", "settings", "layers", "validation", "score")}
            row |= dict(how=self.how, seed=self.seed, budget=budget, metric=self.metric, seeds=seeds)
            for what in ("validation", "score"):
                values = [getattr(r, what) for r in mine]
                mean, half = spread(values)
                row |= {f"{what}s": values, f"{what}_mean": mean, f"{what}_half": half}
            rows.append(row)
        return rows


def order(trial):
    return trial["numbers"], -trial["validation"], trial["number"]


def beats(one, other):
    """Whether a trial is nowhere worse than another, and somewhere better."""
    values = lambda t: (t["numbers"], -t["validation"])
    return all(a <= b for a, b in zip(values(one), values(other), strict=True)) and values(one) != values(other)


def hypervolume(trials, reference):
    """Area between the steps of the front and the reference (numbers, score), numbers as their decimal logarithm."""
    (most, floor), area = reference, 0.0
    for t in sorted(trials, key=order):
        if t["numbers"] < most and t["validation"] > floor:
            area += (t["validation"] - floor) * (math.log10(most) - math.log10(t["numbers"]))
            floor = t["validation"]
    return area
