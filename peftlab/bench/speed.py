"""Suite speed: a step of ours beside theirs, full fine-tuning and the floor."""

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
                yield named(form, one) | timed(base, form, one, options)
            else:
                yield named(form, one) | dict(note=one.without[form.family])
        for one, theirs, note in abroad.measured(form, options):
            found = dict(note=note) if note else timed(base, form, one, options, theirs)
            yield named(form, one) | found | ({} if note else dict(theirs_trained=theirs.facts["trained"]))


def stepper(model, form, options, more=None, after=None):
    batch = form.batch(options.batch, options.tokens, options.device)
    return Stepper(model, batch | (more(form, batch) if more else {}), after, options.precision, options.compile)


def timed(base, form, one, options, there=None):
    """Of each side the median in ms (ours_ms, theirs_ms, ...) and the FLOPs of a step; ratios of ours as medians of
    ratios of neighbours, `noise` being half the distance between the quartiles of `to_theirs`.

    there: their side, where it is a process. All others are built anew several times: two equal models differ too
    (perhaps by where they lie in memory), and no repetition of their steps would show by how much.
    """
    rounds = [turns(base, form, one, options, there) for _ in range(options.builds)]
    facts, seconds = rounds[0][0], {side: sum((s[side] for _, s in rounds), []) for side in rounds[0][1]}
    low, middle, high = ratio(seconds["ours"], seconds["theirs"])
    row = {f"{side}_ms": 1000 * statistics.median(s) for side, s in seconds.items()}
    row |= facts | dict(to_theirs=middle, noise=(high - low) / 2)
    row |= {f"to_{side}": ratio(seconds["ours"], seconds[side])[1] for side in ("full", "floor")}
    row |= dict(gflops=row["ours_flops"] / 1e9, flops_to_floor=row["ours_flops"] / row["floor_flops"])
    return row | dict(theirs_flops_to_floor=row["theirs_flops"] / row["floor_flops"])


def turns(base, form, one, options, there):
    """(what learns and the FLOPs, seconds of each side's steps), of sides built now."""
    ours = sides.ours(base, form, one).model
    steppers = dict(  # ours and theirs in the middle: in both directions each follows the other or a third side
        floor=stepper(sides.floor(base, form), form, options),
        ours=stepper(ours, form, options, one.inputs),
        theirs=there or stepper(sides.theirs(base, form, one), form, options, after=one.after),
        full=stepper(sides.full(base, form), form, options),
    )
    facts = dict(trained=sides.learning(ours)) | {f"{side}_flops": s.flops() for side, s in steppers.items()}
    return facts, in_turns(steppers, options.repeats)
