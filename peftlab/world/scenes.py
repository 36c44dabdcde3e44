"""What happens in the micro-world: meanings of scenes, and how English says them.

A meaning is a small frozen object without words of its own choice: every language says it (`say(meaning, lang)`), and
what is not in it (articles, word order, endings) is the language's own affair.
"""

from dataclasses import dataclass

from . import grammar, things
from . import lexicon as lex


@dataclass(frozen=True)
class Thing:
    """Somebody or something: `noun` (a lexeme or a name), the quantifier or article before it, and how it looks."""

    noun: str
    det: str = "the"  # "", a, the, every, some, no, any
    look: str = ""


@dataclass(frozen=True)
class Prop:
    """One thing that happened: who did (or never did) what, and where."""

    who: Thing
    verb: str
    what: Thing
    place: str = ""
    never: bool = False


@dataclass(frozen=True)
class Act:
    """Somebody did (or surely did, or never did) something that one phrase says whole ("walked in the rain")."""

    who: Thing
    phrase: str
    adverb: str = ""  # surely, never


@dataclass(frozen=True)
class Reason:
    """`who` did `verb` to `whom` because (or so that, `word`) `pronoun` was `quality`; passive: from the other side."""

    who: Thing
    verb: str
    whom: Thing
    pronoun: str  # he or she
    quality: str
    passive: bool = False
    word: str = "because"  # or so


@dataclass(frozen=True)
class Talk:
    """People speak of `topic`; `other` is only named beside it, in one of the ways of `ASIDE`."""

    who: Thing
    verb: str
    topic: str
    other: str = ""
    aside: str = ""


@dataclass(frozen=True)
class Venue:
    """A place to go, by attributes; an empty attribute is not told."""

    name: str
    kind: str
    price: str = ""
    place: str = ""
    offer: str = ""
    stars: str = ""


@dataclass(frozen=True)
class Record:
    """A Venue as a table of attributes."""

    venue: Venue


@dataclass(frozen=True)
class Told:
    """A Venue in running text, after one of the PLANS (0, 1 or 2)."""

    venue: Venue
    plan: int = 0


@dataclass(frozen=True)
class Headline:
    """A Prop in the words of a newspaper: no articles, no place."""

    prop: Prop


@dataclass(frozen=True)
class Ask:
    """Is it true, or (of a meaning whose `who` is WHO) who was it? The answer is yes, no, a name, or still open."""

    meaning: object
    answer: str = ""


@dataclass(frozen=True)
class Link:
    """Two meanings and what joins them (one of things.LINKS); without `second` the word opens the sentence."""

    first: object
    word: str
    second: object = None


@dataclass(frozen=True)
class Broken:
    """A meaning said wrongly: `how` is "number" (of the verb) or "order" (the words `at` and `at` + 1 have changed)."""

    meaning: object
    how: str
    at: int = 0


@dataclass(frozen=True)
class Same:
    """A meaning in English and in the second language: a translation that can be read."""

    meaning: object


@dataclass(frozen=True)
class Crossed:
    """A meaning said in the other of the two languages."""

    meaning: object


ASIDE = {  # how English names what the talk is not about
    "instead": "{a} instead of {b}", "rather": "{a} rather than {b}", "not": "not {b} but {a}",
    "forgot": "after {b} only {a}", "besides": "{a} and not {b}",
}  # fmt: skip
PLANS = 3
COPY = "="  # between a sentence and its translation
WHO = Thing("who", "")


def pronoun(noun):
    """he or she, by the person's name or kinship; "" when the word does not tell."""
    return "she" if noun in things.SHE else "he" if noun in things.HE else ""


def article(word):
    """a or an."""
    return "an" if word[0] in "aeiou" else "a"


def say(meaning, lang="en"):
    """A sentence of the language ("en" or "xx"), or several for a tuple of meanings."""
    from . import xx

    if isinstance(meaning, tuple):
        return " ".join(say(part, lang) for part in meaning)
    if isinstance(meaning, str):
        return meaning
    if isinstance(meaning, Same):
        return f"{say(meaning.meaning)} {COPY} {say(meaning.meaning, 'xx')}"
    if isinstance(meaning, Crossed):
        return say(meaning.meaning, "en" if lang == "xx" else "xx")
    return sentence(xx.phrase(meaning) if lang == "xx" else phrase(meaning), meaning)


