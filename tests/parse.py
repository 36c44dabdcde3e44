"""Reads both languages back: text -> meaning, written from the description of the languages, not from what says them.

What is not meaning is dropped: articles, the copula, the plan of an advert. `bare` drops the same from a meaning, so
`english(text) == parse_xx.secondary(other text) == bare(meaning)`. What cannot be said raises NotSaid, and so does what
can be read in two ways.

A judgement is a Claim; two of them are a Joined ("and", "although", …) or, for "but", a Link. A review's first words
("At the hotel, …") make an Opened.
"""

import dataclasses
import functools
import re
from dataclasses import dataclass

from peftlab.world import lexicon as lex
from peftlab.world import things
from peftlab.world.grammar import Clause, Meaning, Sentence
from peftlab.world.scenes import Act, Ask, Headline, Link, Prop, Reason, Record, Talk, Thing, Told, Venue


class NotSaid(ValueError):
    """No sentence of the language, or two."""


@dataclass(frozen=True)
class Claim:
    """A judgement: an adjective or event about an aspect, a booster or denial, and who said or found it."""

    aspect: str
    claim: str
    extra: str = ""
    speaker: str = ""
    saying: str = ""


@dataclass(frozen=True)
class Joined:
    main: object
    other: object
    link: str
    first: bool = True


@dataclass(frozen=True)
class Opened:
    domain: str
    what: object


def alt(words):
    return "|".join(sorted((re.escape(w.lower()) for w in {*words}), key=len, reverse=True))


def cells(tables):
    return [part for table in tables for text in table for part in text.split("|")]


ASPECTS = {a.word: a.plural for d in lex.DOMAINS for a in lex.aspects(d)}
POLARITY = {a.word: p for p in lex.ADJECTIVES for a in lex.adjectives(p)}
POLARITY |= {e: p for p, table in lex.EVENTS.items() for e in cells([table.values()])}
EVENTS = cells(table.values() for table in lex.EVENTS.values())
PROPER = {w.lower(): w for w in (*lex.NAMES, "I")}
VENUES = {w.lower(): w for w in things.VENUES}
PEOPLE = {w for words in things.PEOPLE.values() for w in words}
NO_ARTICLE = {*PROPER, "he", "she", "we", "they", "who"}
THINGS = {*things.CLASSES, *things.CLASS_OF}
W = dict(
    who={*PEOPLE, *NO_ARTICLE}, thing=THINGS, verb=cells([v.words for v in things.VERBS.values()]),
    look=[w for name in things.LOOKS for w in things.looks(name)], place=cells(things.PLACES.values()),
    phrase=cells([*(things.scenario(s)[i] for s in things.SCENARIOS for i in (0, 1)), *map(str.splitlines, cells(
        [lex.CONSEQUENCES.values(), *lex.LOCAL.values(), lex.VERDICTS.values()]))]),
    feeling=" ".join(things.FEELINGS.values()).split(), quality=[w for w in POLARITY if w not in EVENTS],
    mood=" ".join(things.MOODS.values()).split(),
    talking=[*things.TALKING, *" ".join(things.SPEAKING.values()).split()], venue=things.VENUES,
    topic=[*things.TOPICS, *" ".join(things.TOPICS.values()).split()],
    kind=[things.HOUSES.get(d, d) for d in lex.DOMAINS], price=things.looks("dear") + things.looks("cheap"),
    stars=things.STARS, aspect=ASPECTS, event=EVENTS, booster=cells(lex.BOOSTERS.values()), denial=lex.DENIALS,
    copula={*lex.COPULA[False], *lex.COPULA[True]}, saying=lex.SAYING, finding=lex.FINDING, domain=lex.DOMAINS,
    contrast=lex.CONTRASTS, quantifier=things.QUANTIFIERS,
)  # fmt: skip
W = {key: alt(words) for key, words in W.items()}
KINSHIP = rf"(?:{alt(lex.OWNERS)}) (?:{alt(lex.KIN)})|{alt((*lex.NAMES, *lex.CROWD))}"
YES = f"(?:yes|no|{alt(w.lower() for w in lex.NAMES)})"


def need(truth, text):
    if not truth:
        raise NotSaid(text)


def person(noun, det=""):
    return Thing(PROPER.get(noun, noun), det if det in things.QUANTIFIERS else "")


# ---- English: a regular expression over lower-case words, and what it means ----
def someone(key):
    return rf"(?:(?P<{key}_det>the|every|some) )?(?P<{key}>{W['who']})"


def g(pattern, **keys):
    """{place} -> a group of that name with the words of that kind; {offer:thing} -> named offer, words of thing."""
    return re.sub(r"{(\w+):?(\w*)}", lambda m: f"(?P<{m[1]}>{W[m[2] or m[1]]})", pattern)


