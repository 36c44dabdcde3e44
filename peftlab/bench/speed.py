"""Suite speed: a step of ours beside theirs, its twin, full fine-tuning and the floor."""

import statistics

from . import abroad, sides
from .peers import chosen, named
from .shapes import shape
from .stepping import Stepper, in_turns, ratio
from .tables import Column

COLUMNS = (
    Column("shape", "shape"),
    Column("method", "method"),
    Column("peer", "peer"),
    Column("ours_ms", "ms a step", ".1f"),
    Column("theirs_ms", "peer's", ".1f"),
    Column("to_theirs", "ratio to peer", ".3f"),
    Column("noise", "±", ".3f"),
    Column("to_twin", "to twin", ".3f"),
    Column("to_full", "to full", ".3f"),
    Column("to_floor", "to floor", ".3f"),
    Column("gflops", "GFLOPs", ".3f"),
    Column("flops_to_floor", "to floor", ".3f"),
    Column("theirs_flops_to_floor", "peer's", ".3f"),
)


def rows(options):
    """One row for each shape and method; those of `adapters` need its Python (--adapters)."""
    for name in options.shapes:
        form, base = shape(name), shape(name).model().to(options.device)
        for one in chosen(options):
            if one.both(form):
                theirs = stepper(sides.theirs(base, form, one), form, options, after=one.after)
                yield named(form, one) | timed(base, form, one, options, theirs)
            else:
                yield named(form, one) | dict(note=one.without[form.family])
        for one, theirs, note in abroad.measured(form, options):
            found = dict(note=note) if note else timed(base, form, one, options, theirs)
            yield named(form, one) | found | ({} if note else dict(theirs_trained=theirs.facts["trained"]))


def stepper(model, form, options, more=None, after=None):
    batch = form.batch(options.batch, options.tokens, options.device)
    return Stepper(model, batch | (more(form, batch) if more else {}), after, options.precision, options.compile)


def timed(base, form, one, options, theirs):
    """Of each side the median in ms (ours_ms, theirs_ms, ...) and the FLOPs of a step; ratios of ours as medians of
    ratios of neighbours, `noise` being half the distance between the quartiles of `to_theirs`.

    twin: ours once more, as two equal models differ too, and no repetition shows by how much.
    """
    ours, twin = (sides.ours(base, form, one).model for _ in "12")
    steppers = dict(  # ours and theirs in the middle: in both directions each follows the other or a third side
        floor=stepper(sides.floor(base, form), form, options),
        twin=stepper(twin, form, options, one.inputs),
        ours=stepper(ours, form, options, one.inputs),
        theirs=theirs,
        full=stepper(sides.full(base, form), form, options),
    )
    flops = {name: s.flops() for name, s in steppers.items()}
    seconds = in_turns(steppers, options.repeats)
    low, middle, high = ratio(seconds["ours"], seconds["theirs"])
    row = {f"{name}_ms": 1000 * statistics.median(s) for name, s in seconds.items()}
    row |= dict(trained=sides.learning(ours), to_theirs=middle, noise=(high - low) / 2)
    row |= {f"to_{name}": ratio(seconds["ours"], seconds[name])[1] for name in ("twin", "full", "floor")}
    row |= {f"{name}_flops": n for name, n in flops.items()}
    row |= dict(gflops=flops["ours"] / 1e9, flops_to_floor=flops["ours"] / flops["floor"])
    return row | dict(theirs_flops_to_floor=flops["theirs"] / flops["floor"])
