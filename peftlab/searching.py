"""The search of AutoPEFT (2301.12132): which sizes, in which layers, give the best score for how many numbers.

Its space is the hybrid `autopeft`. Its Bayesian search has a Gaussian process for the score and asks for the design
whose expected gain of hypervolume is the greatest (proposing.py); random designs and evolution are its yardsticks. The
process of the authors' code has sparse priors (SAAS), the one here has botorch's own.
"""

import time
from typing import NamedTuple

from . import ledger
from .asking import Desk, alone, journal
from .attachment import attach
from .backbones import backbone as load_backbone
from .backbones import n_layers
from .errors import PeftlabError, choose
from .fronts import Search
from .many import outcomes
from .methods import get
from .specs import SPEC_KEYS, identify, spec
from .tasks import task as load_task

HOW = ("bayes", "random", "evolution")
PARTS = tuple(get("autopeft").knobs)
SHARED = tuple(k for k in SPEC_KEYS if k not in ("recipe", "seed"))


# The space ----------------------------------------------------------------------------------------


class Space(NamedTuple):
    """Every part in a size out of `sizes`, in the layers that are on.

    prices: for each part and layer (a, b): size r trains a·r + b numbers there.
    """

    sizes: tuple
    prices: dict

    @property
    def layers(self):
        return len(self.prices[PARTS[0]])

    @property
    def designs(self):
        """How many there are that train anything."""
        return (len(self.sizes) ** len(PARTS) - (0 in self.sizes)) * (2**self.layers - 1)

    @property
    def largest(self):
        return dict.fromkeys(PARTS, self.sizes[-1]), [*range(self.layers)]

    def numbers(self, settings, layers):
        """What a design trains, without the head."""
        return sum(a * r + b for part, r in settings.items() if r for a, b in (self.prices[part][i] for i in layers))

    def distributions(self):
        """For optuna: a step on the scale of sizes for each part, and a bit for each layer."""
        from optuna.distributions import IntDistribution

        steps = {part: IntDistribution(0, len(self.sizes) - 1) for part in PARTS}
        return steps | {f"layer {i}": IntDistribution(0, 1) for i in range(self.layers)}

    def design(self, params):
        """(settings, layers) of what optuna has drawn."""
        return {part: self.sizes[params[part]] for part in PARTS}, [
            i for i in range(self.layers) if params[f"layer {i}"]
        ]


def space(backbone, sizes=None):
    """The Space of a backbone; sizes: None are 0 and the powers of two up to its width."""
    model = load_backbone(backbone)
    if sizes is None:
        sizes = (0, *(2**i for i in range(model.config.hidden_size.bit_length())))
    elif not isinstance(sizes, list | tuple) or any(type(size) is not int or size < 0 for size in sizes):
        raise PeftlabError(f"sizes must be a list of whole numbers from 0, such as [0, 4, 16], not {sizes!r}")
    return Space(tuple(sorted(set(sizes))), {part: prices(model, part, max([2, *sizes])) for part in PARTS})


