"""Suite memory: what autograd and the optimizer keep, and the peak of a process of its own for each side."""

from . import abroad, alone
from .peers import chosen, named
from .shapes import shape
from .tables import Column

KEYS = ("saved_bytes", "optimizer_bytes", "gradient_bytes", "weight_bytes", "peak_rss", "rise", "allocated", "reserved")
HEADS = dict(saved_bytes="saved MiB", optimizer_bytes="optimizer MiB", peak_rss="peak RSS MiB", rise="rise MiB")
HEADS |= dict(allocated="allocated MiB", reserved="reserved MiB")
ON_GPU = ("allocated", "reserved")
SIDES = ("ours", "theirs")
COLUMNS = (
    Column("shape", "shape"),
    Column("method", "method"),
    *(Column(f"{s}_{k}_mib", h if s == "ours" else "peer's", ".3f") for k, h in HEADS.items() for s in SIDES),
    Column("saved_ratio", "saved, ratio", ".4f"),
)


def columns(options):
    """Without those of a GPU where there is none."""
    return [c for c in COLUMNS if options.device == "cuda" or not any(key in c.key for key in ON_GPU)]


def rows(options):
    """One row for each shape and method: ours_… and theirs_… for each key, in bytes, and saved_ratio. Of `adapters`
    (--adapters) only what is saved is known."""
    for name in options.shapes:
        form = shape(name)
        for one in chosen(options):
            if one.both(form):
                yield held(form, one, options, alone.ask(side="theirs", **how(form, one, options)))
            else:
                yield named(form, one) | dict(note=one.without[form.family])
        for one, theirs, note in abroad.measured(form, options):
            yield named(form, one) | dict(note=note) if note else held(form, one, options, theirs.facts)


def how(form, one, options):
    given = {k: getattr(options, k) for k in ("batch", "tokens", "device", "precision")}
    return dict(shape=form.name, method=one.name) | given


def held(form, one, options, theirs):
    found = dict(ours=alone.ask(side="ours", **how(form, one, options)), theirs=theirs)
    row = {f"{side}_{k}": found[side].get(k) for side in SIDES for k in KEYS}
    row |= {f"{k}_mib": n / 2**20 for k, n in row.items() if n is not None}
    return named(form, one) | row | dict(saved_ratio=row["ours_saved_bytes"] / row["theirs_saved_bytes"])
