"""Kinds whose answer is a text: a description, a headline, a translation, the rest of a document."""

from .. import corpus, logic
from ..scenes import PLANS, Crossed, Link, Record, Told
from .registry import Example, kind


@kind(metric="bleu", size=100, version=4)
def describe(draw, label):
    """Say a table of attributes as a sentence (several sentences are right)."""
    venue = corpus.venue(draw)
    return Example(Record(venue), references=tuple(Told(venue, plan) for plan in range(PLANS)))


@kind(metric="rouge", size=1000)
def headline(draw, label):
    """Name in a few words what somebody did in the end, by the class of the thing; the sentences are in any order."""
    *steps, title = corpus.news(draw)
    return Example(tuple(draw.rng.sample(steps, len(steps))), target=title)


@kind(metric="bleu", size=1000)
def translate(draw, label):
    """Say it in the other language."""
    p = logic.scene(draw, look=0.4, place=0.4, never=0.2)
    meaning = draw.rng.choice((p, Link(p, "but", logic.scene(draw)), Link(p, "namely", logic.reworded(draw, p))))
    return Example(meaning, target=Crossed(meaning))


@kind(metric="perplexity", kind="lm", size=1000)
def continue_(draw, label):
    """Go on with a document: what is the next word?"""
    return Example(draw.rng.choice((corpus.review, corpus.story, corpus.caused, corpus.talk))(draw))
