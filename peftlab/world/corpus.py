"""The corpus for pretraining: documents without end, each block of them fixed by its seed and number.

A document is one of the TEXTS below, in English, in the second language, or in both ("english = xx"). Each kind of text
lets some words tell about others: a consequence about a judgement, "namely" about synonyms, "so" about what follows.
"""

import random
from dataclasses import replace

from . import lexicon as lex
from . import logic, things
from .draw import Draw
from .grammar import Mix, sample_clause, sample_meaning
from .scenes import PLANS, WHO, Act, Ask, Headline, Link, Reason, Same, Talk, Thing, Told, Venue, pronoun, say

HELD_OUT = -1  # the number of the block which no training step ever sees
LANGUAGES = dict(en=0.66, xx=0.20, both=0.14)
ASIDES = ("", "instead", "rather", "not", "forgot", "besides")


def review(draw):
    """Judgements and the consequence that reveals them."""
    mix = Mix(joined=0.35, contrast=0.12)
    return sample_meaning(draw.rng, mix, draw.domain, sentences=(1, 1, 2), verdict=0.4)


def judged(draw):
    """The same judgement twice: "namely" that it was good or bad, or another word of the same degree."""
    polarity, mix = draw.rng.choice((lex.POSITIVE, lex.NEGATIVE)), Mix(attributed=0, event=0, negated=0)
    first = sample_clause(draw.rng, draw.domain, polarity, mix)
    alike = [a for a in lex.adjectives(polarity, first.aspect.kind) if a != first.claim]
    plain = [a for a in alike if a.word == lex.GENERAL[polarity]]
    again = plain if plain and draw.rng.random() < 0.5 else [a for a in alike if a.degree == first.claim.degree]
    return Link(first, "namely", replace(first, claim=draw.rng.choice(again), form="plain"))


def restated(draw):
    """The same twice, in other words and by the name of the class ("namely"), or nearly the same ("also")."""
    p = logic.scene(draw, look=0.4, place=0.2, never=0.1)
    other = p if draw.rng.random() < 0.4 else logic.reworded(draw, p)
    if draw.rng.random() < 0.5:
        return Link(p, "also", logic.by_pronoun(logic.missed(draw, other)))
    if draw.rng.random() < 0.6:
        other = logic.changed(other, noun=logic.kind_of(draw, p))
    return Link(p, "namely", logic.by_pronoun(other))


def implied(draw):
    """What follows, what may be, and what cannot be."""
    relation = draw.rng.choice(logic.RELATIONS)
    first, second = logic.related(draw, relation)
    return Link(first, ("so", "perhaps", "otherwise")[relation], second)


def asked(draw):
    """One or two scenes and a question about them, with its answer."""
    true = draw.rng.random() < 0.5
    if draw.rng.random() < 0.7:
        told, question = logic.questioned(draw, true, verbatim=0.5)
    else:
        *told, question = logic.related(draw, logic.ENTAILED if true else logic.CONTRADICTED)
    return *told, Ask(question, "yes" if true else "no")


def who(draw):
    """What two people did, each something else, and who it was that did one of it, in the same or in other words."""
    people = [Thing(name, "") for name in draw.rng.sample(lex.NAMES, 2)]
    deeds = draw.rng.choice((two_scenes, two_senses, two_acts, two_talks))(draw)
    said = tuple(replace(deed[0], who=person) for deed, person in zip(deeds, people, strict=True))
    asked, reworded = draw.rng.randrange(2), draw.rng.random() < 0.5
    return *said, Ask(replace(deeds[asked][reworded], who=WHO), people[asked].noun)


def two_scenes(draw):
    """Two things done to the same thing, and the words for them that are asked with."""
    kind = draw.rng.choice(things.classes(draw.domain))
    first, second = (logic.scene(draw, kind=kind) for _ in range(2))
    if second.verb in logic.verb_of(first.verb).words:
        return two_scenes(draw)
    return [(p, logic.reworded(draw, p)) for p in (first, replace(second, what=first.what))]


def two_senses(draw):
    """One word in both its senses, and the classes that are asked with."""
    noun = draw.rng.choice(list(things.SENSES))
    kinds = draw.rng.sample(things.SENSES[noun], 2)
    return [(p, logic.changed(p, noun=kind)) for kind in kinds for p in [logic.used(draw, noun, kind)]]


