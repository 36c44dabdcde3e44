"""A spec is a JSON-able dict that decides a run completely; here it is made, checked and given its hash."""

import pathlib

from . import __version__, ledger
from .errors import PeftlabError, choose
from .methods import get
from .paths import data
from .recipes import recipe as complete
from .tasks import DEFAULTS
from .training import PRECISIONS
from .world import embedded

HEADS = ("trained", "frozen", "shared")


def spec(
    recipe="lora",
    where=None,
    layers=None,
    *,
    backbone="micro-encoder",
    task="reviews",
    seed=0,
    steps=200,
    batch=32,
    lr=None,
    size=None,
    head="trained",
    precision="fp32",
    accumulate=1,
    pretrained=True,
    every=10,
    task_knobs=None,
    **settings,
):
    """A complete spec: everything that decides a run, as a JSON-able dict.

    recipe: a method's name (with where, layers and settings such as r=8) or a list of rows. lr: None is the method's
    own. size: rows of the training split, None is the task's own. head: trained with the delta, frozen as drawn, or
    shared (trained once by a head-only run, then frozen). precision: fp32, bf16 or fp16. accumulate: parts in which
    each batch is worked off.
    every: steps between rows. task_knobs: `lang` and the knobs of `task`. PeftlabError names what is wrong and what
    would be right.
    """
    rows = complete(recipe, where, layers, **settings)
    whole = dict(steps=steps, batch=batch, accumulate=accumulate, every=every)
    for name, value in whole.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise PeftlabError(f"{name} must be a whole number from 1, not {value!r}")
    if batch % accumulate:
        raise PeftlabError(f"batch {batch} cannot be worked off in {accumulate} equal parts; accumulate must divide it")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise PeftlabError(f"seed must be a whole number from 0, not {seed!r}")
    lr = min(get(row["method"]).lr for row in rows) if lr is None else lr
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 < lr < float("inf"):
        raise PeftlabError(f"lr must be a number above 0, not {lr!r}")
    choose(head, HEADS, "head policy")
    choose(precision, PRECISIONS, "precision")
    knobs = {k: v for k, v in sorted((task_knobs or {}).items()) if v is not None and v != DEFAULTS.get(k)}
    return dict(
        recipe=rows,
        backbone=str(backbone),
        task=str(task),
        seed=seed,
        **whole,
        lr=float(lr),
        size=size,
        head=head,
        precision=precision,
        pretrained=bool(pretrained),
        task_knobs=knobs,
    )


SPEC_KEYS = (
    "recipe backbone task seed steps batch accumulate every lr size head precision pretrained task_knobs"
).split()


def identify(spec):
    """The hash by which a run is found: its spec, the package's version, the content of the task and the weights."""
    others = [t for row in spec["recipe"] for t in row["settings"].get("sources", "").split()]
    task = [t.removeprefix("file:") for t in (spec["task"], *others) if not embedded.known(t)]
    local = [pathlib.Path(p).expanduser() for p in (spec["backbone"], data() / "backbones" / spec["backbone"], *task)]
    known = [ledger.fingerprint(p) for p in local if p.exists()]
    return ledger.digest([spec, __version__, known, *map(embedded.version, (spec["task"], *others))])


def like(other, method, **changes):
    """The spec of a baseline: everything as in `other`, but this method with its own defaults and learning rate."""
    return spec(**other | dict(recipe=method, lr=None, head="trained") | changes)


def whole(given):
    if isinstance(given, str):
        return spec(given)
    for name in given:
        choose(name, SPEC_KEYS, "key of a spec")
    return spec(**given)