def sentence(text, meaning):
    """Capital and full stop (Record and Headline are no sentences)."""
    if isinstance(meaning, Record | Headline):
        return text
    return text[0].upper() + text[1:] + "." * (text[-1] not in ".?")


def phrase(meaning):
    """English without capital and full stop."""
    return ENGLISH[type(meaning)](meaning)


def _thing(t):
    words = [w for w in (t.look, t.noun) if w]
    det = article(words[0]) if t.det == "a" else t.det
    return " ".join([det, *words] if det and not (named(t.noun) or t.noun in ("he", "she", "it")) else words)


def named(noun):
    """A proper name takes no article."""
    return noun in lex.NAMES


def _prop(p):
    verb = ("never " if p.never else "") + p.verb
    return f"{_thing(p.who)} {verb} {_thing(p.what)}" + (f" near the {p.place}" if p.place else "")


def _act(a):
    return " ".join(w for w in (_thing(a.who), a.adverb, a.phrase) if w)


def _reason(r):
    who, whom = (_thing(r.whom), _thing(r.who)) if r.passive else (_thing(r.who), _thing(r.whom))
    verb = f"was {r.verb} by" if r.passive else r.verb
    return f"{who} {verb} {whom} {r.word} {r.pronoun} was {r.quality}"


def _talk(t):
    about = f"the {t.topic}"
    return f"{_thing(t.who)} {t.verb} " + (ASIDE[t.aside].format(a=about, b=f"the {t.other}") if t.aside else about)


def _record(r):
    pairs = [("name", r.venue.name), ("kind", r.venue.kind), ("price", r.venue.price), ("near", r.venue.place),
             ("offer", r.venue.offer), ("stars", r.venue.stars)]  # fmt: skip
    return " , ".join(f"{key} : {value}" for key, value in pairs if value)


def _told(t):
    v = t.venue
    kind = " ".join(w for w in (v.price, v.kind) if w)
    near, stars = f" near the {v.place}" if v.place else "", f"{v.stars} star{'s' if v.stars != 'one' else ''}"
    extra = [f"offers the {v.offer}"] if v.offer else []
    extra += [f"has {stars}"] if v.stars else []
    if t.plan == 0:
        return f"the {v.name} is {article(kind)} {kind}{near}" + (f" and {' and '.join(extra)}" if extra else "")
    if t.plan == 1:
        there = f"near the {v.place} there" if v.place else "there"
        return f"{there} is {article(kind)} {kind} called the {v.name}" + (
            f" which {' and '.join(extra)}" if extra else ""
        )
    start = f"{article(kind)} {kind}" + (f" with {stars}" if v.stars else "")
    return f"the {v.name} is {start}{near}" + (f" which offers the {v.offer}" if v.offer else "")


def _headline(h):
    return f"{h.prop.who.noun} {'never ' if h.prop.never else ''}{h.prop.verb} {h.prop.what.noun}"


def _ask(a):
    asked = "" if a.meaning.who == WHO else "is it true that "
    return f"{asked}{phrase(a.meaning)}?" + (f" {a.answer}." if a.answer else "")


def _link(x):
    if x.second is None:
        return f"{x.word} {phrase(x.first)}"
    return f"{phrase(x.first)}, {x.word} {phrase(x.second)}"


def swapped(text, at):
    """The words `at` and `at` + 1 of a text change places."""
    words = text.split()
    words[at], words[at + 1] = words[at + 1], words[at]
    return " ".join(words)


def _broken(b):
    if b.how == "number":
        return grammar.phrase(b.meaning, wrong=True)
    return swapped(phrase(b.meaning), b.at)


ENGLISH = {
    Thing: _thing, Prop: _prop, Act: _act, Reason: _reason, Talk: _talk, Record: _record, Told: _told, Ask: _ask,
    Headline: _headline, Link: _link, Broken: _broken, grammar.Clause: grammar.phrase,
    grammar.Sentence: grammar.realise, grammar.Meaning: grammar.realise,
}  # fmt: skip


def function_words():
    """The English words that carry no lexeme: in lower case."""
    text = "the a an every some no any never near because was by is and which has called there with offers star stars "
    text += "name kind price near offer he she it not instead of rather than but after only that true yes surely who"
    return sorted({*text.split(), *" ".join(things.LINKS).split()})
