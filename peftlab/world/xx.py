"""The second language, made up: its own words, the verb last, roles told by endings instead of places.

"The cook repaired the old violin near the kitchen" is, word for word, "kitchen-lo cook violin-ka old repaired-te".
There are no articles; adjectives and quantifiers follow their noun, and only things have adjectives; names stay as they
are. The order is fixed (place, person, thing, verb); only feelings turn the two people round, where English is passive.
"""

import functools
import random

from . import lexicon as lex
from . import scenes, things
from .grammar import Clause, Meaning, Sentence, vocabulary

ENDINGS = dict(
    object="ka", place="lo", plural="mi", past="te", never="nu", one="re", many="ri", stars="su"
)  # one, many: an adjective that says something of one thing or of several
SOUNDS = "ptkbdgmnslrvzf", "aeiou"
KEYS = "name kind price near offer stars".split()
EXTRA = "ask yes no he she it is surely who".split()


def lexemes():
    """Everything that has a word of its own here, sorted."""
    split = lambda table: [part for text in table for part in text.split("|")]
    nouns = [*lex.DOMAINS, *(a.word for d in lex.DOMAINS for a in lex.aspects(d)), *things.CLASSES, *things.CLASS_OF]
    nouns += things.HOUSES.values()
    verbs = [w for v in things.VERBS.values() for w in v.words] + " ".join(things.FEELINGS.values()).split()
    said = [e for t in lex.EVENTS.values() for e in split(t.values())] + split(lex.CONSEQUENCES.values())
    said += [e for pair in lex.LOCAL.values() for e in split(pair)] + [*lex.VERDICTS.values()]
    said += [e for name in things.SCENARIOS for side in things.scenario(name) for e in side]
    judged = [a.word for p in lex.ADJECTIVES for a in lex.adjectives(p)] + [b for t in lex.BOOSTERS.values() for b in t]
    small = [*lex.DENIALS, *lex.KIN, *lex.OWNERS, *lex.CROWD, *lex.SAYING, *lex.FINDING, *lex.CONTRASTS, "and", "but"]
    small += [*things.LINKS, *things.QUANTIFIERS, *scenes.ASIDE, *things.STARS, *things.TALKING, *KEYS, *EXTRA]
    looks = [w for name in things.LOOKS for w in things.looks(name)]
    topics = [*things.TOPICS, *" ".join(things.TOPICS.values()).split()]
    topics += " ".join([*things.MOODS.values(), *things.SPEAKING.values()]).split()
    return sorted({*nouns, *verbs, *said, *judged, *small, *looks, *topics})


def english():
    """Every English word, in lower case and sorted: those of the lexemes, of the grammar and of the scenes."""
    words = {w for lexeme in (*lexemes(), *things.VENUES) for w in lexeme.lower().split()}
    return sorted({*words, *vocabulary(), *scenes.function_words()} - {*",.:?"})


@functools.cache
def dictionary():
    """lexeme -> stem: consonant-vowel-consonant-vowel-consonant, drawn from the lexeme itself, no stem twice."""
    stems, taken = {}, {*english()}
    for lexeme in lexemes():
        rng = random.Random(f"xx/{lexeme}")
        while (stem := "".join(rng.choice(SOUNDS[i % 2]) for i in range(5))) in taken:
            pass
        stems[lexeme] = stem
        taken.add(stem)
    return stems


def word(lexeme, *endings):
    """The word for a lexeme (a name is its own) with the endings that tell its role."""
    kept = lexeme in lex.NAMES or lexeme in things.VENUES
    return (lexeme if kept else dictionary()[lexeme]) + "".join(ENDINGS[e] for e in endings)


def phrase(meaning):
    """A meaning of `grammar` or `scenes` in this language, without capital and full stop."""
    return SAID[type(meaning)](meaning)


def _thing(t, *endings):
    after = [t.look] * bool(t.look) + [t.det] * (t.det in things.QUANTIFIERS)
    return " ".join([word(t.noun, *endings), *map(word, after)])


def _prop(p):
    place = [word(p.place, "place")] if p.place else []
    return " ".join(
        [*place, _thing(p.who), _thing(p.what, "object"), word(p.verb, "never" if p.never else "past")]
    )


def _act(a):
    said = word(a.phrase, "never" if a.adverb == "never" else "past")
    return " ".join([_thing(a.who), said] + [word("surely")] * (a.adverb == "surely"))


