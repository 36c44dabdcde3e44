"""Trained deltas of other tasks, on which a method builds: trained by runs of their own, kept, and handed over."""

from .checkpoint import kept_state
from .keeping import Stopped, kept
from .methods import get
from .paths import home
from .specs import identify, spec


def source_specs(other):
    """{index of a row: the specs of its sources}, for the rows of a spec that name any.

    A source is of the same backbone, sites and seed, of the method that the row's method builds on (`builds_on`), and
    has its settings as far as they are the row's as well; its task has its own size, its method its own rate.
    """
    return {i: [of_task(other, row, name) for name in row["settings"]["sources"].split()]
            for i, row in enumerate(other["recipe"]) if row["settings"].get("sources")}  # fmt: skip


def of_task(other, row, name):
    base = get(get(row["method"]).cls.builds_on)
    settings = {n: v for n, v in row["settings"].items() if n in base.knobs}
    first = dict(method=base.name, where=row["where"], layers=row["layers"], settings=settings)
    return spec(**other | dict(recipe=[first], task=name, lr=None, size=None, head="trained", task_knobs=None))


def trained(wanted, stop=None):
    """The delta that a run of this spec leaves, as `kept_state`; kept under `home()/deltas`, trained when it is not."""
    key = identify(wanted)

    def make():
        from .runs import execute

        state = {}
        keep = lambda attached: state.update({n: t.cpu() for n, t in kept_state(attached).items()})
        if execute(wanted, key, stop=stop, keep=keep)[0].stopped:
            raise Stopped(f"the source {wanted['task']} was interrupted; run again to train it")
        return state

    return kept(home() / "deltas" / f"{key}.safetensors", make, "a source", stop)


def gather(other, stop=None):
    """{index of a row: the states of its sources}, trained where need be."""
    return {i: [trained(one, stop) for one in specs] for i, specs in source_specs(other).items()}


def hand_over(attached, found):
    """Each delta of a row takes what its sources have at its place: `take(states)`, a list of {name: tensor}."""
    for i, states in found.items():
        for n, delta in enumerate(d for d in attached.deltas if d.row == i):
            part = f"{n}."
            delta.take([{k[len(part):]: t for k, t in s.items() if k.startswith(part)} for s in states])  # fmt: skip