def prices(model, part, most):
    """(a, b) of every layer: a part of size r trains a·r + b numbers there. Two sizes are enough to know the line."""
    found = []
    for size in (1, most):
        undo = attach(model, spec("autopeft", **dict.fromkeys(PARTS, 0) | {part: size})["recipe"])
        numbers = [0] * n_layers(model)
        for delta, m in undo.placed:
            numbers[m.block_index if m.site == "block" else m.layer] += sum(p.numel() for p in delta.parameters())
        undo()
        found.append(numbers)
    slopes = [(high - low) // (most - 1) for low, high in zip(*found, strict=True)]
    return [(a, low - a) for a, low in zip(slopes, found[0], strict=True)]


# The search ---------------------------------------------------------------------------------------


def search(
    task="entail", backbone="nano-encoder", how="bayes", evaluations=20, first=8, seconds=None, seed=0, *, jobs=1,
    fresh=False, each=None, stop=None, sizes=None, **settings,
):  # fmt: skip
    """Look for the designs of `autopeft` with the best validation for their number of trained numbers; a Search.

    how: "bayes" (Gaussian processes and expected hypervolume), "random" or "evolution" (NSGA-II, generations of
    `first`). evaluations: runs altogether, of which `first` are random, and the same in every kind of search with this
    seed. seconds: no run begins after so many of this call. seed: of the samplers and of every run. jobs: runs side by
    side, in processes; their designs are chosen together, so that other jobs are another search. sizes: None are 0 and
    the powers of two up to the width. settings: of `pl.spec`, such as steps and lr; one lr for all designs, the
    hybrid's own by default.

    Nothing is lost when the process is killed: the same call goes on where it was, with the designs that it would have
    asked for anyway, and finished runs are found in the ledger. A call with more evaluations continues, one with fewer
    gives the first ones. (What is continued has the trials of a single call, with several jobs only if evaluations were
    a multiple of them.) `fresh` begins anew and makes every run again. each(trial) is called for every new trial; a
    true answer of it or of stop() ends the search, as Ctrl-C does, and what is there is returned.
    PeftlabError says what was wrong and what would be right.
    """
    begin = time.monotonic()
    check(how, evaluations, first, seed, jobs, settings)
    room = space(backbone, sizes)
    if evaluations > room.designs:
        raise PeftlabError(f"evaluations {evaluations} are more than the {room.designs} designs that these sizes allow")
    settings = dict(task=task, backbone=backbone, lr=get("autopeft").lr, every=settings.get("steps", 200)) | settings
    whole = spec("autopeft", seed=seed, **room.largest[0], **settings)
    shared = {k: whole[k] for k in SHARED}
    data = load_task(task, size=whole["size"], seed=seed, **whole["task_knobs"])
    if data.lower_is_better:
        raise PeftlabError(f"{task} is scored by {data.metric}, which is to fall; take a metric that is to rise")
    reference = [room.numbers(*room.largest), data.majority() or 0.0]
    found = Search(how, seed, shared, room.layers, data.metric, reference)
    key = ledger.digest([how, first, jobs, room.sizes, identify(whole)])
    late = lambda: seconds is not None and time.monotonic() - begin >= seconds
    with journal(key, fresh) as study, alone():
        desk = Desk(study, room, how, first, seed, jobs)
        try:
            found.stopped = not proceed(desk, found, evaluations, late, fresh, each, stop)
        except KeyboardInterrupt:
            found.stopped = True
        found.trials = desk.done()[:evaluations]
    return found


def proceed(desk, found, evaluations, late, fresh, each, stop):
    """Ask, run and tell until there are enough; whether nobody stopped it."""
    from tqdm import tqdm

    done = len(desk.done())
    shown = dict(total=evaluations, initial=min(done, evaluations), unit="run", disable=None)  # None: on a terminal
    with tqdm(desc=f"search, {desk.how}", **shown) as bar:
        while done < evaluations and not late():
            if stop and stop():
                return False
            due = desk.batch(evaluations)
            specs = [found.spec(record) for _, record in due]
            for (number, record), result in zip(due, outcomes(specs, desk.jobs, fresh, stop), strict=True):
                if result.stopped:
                    return False
                told, done = desk.tell(number, record, result), done + 1
                bar.update()
                if each and each(told):
                    return False
    return True


def check(how, evaluations, first, seed, jobs, settings):
    """PeftlabError for what no search can be made of."""
    choose(how, HOW, "kind of search")
    whole = dict(evaluations=evaluations, first=first, jobs=jobs)
    for name, value in whole.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise PeftlabError(f"{name} must be a whole number from 1, not {value!r}")
    if first > evaluations:
        raise PeftlabError(f"first {first} is above evaluations {evaluations}; take at most {evaluations}")
    for name in settings:
        choose(name, SHARED, "setting of a search")