def _reason(r):
    people = [_thing(r.who), _thing(r.whom, "object")]      # the passive is nothing but the other order
    said = " ".join((people[::-1] if r.passive else people) + [word(r.verb, "past")])
    return f"{said} {word(r.word)} {word(r.pronoun)} {word(r.quality, 'one')}"


def _talk(t):
    beside = [word(t.other), word(t.aside)] if t.aside else []
    return " ".join([_thing(t.who), *beside, word(t.topic, "object"), word(t.verb, "past")])


def _record(r):
    v = r.venue
    values = zip(KEYS, (v.name, v.kind, v.price, v.place, v.offer, v.stars), strict=True)
    return " , ".join(f"{word(key)} : {word(value)}" for key, value in values if value)


def _told(t):
    v = t.venue
    parts = dict(
        name=word(v.name), kind=" ".join(map(word, [v.kind] + [v.price] * bool(v.price))),
        near=v.place and word(v.place, "place"), offer=v.offer and word(v.offer, "object"),
        stars=v.stars and word(v.stars, "stars"),
    )  # fmt: skip
    orders = "name kind near offer stars", "near name kind offer stars", "name stars kind near offer"
    return " ".join(parts[key] for key in orders[t.plan].split() if parts[key])


def _headline(h):
    return f"{word(h.prop.who.noun)} {word(h.prop.what.noun)} {word(h.prop.verb, *['never'] * h.prop.never)}"


def _ask(a):
    asked = "" if a.meaning.who == scenes.WHO else f" {word('ask')}"
    return f"{phrase(a.meaning)}{asked}?" + (f" {word(a.answer)}." if a.answer else "")


def _link(x):
    if x.second is None:
        return f"{word(x.word)} {phrase(x.first)}"
    return f"{phrase(x.first)}, {word(x.word)} {phrase(x.second)}"


def _broken(b):
    return _clause(b.meaning, wrong=True) if b.how == "number" else scenes.swapped(phrase(b.meaning), b.at)


def _clause(c, wrong=False):
    w, many = c.words, c.aspect.plural
    aspect = lambda *endings: word(c.aspect.word, *["plural"] * many, *endings)
    agrees = "many" if many != wrong else "one"
    claim = c.claim.phrase if isinstance(c.claim, lex.Event) else c.claim.word
    if isinstance(c.claim, lex.Event):
        said = f"{aspect()} {word(claim, 'past')}"
    elif c.form == "attributed" and w["finds"]:
        return f"{_speaker(w['speaker'])} {aspect('object')} {word(claim)} {word(w['finding'], 'past')}"
    elif c.form == "intensified":
        said = f"{aspect()} {word(w['booster'])} {word(claim, agrees)}"
    elif c.form == "negated":
        said = f"{aspect()} {word(claim, agrees)} {word(w['denial'])}"
    else:
        said = f"{aspect()} {word(claim, agrees)}"
    return f"{said} {_speaker(w['speaker'])} {word(w['saying'], 'past')}" if c.form == "attributed" else said


def _speaker(text):
    return " ".join(map(word, reversed(text.split())))      # "my sister" -> sister my


def _sentence(s):
    main, other = _clause(s.main), s.other and _clause(s.other)
    if not s.link:
        return main
    if s.link == "and":
        return f"{main} {word('and')} {other}"
    if s.link == "but":
        return f"{other}, {word('but')} {main}"
    return f"{main}, {other} {word(s.link)}" if s.first else f"{other} {word(s.link)}, {main}"


def _meaning(m):
    texts = [_sentence(s) for s in m.sentences]
    end = f"{word('so')} {word(m.who)} {word(m.consequence, 'past')}"
    texts = [*texts[:-1], f"{texts[-1]}, {end}"] if m.joined else [*texts, end]
    if m.place:
        texts[0] = f"{word(m.domain, 'place')} {texts[0]}"
    return " ".join(t[0].upper() + t[1:] + "." for t in texts)


SAID = {
    scenes.Thing: _thing, scenes.Prop: _prop, scenes.Act: _act, scenes.Reason: _reason, scenes.Talk: _talk,
    scenes.Record: _record, scenes.Told: _told, scenes.Headline: _headline, scenes.Ask: _ask, scenes.Link: _link,
    scenes.Broken: _broken, Clause: _clause, Sentence: _sentence, Meaning: _meaning,
}  # fmt: skip