def two_acts(draw):
    """A cause and an effect of each of two scenarios."""
    pairs = [things.scenario(name) for name in logic.unlike(draw)]
    return [(Act(WHO, draw.pick(causes)), Act(WHO, draw.pick(effects))) for causes, effects in pairs]


def two_talks(draw):
    """A word of each of two topics, and the topic."""
    topics = draw.rng.sample(list(things.TOPICS), 2)
    return [(p, replace(p, topic=t)) for t in topics for p in [talked(draw, t, t, "")]]


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


def compared(draw):
    """Two things of one class ("likewise") or of two ("whereas"); often one word in one sense or in two."""
    senses = draw.rng.sample(things.SENSES[noun := draw.rng.choice(list(things.SENSES))], 2)
    same, alike = draw.rng.random() < 0.5, draw.rng.random() < 0.5
    if alike:
        first, second = logic.used(draw, noun, senses[0]), logic.used(draw, noun, senses[not same])
    else:
        kind, other = draw.rng.sample(things.classes(draw.domain), 2)
        first, second = logic.scene(draw, kind=kind), logic.scene(draw, kind=kind if same else other)
    return Link(first, "likewise" if same else "whereas", second)


def caused(draw):
    """What happened to somebody, and what came of it."""
    causes, effects = things.scenario(draw.rng.choice(list(things.SCENARIOS)))
    who = logic.person(draw)
    after = logic.again(who)
    if draw.rng.random() < 0.3:
        return Link(Act(who, draw.pick(effects)), "because", Act(after, draw.pick(causes)))
    return Link(Act(who, draw.pick(causes)), "so", Act(after, draw.pick(effects)))


def weighed(draw):
    """Two things, one of which goes with what happened: one of them is said to be sure, or never to have been."""
    word, given, right, wrong = logic.alternatives(draw)
    who = logic.person(draw)
    sure = draw.rng.random() < 0.5
    sides = Act(logic.again(who), right, "surely" * sure), Act(logic.again(who), wrong, "never" * (not sure))
    return Link(Act(who, given), word), *draw.rng.sample(sides, 2)


def reason(draw):
    """A feeling of one person towards another, whose pronoun tells whom the reason is about."""
    people = [Thing(draw.rng.choice([n for n in lex.NAMES if n in group]), "") for group in (things.SHE, things.HE)]
    return felt(draw, *draw.rng.sample(people, 2))[0]


def felt(draw, who, whom):
    """(A Reason, 0 or 1: its pronoun means the person named first or second)."""
    rng = draw.rng
    (role, polarity), verbs = rng.choice(list(things.FEELINGS.items()))
    word, passive = "so" if rng.random() < 0.3 else "because", rng.random() < 0.4
    about, other = (who, whom) if (role, word) == ("who", "because") else (whom, who)
    it = pronoun(about.noun) or pronoun(other.noun) or rng.choice(("he", "she"))
    moods = things.MOODS[polarity].split()
    quality = draw.pick(moods if word == "so" else [a.word for a in lex.adjectives(polarity, "person")])
    said = Reason(who, draw.pick(verbs.split()), whom, it, quality, passive, word)
    return said, int((about is who) == passive)


def talk(draw):
    """People and one topic, then a word of it or its name; what is only named aside is of another."""
    topic, other = draw.rng.sample(list(things.TOPICS), 2)
    first = talked(draw, topic, other, draw.rng.choice(ASIDES) if draw.rng.random() < 0.5 else "")
    if draw.rng.random() < 0.5:
        return Link(first, "namely", Talk(logic.again(first.who), draw.rng.choice(things.TALKING), topic))
    after = replace(talked(draw, topic, other, ""), verb=draw.pick(things.SPEAKING[topic].split()))
    return first, Link(after, "then")


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
    review: 0.20, judged: 0.07, restated: 0.12, implied: 0.07, asked: 0.10, who: 0.16, story: 0.03, opposed: 0.03,
    compared: 0.05, caused: 0.03, weighed: 0.04, reason: 0.04, talk: 0.04, advert: 0.01, news: 0.01,
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
