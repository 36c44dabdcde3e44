"""Kinds that ask which: which sense, which effect, which person."""

from .. import lexicon as lex
from .. import logic, things
from ..corpus import felt
from ..scenes import Act, Link, Thing
from .registry import Example, kind


@kind(labels=("different", "same"), metric="accuracy", size=512)
def sense(draw, label):
    """Does a word mean the same in two sentences?

    Each word has two senses ("bat": an animal and a tool); what is done to it tells which one is meant.
    """
    noun = draw.pick(list(things.SENSES))
    first, second = draw.rng.sample(things.SENSES[noun], 2)
    return Example(logic.used(draw, noun, first), logic.used(draw, noun, first if label else second))


@kind(labels=("first", "second"), metric="accuracy", size=2000, unseen=0.34)
def cause(draw, label):
    """Which of two things came of it (or brought it about): the first or the second?"""
    word, given, right, wrong = logic.alternatives(draw)
    who = logic.person(draw)
    pair = tuple(Act(logic.again(who), phrase) for phrase in ((right, wrong), (wrong, right))[label])
    return Example(Link(Act(who, given), word), pair)


@kind(labels=("first", "second"), metric="accuracy")
def refer(draw, label):
    """Who does the pronoun mean: the person named first or second?

    "Anna thanked Kate because she was kind" is about Kate, "Anna impressed Kate because she was kind" about Anna, and
    "so she was glad" about whom it was done to. That is seldom asked, as there the passive alone would tell.
    """
    group = [Thing(n, "") for n in draw.rng.choice((things.SHE, things.HE)) if n in lex.NAMES]
    group += [Thing(n) for n in things.PEOPLE[draw.domain]] * 4  # of whom no text has told which pronoun they have
    wanted = ("so", not label) if draw.rng.random() < 0.15 else ("because", draw.rng.random() < 0.5)
    while True:  # half of "because" is passive, so that the verb alone does not tell
        said, meant = felt(draw, *draw.rng.sample(group, 2))
        if said.who != said.whom and (said.word, said.passive, meant) == (*wanted, label):
            return Example(said)
