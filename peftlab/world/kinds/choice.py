"""Kinds that ask which: which sense, which effect, which person."""

from .. import lexicon as lex
from .. import logic, things
from ..scenes import Act, Link, Reason, Thing, pronoun
from .registry import Example, kind


@kind(labels=("different", "same"), metric="accuracy", size=512)
def sense(draw, label):
    """Does a word mean the same in two sentences?

    Each word has two senses ("bat": an animal and a tool); what is done to it tells which one is meant.
    """
    noun = draw.pick(list(things.SENSES))
    first, second = draw.rng.sample(things.SENSES[noun], 2)
    return Example(used(draw, noun, first), used(draw, noun, first if label else second))


def used(draw, noun, kind):
    """A scene in which the noun is of this class, and the verb shows it."""
    other = next(k for k in things.SENSES[noun] if k != kind)
    while True:
        p = logic.scene(draw, kind=kind, place=0.3, never=0.1)
        if other not in logic.verb_of(p.verb).classes:
            return logic.changed(p, noun=noun)


ALIKE = (  # scenarios of which one could also lead to what the other leads to: no choice between them
    "wet freezing ill muddy tired", "tired hungry ill", "hungry poor", "poor guilty", "rich proud", "proud guilty",
    "proud tired", "freezing scared tired", "scared guilty", "astray scared tired", "astray wet muddy",
)  # fmt: skip


@kind(labels=("first", "second"), metric="accuracy")
def cause(draw, label):
    """Which of two things came of it (or brought it about): the first or the second?"""
    right, wrong = draw.rng.sample(list(things.SCENARIOS), 2)
    if any({right, wrong} <= {*alike.split()} for alike in ALIKE):
        return cause(draw, label)
    (causes, effects), others = things.scenario(right), things.scenario(wrong)
    who, back = logic.person(draw), draw.rng.random() < 0.3
    given, meant, not_meant = (effects, causes, others[0]) if back else (causes, effects, others[1])
    pair = [Act(logic.again(who), draw.pick(meant)), Act(logic.again(who), draw.pick(not_meant))]
    question = Link(Act(who, draw.pick(given)), "because" if back else "so", None)
    return Example(question, tuple(pair if label == 0 else pair[::-1]))


@kind(labels=("first", "second"), metric="accuracy")
def refer(draw, label):
    """Who does the pronoun mean: the person named first or second?

    "Anna thanked Kate because she was kind" is about Kate, "Anna impressed Kate because she was kind" about Anna.
    """
    passive = draw.rng.random() < 0.4
    role = "who" if (label == 0) != passive else "whom"
    polarity = draw.rng.choice((1, -1))
    group = draw.rng.choice((things.SHE, things.HE))
    who, whom = (Thing(n, "") for n in draw.rng.sample([n for n in group if n in lex.NAMES], 2))
    verb = draw.pick(things.FEELINGS[role, polarity].split())
    quality = draw.pick([a.word for a in lex.adjectives(polarity, "person")])
    return Example(Reason(who, verb, whom, pronoun(who.noun), quality, passive))
