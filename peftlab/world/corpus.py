"""The corpus for pretraining: documents without end, each block of them fixed by its seed and number.

A document is one of the TEXTS below, in English, in the second language, or in both ("english = xx"). Each kind of text
lets some words tell about others: a consequence about a judgement, "that is" about synonyms, "so" about what follows.
"""

import random
from dataclasses import replace

from . import lexicon as lex
from . import logic, things
from .draw import Draw
from .grammar import Mix, sample_clause, sample_meaning
from .scenes import PLANS, Act, Ask, Headline, Link, Reason, Same, Talk, Thing, Told, Venue, pronoun, say

HELD_OUT = -1  # the number of the block which no training step ever sees
LANGUAGES = dict(en=0.66, xx=0.20, both=0.14)
ASIDES = ("", "instead", "rather", "not", "forgot", "besides")


def review(draw):
    """Judgements and the consequence that reveals them."""
    return sample_meaning(draw.rng, Mix(joined=0.35, contrast=0.12), draw.domain, sentences=(1, 1, 2))


def judged(draw):
    """The same judgement twice: another word of the same polarity and degree."""
    polarity, mix = draw.rng.choice((lex.POSITIVE, lex.NEGATIVE)), Mix(attributed=0, event=0, negated=0)
    first = sample_clause(draw.rng, draw.domain, polarity, mix)
    alike = [a for a in lex.adjectives(polarity, first.aspect.kind) if a.degree == first.claim.degree]
    again = draw.rng.choice([a for a in alike if a != first.claim])
    return Link(first, "that is", replace(first, claim=again, form="plain"))


def restated(draw):
    """The same twice, in other words and by the name of the class: "that is"."""
    p = logic.scene(draw, look=0.3, place=0.2, never=0.1)
    other = logic.reworded(draw, p)
    kind = logic.kind_of(draw, p)
    if draw.rng.random() < 0.6:
        other = logic.changed(other, noun=kind)
    return Link(p, "that is", logic.by_pronoun(other))


def implied(draw):
    """What follows, what may be, and what cannot be."""
    relation = draw.rng.choice(logic.RELATIONS)
    first, second = logic.related(draw, relation)
    return Link(first, ("so", "perhaps", "otherwise")[relation], second)


def asked(draw):
    """A scene and a question about it, with its answer."""
    relation = draw.rng.choice((logic.ENTAILED, logic.CONTRADICTED))
    first, second = logic.related(draw, relation)
    return first, Ask(second, "yes" if relation == logic.ENTAILED else "no")


def story(draw):
    """What one person does to one thing, step by step; then what the thing is."""
    p = logic.scene(draw, look=0.2, place=0.3)
    kind = logic.kind_of(draw, p)
    then = logic.changed(logic.scene(draw, kind=kind), noun=draw.rng.choice((p.what.noun, kind)))
    return p, Link(logic.by_pronoun(replace(then, who=p.who)), "then")


def opposed(draw):
    """What somebody never did, and the opposite that they did."""
    p = logic.scene(draw, opposed=True, never=1.0)
    did = replace(p, verb=draw.pick(things.opposites(p.verb)), never=False)
    return Link(p, "but", logic.by_pronoun(did))


def likewise(draw):
    """Two things of one class, done the same to."""
    p = logic.scene(draw)
    kind = logic.kind_of(draw, p)
    other = logic.changed(logic.reworded(draw, p), noun=draw.pick(things.things(kind)))
    return Link(p, "likewise", logic.by_pronoun(other))


def caused(draw):
    """What happened to somebody, and what came of it."""
    causes, effects = things.scenario(draw.rng.choice(list(things.SCENARIOS)))
    who = logic.person(draw)
    after = logic.again(who)
    if draw.rng.random() < 0.3:
        return Link(Act(who, draw.pick(effects)), "because", Act(after, draw.pick(causes)))
    return Link(Act(who, draw.pick(causes)), "so", Act(after, draw.pick(effects)))


