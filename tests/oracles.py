"""What a label should be, told from texts that `parse` has read: by tables of words, and for what follows by models.

All worlds that differ for two sentences are listed, and each sentence is true or false in them.
"""

import itertools

from parse import POLARITY, NotSaid, english, polarity
from parse_xx import secondary

from peftlab.world import things
from peftlab.world.scenes import Prop

READ = dict(en=english, xx=secondary)
LANGS = tuple(READ)


# ---- words: what they mean, by tables of my own reading ----
def meaning_of(word):
    """The one name of a set of synonyms; a word that is in none is its own."""
    sets = {w: name for name, v in things.VERBS.items() for w in v.words}
    sets |= {w: name for name in things.LOOKS for w in things.looks(name)}
    return sets.get(word, word)


def kinds(noun):
    """The classes that a thing is of, itself included."""
    return {noun, *(c for c, words in things.CLASSES.items() if noun in words.split()), *things.SENSES.get(noun, ())}


def core(prop):
    """Who did what to what, how it looked, where: by meaning."""
    return (prop.who, prop.never, meaning_of(prop.verb), prop.what.noun, meaning_of(prop.what.look), prop.place)


# ---- model theory of two sentences ----
def relation(premise, hypothesis):
    """0 when the hypothesis is true in every world of the premise, 2 when in none, else 1.

    An event is (verb, kind of thing, set of looks, place). A world gives each person the events that they did; only
    which of the two descriptions an event fits can matter, so events are told apart by that alone.
    """
    p, h = premise, hypothesis
    leaves = {p.what.noun, h.what.noun, *(f"another {n}" for n in (p.what.noun, h.what.noun) if n in things.CLASSES)}
    leaves = {n for n in leaves if n not in things.CLASSES} | {"something else"}
    looks = {meaning_of(x.what.look) for x in (p, h)} - {""}
    looks = [set(c) for n in range(3) for c in itertools.combinations(looks, n)
             if not any(things.LOOKS[a][1] in c for a in c)]  # fmt: skip
    verbs, places = {meaning_of(x.verb) for x in (p, h)}, {p.place, h.place, "elsewhere"} - {""}
    fits = {tuple(describes(x, e) for x in (p, h)) for e in itertools.product(verbs, leaves, looks, places)}
    lives = [set(s) for n in range(len(fits) + 1) for s in itertools.combinations(fits, n)]
    people = sorted({x.who.noun for x in (p, h)})
    truths = set()
    for crowd in (1, 2):  # how many "every cook" speaks of; a name or "the cook" is the first of them
        for world in itertools.product(itertools.product(lives, repeat=crowd), repeat=len(people)):
            world = dict(zip(people, world, strict=True))
            truths.add(tuple(holds(x, i, world[x.who.noun]) for i, x in enumerate((p, h))))
    seen = {h for p, h in truths if p}
    assert seen and len({p for p, _ in truths}) == 2, "a premise that is always or never true"
    return 0 if seen == {True} else 2 if seen == {False} else 1


def describes(prop, event):
    verb, leaf, looks, place = event
    thing = prop.what.noun in kinds(leaf.removeprefix("another ")) and leaf not in things.CLASSES
    look = meaning_of(prop.what.look)
    return verb == meaning_of(prop.verb) and thing and (not look or look in looks) and prop.place in ("", place)


def holds(prop, which, lives):
    """Of a, or of never any: did (did not) these people do something that fits?"""
    did = [any(event[which] for event in life) != prop.never for life in lives]
    return all(did) if prop.who.det == "every" else any(did) if prop.who.det == "some" else did[0]


# ---- an oracle for each kind: (language, what was read, the row) -> its label ----
def entail(lang, text, text2):
    return relation(text, text2)


def paraphrase(lang, text, text2):
    return int(core(text) == core(text2))


def similarity(lang, text, text2):
    assert text.never is text2.never is False
    return float(sum(a == b for a, b in zip(core(text), core(text2), strict=True)) - 1)


def reviews(lang, text):
    return int(polarity(text) > 0)


