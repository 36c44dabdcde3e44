"""Kinds about two texts: do they say the same, how much of it, and what follows?"""

import dataclasses

from .. import logic, things
from ..scenes import Ask
from .registry import Example, kind


@kind(labels=("different", "same"), metric="f1", size=2000, unseen=0.34, version=4)
def paraphrase(draw, label):
    """Do two sentences say the same?

    The second has other words for the verb and the look. Where it does not say the same, three things are another:
    the deed, the thing (of the same class), and how it looks; in two pairs of ten only two of them, in one only one.
    """
    p = logic.scene(draw, look=1.0, place=0.2, clear=True)
    other = logic.reworded(draw, p)
    if not label:
        ways = logic.opposite_look, logic.opposite_verb, logic.elsewhere
        for way in draw.rng.sample(ways, draw.rng.choices((1, 2, 3), (1, 2, 7))[0]):
            other = way(draw, other)
    return Example(*draw.rng.sample((p, other), 2))


PARTS = (  # what two scenes can have in common, one point each
    lambda draw, p, o: dataclasses.replace(p, who=o.who),
    lambda draw, p, o: logic.opposite_verb(draw, p),
    lambda draw, p, o: logic.elsewhere(draw, p),
    lambda draw, p, o: logic.opposite_look(draw, p),
    lambda draw, p, o: dataclasses.replace(p, place=o.place),
)


@kind(metric="correlation", kind="regression", size=2000, unseen=0.34)
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
    like = form(paired(draw, draw.rng.choice(logic.RELATIONS)))
    while form(pair := paired(draw, label)) != like:
        pass
    return Example(*pair)


def paired(draw, relation):
    """Premise and hypothesis. What may be may also not be, so "never" in one of them alone is no contradiction yet."""
    first, second = logic.related(draw, relation, True)
    turned = relation == logic.NEUTRAL and draw.rng.random() < 0.5
    return first, logic.denied(second) if turned else second


def form(pair):
    """What the second sentence would give away alone, were it not of a random relation's form."""
    p = pair[1]
    return p.never, bool(p.what.look or p.place)


@kind(labels=("no", "yes"), metric="accuracy", size=2000, unseen=0.34)
def answer(draw, label):
    """Is the answer to a question about two sentences yes or no?

    Two people did two things; the question asks about one of them, in other words or by the name of the class. What is
    not so is mostly another deed to a thing of another class, sometimes what the other of the two did.
    """
    first, second = told = tuple(logic.scene(draw, place=0.2, clear=True) for _ in range(2))
    met = {*logic.kinds_of(first.what.noun), *logic.kinds_of(second.what.noun)}
    if first.who == second.who or len(met) < 2:
        return answer(draw, label)
    about, other = draw.rng.sample(told, 2)
    asked = logic.reworded(draw, about)
    if not label:
        kind = draw.rng.choice([k for k in things.CLASSES if k not in met])
        asked = logic.scene(draw, kind=kind, clear=True) if draw.rng.random() < 0.8 else logic.reworded(draw, other)
    if draw.rng.random() < 0.5:
        asked = logic.changed(asked, noun=logic.kind_of(draw, asked))
    return Example(told, Ask(dataclasses.replace(asked, who=about.who, place="")))
