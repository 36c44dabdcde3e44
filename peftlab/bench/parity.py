"""Suite parity: do both sides train as many numbers, and do equal numbers give equal losses?"""

import torch

from . import sides
from .peers import chosen, named
from .shapes import shape
from .tables import Column

CLOSE, PRECISION = 2e-6, "fp64"  # transformers gives the loss of a decoder in fp32: two of its steps
COLUMNS = (
    Column("shape", "shape"),
    Column("method", "method"),
    Column("peer", "peer"),
    Column("trained", "trained", ",d"),
    Column("peer_trained", "peer's", ",d"),
    Column("loss", "loss", ".6f"),
    Column("peer_loss", "peer's", ".6f"),
    Column("verdict", "verdict"),
)


def rows(options):
    """One row for each shape and method, computed in double precision so that rounding plays no part."""
    for name in options.shapes:
        base = sides.wide(shape(name).model().double().to(options.device))
        for one in chosen(options):
            yield compared(base, shape(name), one, options)


@torch.no_grad()
def compared(base, form, one, options):
    """trained, loss (with ours), peer_trained, peer_loss, apart (of the losses), moved (of ours, from the backbone's)
    and a verdict: same, or in what they differ, or WRONG."""
    row = named(form, one)
    batch = form.batch(options.batch, options.tokens, options.device)
    if not one.both(form):
        return row | dict(verdict=one.without[form.family])
    (ours, attached), there = sides.ours(base, form, one), sides.theirs(base, form, one)
    trained = dict(trained=sides.learning(ours), peer_trained=sides.learning(there))
    differs = one.differs.get(form.family)
    if differs:
        return row | trained | dict(verdict=differs)
    if one.moved:
        sides.unsettle(attached)
    one.carry(sides.Pair(ours, attached, there))
    given = batch | one.inputs(form, batch)
    loss, peer_loss = ours(**given).loss.item(), there(**batch).loss.item()
    attached.toggle(False)
    moved = abs(loss - ours(**given).loss.item())
    found = dict(loss=loss, peer_loss=peer_loss, apart=abs(loss - peer_loss), moved=moved)
    right = found["apart"] < CLOSE and trained["trained"] == trained["peer_trained"]
    return row | trained | found | dict(verdict="same" if right else "WRONG")