ASIDES = {
    "": "the {a}", "instead": "the {a} instead of the {b}", "rather": "the {a} rather than the {b}",
    "not": "not the {b} but the {a}", "forgot": "after the {b} only the {a}", "besides": "the {a} and not the {b}",
}  # fmt: skip
AN, STARRED = "(?P<an>an?) (?:{price} )?{kind}", "{stars} (?P<s>stars?)"
TOLD = (
    rf"the {{venue}} is {AN}(?: near the {{place}})?(?: and offers the {{offer:thing}})?(?: and has {STARRED})?",
    rf"(?:near the {{place}} )?there is {AN} called the {{venue}}"
    rf"(?: which offers the {{offer:thing}}(?: and has {STARRED})?)?",
    rf"(?:near the {{place}} )?there is {AN} called the {{venue}}(?: which has {STARRED})?",
    rf"the {{venue}} is {AN}(?: with {STARRED})?(?: near the {{place}})?(?: which offers the {{offer:thing}})?",
)
REASON = g(" (?:(?P<because>because)|so) (?P<pronoun>he|she) was (?(because){quality}|{mood})")
CLAIM = r"(?:the|our|their) {aspect} (?:{copula}(?: (?:{booster}|{denial}))? {claim:quality}|{event})"
FORMS = [
    ("prop", someone("who") + g(r" (?P<never>never )?{verb} (?P<det>the|an?|every|some|no|any) (?:{look} )?{thing}"
                                r"(?: near the {place})?")),
    ("act", someone("who") + g(" (?P<adverb>never |surely )?{phrase}")),
    ("reason", someone("who") + g(" {feeling} ") + someone("whom") + REASON),
    ("passive", someone("whom") + g(" was {feeling} by ") + someone("who") + REASON),
    *((f"talk {aside}", someone("who") + g(" {talking} " + about.format(a="{topic}", b="{other:topic}")))
      for aside, about in ASIDES.items()),
    *(("told", g(pattern)) for pattern in TOLD),
    ("claim", rf"(?:(?P<speaker>{KINSHIP}) (?P<said>{W['saying']}) )?" + g(CLAIM)),
    ("found", rf"(?P<speaker>{KINSHIP}) (?P<said>{W['finding']}) " + g("(?:the|our|their) {aspect} {claim:quality}")),
]  # fmt: skip
FORMS = [(name.split(" "), re.compile(pattern)) for name, pattern in FORMS]


def made(form, aside, m):
    """The meaning of a match in either language (what an English word must agree with is `checked` before)."""
    get = lambda key: m.get(key) or ""
    if form == "prop":
        what = Thing(m["thing"], get("det") if get("det") in things.QUANTIFIERS else "", get("look"))
        return Prop(person(m["who"], get("who_det")), m["verb"], what, get("place"), bool(get("never")))
    if form == "act":
        return Act(person(m["who"], get("who_det")), m["phrase"], get("adverb").strip())
    if form in ("reason", "passive"):
        who, whom = person(m["who"]), person(m["whom"])
        quality, word = (m["quality"], "because") if get("because") else (m["mood"], "so")
        return Reason(who, m["feeling"], whom, m["pronoun"], quality, form == "passive", word)
    if form == "talk":
        return Talk(person(m["who"], get("who_det")), m["talking"], m["topic"], get("other"), aside)
    if form == "told":
        return Told(Venue(VENUES[m["venue"]], m["kind"], get("price"), get("place"), get("offer"), get("stars")))
    speaker = " ".join(PROPER.get(w, w) for w in get("speaker").split())
    return Claim(m["aspect"], get("claim") or m["event"], get("booster") or get("denial"), speaker, get("said"))


def checked(m, text):
    """English agreement: names have no article, a or an by the sound, was or were and star or stars by the number."""
    get = lambda key: m.get(key) or ""
    for key in ("who", "whom"):
        need(not get(key) or (get(key) in NO_ARTICLE) == (not get(f"{key}_det")), text)
    for a, after in ((get("det"), get("look") or get("thing")), (get("an"), get("price") or get("kind"))):
        need(a not in ("a", "an") or a == ("an" if after[0] in "aeiou" else "a"), text)
    need(not get("stars") or (get("stars") == "one") == (m["s"] == "star"), text)
    if get("copula"):
        need(m["copula"] in lex.COPULA[ASPECTS[m["aspect"]]], text)
        need(not get("denial") or m["copula"] in ("was", "were"), text)
    return m


def simple(text, forms, check):
    for (form, *aside), pattern in forms:
        if m := pattern.fullmatch(text):
            try:
                yield made(form, aside[0] if aside else "", check(m.groupdict(), text))
            except NotSaid:
                continue


def strongest(text, parse, levels, forms, check):
    """The one reading of a phrase: of the first level that gives any, else of the simple forms."""
    levels = (pairs(text, parse, level) for level in levels)
    return only(next((r for level in levels if (r := [*level])), None) or simple(text, forms, check), text)


def only(readings, text):
    """The one reading."""
    readings = list(dict.fromkeys(readings))
    need(len(readings) == 1, f"{len(readings)} readings: {text}")
    return readings[0]