def topic(lang, text):
    about = [next(i for i, words in enumerate(things.TOPICS.values()) if t.topic in words.split()) for t in text]
    return max(about, key=about.count)


def answer(lang, text, text2):
    """Nothing but what the two sentences tell has happened."""
    asked = text2.meaning
    assert text2.answer == "" and not asked.never
    return int(any(confirms(p, asked) for p in text))


def confirms(told, asked):
    same = told.who == asked.who and meaning_of(told.verb) == meaning_of(asked.verb)
    return same and asked.what.noun in kinds(told.what.noun) and asked.place in ("", told.place) and not asked.what.look


def sense(lang, text, text2):
    noun = text.what.noun
    assert noun == text2.what.noun
    meant = [{*things.SENSES[noun]} & takes(p.verb) for p in (text, text2)]
    assert all(len(m) == 1 for m in meant), "the verb leaves the sense open"
    return int(meant[0] == meant[1])


def cause(lang, text, text2):
    """Causes are the first half of a scenario, effects the second."""
    known = {}
    for name, line in things.SCENARIOS.items():
        for side, listed in enumerate(line.split(">")):
            known |= {phrase: (name, side) for phrase in listed.split("|")}
    name, side = known[text.first.phrase]
    assert side == (text.word == "because") and text.second is None
    fits = [i for i, act in enumerate(text2) if known[act.phrase] == (name, 1 - side)]
    assert len(fits) == 1 and text2[0].who == text2[1].who
    assert all(known[act.phrase][1] != side for act in text2), "both are causes, or both effects"
    heard = {text.first.phrase, text2[1 - fits[0]].phrase}
    assert not any(heard == {*pair} for pair in FITS_TOO), "the other one fits as well"
    return fits[0]


FITS_TOO = [  # of two scenarios, yet anybody would see the one as cause of the other
    ("swam in the icy lake", "needed a towel"), ("slipped into the river", "shivered for hours"),
    ("walked in the rain", "took a long bath"), ("gambled away the wages", "begged for bread"),
    ("won the lottery", "boasted to everyone"), ("ran ten miles", "ate three plates"),
    ("ran ten miles", "took a long bath"), ("sat in the draught", "shivered for hours"),
    ("caught a cold", "fell asleep early"), ("woke from a nightmare", "yawned without end"),
    ("stole a spoon", "hid under the blanket"), ("worked all night", "arrived hours late"),
    ("worked all night", "stayed in bed"), ("slept outside", "yawned without end"),
    ("rolled in the mud", "needed a towel"),
    ("won the race", "blushed deeply"), ("gambled away the wages", "begged for mercy"),
]  # fmt: skip


def refer(lang, text):
    """Because tells of the one who is the reason for such a feeling, so of the one whom it was done to."""
    role, sign = next(k for k, words in things.FEELINGS.items() if text.verb in words.split())
    moods = {mood: s for s, words in things.MOODS.items() for mood in words.split()}
    assert (moods if text.word == "so" else POLARITY)[text.quality] == sign and text.word in ("because", "so")
    told = {"she" if p.noun in things.SHE else "he" for p in (text.who, text.whom) if p.noun in things.SHE + things.HE}
    assert told <= {text.pronoun}, "the pronoun suits both people"
    meant = text.whom if text.word == "so" else getattr(text, role)
    return [text.who, text.whom][:: -1 if text.passive else 1].index(meant)


ORACLES = dict(entail=entail, paraphrase=paraphrase, similarity=similarity, reviews=reviews, topic=topic, answer=answer,
               sense=sense, cause=cause, refer=refer)  # fmt: skip


def said_well(lang, text):
    """Acceptable: it can be read, and what is done is done to things of a class that it is done to."""
    try:
        read = READ[lang](text)
    except NotSaid:
        return 0
    return int(not isinstance(read, Prop) or bool(kinds(read.what.noun) & takes(read.verb)))


def takes(verb):
    """The classes of things that this is done to."""
    return {*things.VERBS[meaning_of(verb)].classes}
