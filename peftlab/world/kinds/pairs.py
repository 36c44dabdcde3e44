"""Kinds about two texts: do they say the same, how much of it, and what follows?"""

import dataclasses

from .. import logic
from ..scenes import Ask
from .registry import Example, kind


@kind(labels=("different", "same"), metric="f1", size=512)
def paraphrase(draw, label):
    """Do two sentences say the same?

    The second has other words for the verb and the look. Where it does not say the same, one of them is of another
    meaning, or the thing is another one of its class.
    """
    p = logic.scene(draw, look=0.7, place=0.3, never=0.2)
    other = logic.reworded(draw, p)
    if not label:
        other = logic.missed(draw, other)
    return Example(*draw.rng.sample((p, other), 2))


PARTS = (  # what two scenes can have in common, one point each
    lambda draw, p, o: dataclasses.replace(p, who=o.who),
    lambda draw, p, o: logic.opposite_verb(draw, p),
    lambda draw, p, o: logic.elsewhere(draw, p),
    lambda draw, p, o: logic.opposite_look(draw, p),
    lambda draw, p, o: dataclasses.replace(p, place=o.place),
)


@kind(metric="correlation", kind="regression", size=512)
def similarity(draw, label):
    """How much do two sentences have in common, from 0 (nothing) to 5 (all)?

    One point each for the person, what was done, to what, how it looked, and where; other words for the same count as
    the same.
    """
    p = logic.scene(draw, look=1.0, place=1.0, clear=True)
    other = logic.scene(draw, place=1.0)
    if p.who == other.who or p.place == other.place:
        return similarity(draw, label)
    said = logic.reworded(draw, p)
    for change in draw.rng.sample(PARTS, len(PARTS) - int(label)):
        said = change(draw, said, other)
    return Example(p, said)


@kind(labels=("entailment", "neutral", "contradiction"), metric="accuracy", size=1000)
def entail(draw, label):
    """Does the second sentence follow from the first, may it be, or can it not be?

    A rose is a flower, "bought" and "acquired" are the same, "never" and "every" turn the direction.
    """
    like = form(logic.related(draw, draw.rng.choice(logic.RELATIONS), True))
    while form(pair := logic.related(draw, label, True)) != like:
        pass
    return Example(*pair)


def form(pair):
    """What the second sentence would give away alone, were it not of a random relation's form."""
    p = pair[1]
    return p.never, bool(p.what.look or p.place)


@kind(labels=("no", "yes"), metric="accuracy", size=512)
def answer(draw, label):
    """Is the answer to a question about two sentences yes or no?

    Two people did two things; the question asks about one of them, in other words or by the name of the class.
    """
    told, asked = logic.questioned(draw, bool(label))
    return Example(told, Ask(asked))
