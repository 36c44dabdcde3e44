"""Kinds about one sentence: is it well said, for or against, and what about?"""

import dataclasses

from .. import lexicon as lex
from .. import logic, things
from ..corpus import ASIDES, talked
from ..grammar import Mix, sample_clause, sample_sentence
from ..scenes import Broken, Prop, say
from .registry import Example, kind

SHARES = dict(intensified=0.20, negated=0.35, attributed=0.22, joined=0.10, contrast=0.85, event=0.0)
WORDS = {p: [[a.word for a in lex.adjectives(p) if a.kind == k] for k in lex.ADJECTIVES[p]] for p in lex.ADJECTIVES}


def judging(draw, **shares):
    """The Mix whose adjectives are those that the split may use."""
    return Mix(**shares, words={p: {w for words in lists for w in draw.seen(words)} for p, lists in WORDS.items()})


@kind(labels=("negative", "positive"), metric="accuracy")
def reviews(draw, label):
    """Is a sentence for or against?

    The label is the polarity of the sentence. Negation turns a word round ("the soup was not bad" is positive). In a
    contrast the main clause decides: the part without "although", "even though" or "while", and the part after "but".
    With "and" both parts agree. Who says it does not matter. So much contrast and negation is what makes the task hard
    for a head alone.
    """
    return Example(sample_sentence(draw.rng, draw.domain, (-1, 1)[label], judging(draw, **SHARES)))


@kind(labels=("unacceptable", "acceptable"), metric="matthews", size=512)
def grammar(draw, label):
    """Can it be said like this?

    What is wrong is the number of the verb ("the steaks was fresh"), the order of two words, or a verb whose object
    cannot be of that kind ("Anna peeled the violin").
    """
    return Example(draw.rng.choice((agreement, order, selection))(draw, label))


SOLID = "tool garment vehicle instrument container"
GROWN = "fruit vegetable flower"
AMISS = {  # what nobody would say that one does a thing to (one can well clean a dog, or chop a box)
    "eat": SOLID, "drink": f"{SOLID} toy animal bird flower", "peel": "drink",
    "wear": f"vehicle drink animal bird {GROWN}", "sew": f"vehicle drink animal bird {GROWN}",
    "drive": f"drink garment instrument {GROWN}", "park": f"drink garment instrument {GROWN}",
    "play": f"drink garment animal bird {GROWN}", "tune": f"drink animal bird {GROWN}",
    "sharpen": f"drink garment animal bird {GROWN}", "plant": f"{SOLID} toy drink", "feed": f"{SOLID} toy drink",
    "tame": f"{SOLID} drink {GROWN}", "repair": f"bird {GROWN}", "build": f"animal bird drink {GROWN}",
}  # fmt: skip


def agreement(draw, label):
    """A judgement whose verb agrees in number, or does not."""
    mix, many = judging(draw, attributed=0.0, event=0.0), draw.rng.random() < 0.5
    while (clause := sample_clause(draw.rng, draw.domain, draw.rng.choice((-1, 1)), mix)).aspect.plural != many:
        pass  # so "was" and "were" are as often right as wrong
    clause = dataclasses.replace(clause, words=clause.words | dict(verb=lex.COPULA[clause.aspect.plural][0]))
    return clause if label else Broken(clause, "number")


def order(draw, label):
    """A scene, or the same with two neighbours changed that differ."""
    p = logic.scene(draw, look=0.5, place=0.5, never=0.2)
    words = len(say(p, draw.lang).split())
    return p if label else Broken(p, "order", draw.rng.randrange(words - 1))


def selection(draw, label):
    """A scene whose object suits the verb, or one of a class that does not."""
    p = logic.scene(draw, look=0.3, place=0.3)
    wrong = next((c.split() for verb, c in AMISS.items() if p.verb in things.VERBS[verb].words), None)
    if not wrong:
        return selection(draw, label)
    noun = draw.pick(things.things(draw.rng.choice(wrong), ambiguous=False))
    return p if label else Prop(p.who, p.verb, dataclasses.replace(p.what, noun=noun), p.place)


@kind(labels=tuple(things.TOPICS), metric="accuracy", size=128, unseen=0.84)
def topic(draw, label):
    """What are three sentences mostly about: weather, sport, money, health or politics?

    Two of them are about it, and one of these names another topic beside it ("the loan rather than the storm"), which
    is also what the third is about: so both topics have two words, and what counts is what is said of them.
    """
    main = list(things.TOPICS)[label]
    other = draw.rng.choice([t for t in things.TOPICS if t != main])
    pairs = (main, draw.rng.choice(ASIDES[1:])), (main, ""), (other, "")
    said = [talked(draw, about, other, aside) for about, aside in pairs]
    return Example(tuple(draw.rng.sample(said, 3)))