def pairs(text, parse, splits):
    """Readings of two parts: splits are (regular expression of two groups, what to make of the two meanings)."""
    for pattern, make in splits:
        for m in re.finditer(pattern, text):
            try:
                yield make(*map(parse, m.groups()))
            except NotSaid:
                continue


BUT = [k for k in things.LINKS if k == "but"], [k for k in things.LINKS if k != "but"]
LEVELS = [  # from what binds least to what binds most: "At the ship, x, but y, so z" is At (x but y) so z
    [(rf"^{lex.WHERE.get(d, 'At').lower()} the {d}, ()(.+)$", lambda _, a, d=d: Opened(d, a)) for d in lex.DOMAINS],
    *([(rf"^(.+), {k} (.+)$", lambda a, b, k=k: Link(a, k, b)) for k in keys] for keys in BUT[::-1]),
    [(rf"^(.+), {c} (.+)$", lambda a, b, c=c: Joined(a, b, c, True)) for c in lex.CONTRASTS]
    + [(rf"^{c} (.+), (.+)$", lambda a, b, c=c: Joined(b, a, c, False)) for c in lex.CONTRASTS],
    [(r"^(.+?) and (.+)$", lambda a, b: Joined(a, b, "and"))],
    [(rf"^{k} ()(.+)$", lambda _, a, k=k: Link(a, k)) for k in things.LINKS],
]


@functools.lru_cache(maxsize=100_000)
def en_phrase(text):
    if not text:
        return None
    if m := re.fullmatch(r"(?:is it true that (.+)|(who .+))\?(?: (\w+))?", text):
        return Ask(en_phrase(m[1] or m[2]), PROPER.get(m[3], m[3] or ""))
    return strongest(text, en_phrase, LEVELS, FORMS, checked)


def english(text):
    """The meaning of an English text: one, or a tuple with one for each sentence."""
    return several(text, en_phrase, en_title, text.lower(), YES)


def several(text, parse, title, plain, yes):
    *sentences, rest = re.split(rf"((?:[^.?]+)(?:\?(?: ?{yes}\.)?|\.))", plain)
    need(not "".join(sentences[::2]).strip(), text)
    parts = [parse(s.strip().removesuffix(".")) for s in sentences[1::2]]
    parts += [title(rest.strip())] if rest.strip() else []
    return tuple(parts) if len(parts) > 1 else parts[0]


def en_title(text):
    if " : " in text:
        return table([cell.split(" : ") for cell in text.split(" , ")])
    m = re.fullmatch(g("{who} (?P<never>never )?{verb} {thing}"), text)
    need(m, text)
    return Headline(Prop(person(m["who"]), m["verb"], Thing(m["thing"], ""), "", bool(m["never"])))


def table(rows):
    named = {dict(near="place").get(key, key): value for key, value in rows}
    return Record(Venue(**named | dict(name=VENUES[named["name"].lower()])))


# ---- what of a meaning is meant ----
def bare(x):
    """A meaning without what no language need say; judgements as Claim and Joined."""
    if isinstance(x, tuple):
        return tuple(map(bare, x))
    if isinstance(x, Meaning):
        return whole(x)
    if isinstance(x, Clause):
        return claim(x)
    if isinstance(x, Sentence):
        main, other = bare(x.main), bare(x.other)
        joined = Link(other, "but", main) if x.link == "but" else Joined(main, other, x.link, x.first)
        return joined if x.link else main
    if isinstance(x, Thing):
        return dataclasses.replace(x, det=x.det if x.det in things.QUANTIFIERS else "")
    if isinstance(x, Told):
        return Told(x.venue)
    if dataclasses.is_dataclass(x) and not isinstance(x, Venue):
        x = dataclasses.replace(x, **{f.name: bare(getattr(x, f.name)) for f in dataclasses.fields(x)})
        if isinstance(x, Headline):
            x = Headline(dataclasses.replace(x.prop, place="", what=Thing(x.prop.what.noun, "")))
    return x


def claim(c):
    said = getattr(c.claim, "phrase", None) or c.claim.word
    extra = c.words.get(dict(intensified="booster", negated="denial").get(c.form), "")
    if c.form != "attributed":
        return Claim(c.aspect.word, said, extra)
    found = c.words["finds"] and isinstance(c.claim, lex.Adjective)
    return Claim(c.aspect.word, said, extra, c.words["speaker"], c.words["finding" if found else "saying"])


def whole(m):
    *sentences, last = map(bare, m.sentences)
    end = Act(Thing(m.who, ""), m.consequence)
    parts = [*sentences, Link(last, "so", end)] if m.joined else [*sentences, last, Link(end, "so")]
    if m.place:
        parts[0] = Opened(m.domain, parts[0])
    return tuple(parts) if len(parts) > 1 else parts[0]


def polarity(x):
    """For (+1) or against (-1): the main clause decides."""
    if isinstance(x, Claim):
        return POLARITY[x.claim] * (-1 if x.extra in lex.DENIALS else 1)
    if isinstance(x, Joined):
        return polarity(x.main)
    if isinstance(x, Opened):
        return polarity(x.what)
    return polarity(x.second if x.word == "but" else x.first)