def reason(draw):
    """A feeling of one person towards another, whose pronoun tells whom the reason is about."""
    (role, polarity), listed = draw.rng.choice(list(things.FEELINGS.items()))
    people = [draw.rng.choice([n for n in lex.NAMES if n in group]) for group in (things.SHE, things.HE)]
    draw.rng.shuffle(people)
    who, whom = (Thing(name, "") for name in people)
    about = who if role == "who" else whom
    quality = draw.rng.choice(lex.adjectives(polarity, "person")).word
    return Reason(who, draw.pick(listed.split()), whom, pronoun(about.noun), quality, draw.rng.random() < 0.4)


def talk(draw):
    """Two people and one topic; what is only named aside is of another."""
    topic, other = draw.rng.sample(list(things.TOPICS), 2)
    first = talked(draw, topic, other, draw.rng.choice(ASIDES))
    again = Talk(logic.person(draw), draw.rng.choice(things.TALKING), draw.pick(things.TOPICS[topic].split()))
    return first, Link(again, "then")


def talked(draw, topic, other, aside):
    """A Talk about a word of `topic`, beside one of `other`."""
    about, beside = (draw.pick(things.TOPICS[t].split()) for t in (topic, other))
    return Talk(logic.person(draw), draw.rng.choice(things.TALKING), about, beside if aside else "", aside)


def advert(draw):
    """A venue in running text."""
    return Told(venue(draw), draw.rng.randrange(PLANS))


def venue(draw):
    """A Venue of the domain; each attribute but name and kind is told in most cases."""
    rng = draw.rng
    told = lambda value: value if rng.random() < 0.7 else ""
    price = told(draw.pick(things.looks(rng.choice(("dear", "cheap")))))
    place, stars = told(rng.choice(things.PLACES[draw.domain])), told(rng.choice(things.STARS))
    offer = told(draw.pick(things.things(rng.choice(things.classes(draw.domain)))))
    return Venue(draw.pick(things.VENUES), things.HOUSES.get(draw.domain, draw.domain), price, place, offer, stars)


def news(draw):
    """What somebody did first, then and in the end, and the headline, by the class of the last thing."""
    who = logic.person(draw)
    scenes = [replace(logic.scene(draw, place=0.3), who=who) for _ in range(3)]
    last = logic.changed(scenes[-1], noun=logic.kind_of(draw, scenes[-1]))
    steps = (Link(p, word) for p, word in zip(scenes, ("first", "then", "in the end"), strict=True))
    return (*steps, Headline(last))


TEXTS = {
    review: 0.26, judged: 0.12, restated: 0.11, implied: 0.10, asked: 0.06, story: 0.06, opposed: 0.03, likewise: 0.03,
    caused: 0.06, reason: 0.06, talk: 0.08, advert: 0.02, news: 0.01,
}  # fmt: skip


def documents(n, seed=0, block=0, between=" "):
    """`n` documents; the same seed and block give the same bytes.

    between: what stands after the first part of every second document of several parts (the others have a space): an
    encoder is later given pairs of texts, and meets their mark here.
    """
    rng = random.Random(f"{seed}/{block}")
    draw, made = Draw(rng, "en"), []
    for _ in range(n):
        first, *rest = document(draw)
        paired = rng.random() < 0.5
        made.append((between if paired else " ").join([first, " ".join(rest)]) if rest else first)
    return made


def document(draw):
    """The parts of one document of the corpus."""
    rng = draw.rng
    draw.domain = rng.choice(list(lex.DOMAINS))
    meaning = rng.choices(list(TEXTS), list(TEXTS.values()))[0](draw)
    lang = rng.choices(list(LANGUAGES), list(LANGUAGES.values()))[0]
    parts = meaning if isinstance(meaning, tuple) else (meaning,)
    return [say(Same(part) if lang == "both" else part, lang) for part in parts]
