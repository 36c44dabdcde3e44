"""Kinds about two texts: do they say the same, how much of it, and what follows?"""

import dataclasses

from .. import logic, things
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
        other = draw.rng.choice((opposite_look, opposite_verb, logic.elsewhere))(draw, other)
    return Example(*draw.rng.sample((p, other), 2))


def opposite_verb(draw, prop):
    """Another thing done: the opposite where there is one, else what is done to the same class."""
    done = [w for name in things.verbs(logic.kind_of(draw, prop)) for w in things.VERBS[name].words]
    others = [w for w in things.opposites(prop.verb) if w in done]
    others = others or [w for w in done if w not in logic.verb_of(prop.verb).words]
    return dataclasses.replace(prop, verb=draw.pick(others))


def opposite_look(draw, prop):
    """The opposite of how the thing looks (where it is not told: another verb)."""
    if not prop.what.look:
        return opposite_verb(draw, prop)
    return logic.changed(prop, look=draw.pick(things.opposites(prop.what.look)))


PARTS = (  # what two scenes can have in common, one point each
    lambda draw, p, o: dataclasses.replace(p, who=o.who),
    lambda draw, p, o: opposite_verb(draw, p),
    lambda draw, p, o: logic.elsewhere(draw, p),
    lambda draw, p, o: logic.changed(p, look=draw.pick(things.opposites(p.what.look))),
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
    first, second = (logic.scene(draw, place=0.2, clear=True) for _ in range(2))
    if first.who == second.who or logic.kinds_of(first.what.noun) == logic.kinds_of(second.what.noun):
        return answer(draw, label)
    about, other = draw.rng.sample((first, second), 2)
    asked = logic.reworded(draw, dataclasses.replace(about, place=""))
    if not label:  # the other's thing only where it is something one does that to
        suits = set(logic.kinds_of(other.what.noun)) <= set(logic.verb_of(about.verb).classes)
        wrong = draw.rng.choice(("who", "verb", "what", "what") if suits else ("who", "verb"))
        said = getattr(opposite_verb(draw, about) if wrong == "verb" else other, wrong)
        asked = dataclasses.replace(asked, **{wrong: said})
    if draw.rng.random() < 0.6:
        asked = logic.changed(asked, noun=logic.kind_of(draw, asked))
    return Example((first, second), Ask(asked))
