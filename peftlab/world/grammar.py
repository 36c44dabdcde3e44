"""Meaning first, words second: a document is a Meaning of Sentences of Clauses, and `realise` puts it into English.

`sample_*` draw a meaning from a random.Random; whoever needs a new kind of task draws or edits meanings and
realises them, so that a label always comes from the meaning and never from the words.
"""
from dataclasses import dataclass, field

from . import lexicon as lex


@dataclass(frozen=True)
class Clause:
    """One judgement: a claim (an Adjective or an Event) about an aspect; `polarity` is what the clause says in all."""
    domain: str
    aspect: lex.Aspect
    claim: lex.Adjective | lex.Event
    polarity: int
    form: str                           # plain, intensified, negated or attributed
    words: dict = field(hash=False)     # the choices which do not change the meaning: article, verb, speaker, ...


@dataclass(frozen=True)
class Sentence:
    """A main clause, perhaps joined to another. The main clause decides the polarity.

    link: "" (one clause) · "and" (both say the same) · "but" (the main clause comes last) · "although", "even though",
    "while" (the main clause is the one without that word; `first` tells whether it comes first).
    """
    main: Clause
    other: Clause | None = None
    link: str = ""
    first: bool = True

    @property
    def polarity(self):
        return self.main.polarity


@dataclass(frozen=True)
class Meaning:
    """A document: sentences of one polarity and a consequence which reveals it."""
    domain: str
    polarity: int
    sentences: tuple
    who: str = ""
    consequence: str = ""
    joined: bool = False                # "…, so we left." rather than "So we left."
    place: bool = False                 # opens with "At the …"


@dataclass(frozen=True)
class Mix:
    """Shares of the forms. Too much negation or symmetric contrast, and pretraining learns only syntax."""
    intensified: float = 0.20
    negated: float = 0.08
    attributed: float = 0.22            # the rest is plain
    joined: float = 0.30                # "and"
    contrast: float = 0.20              # "but", "although": the rest is one clause
    event: float = 0.08                 # share of the plain and attributed clauses which tell an event
    words: dict | None = None           # polarity -> the adjectives allowed (None: all)


def sample_clause(rng, domain, polarity, mix=Mix(), avoid=None):
    """A clause of the given polarity about one aspect of the domain (another one than `avoid`)."""
    aspect = rng.choice([a for a in lex.aspects(domain) if a != avoid])
    form = rng.choices(("intensified", "negated", "attributed", "plain"), (
        mix.intensified, mix.negated, mix.attributed, 1 - mix.intensified - mix.negated - mix.attributed))[0]
    if form in ("plain", "attributed") and rng.random() < mix.event:
        claim = rng.choice(lex.events(polarity, aspect.kind))
    else:
        own = -polarity if form == "negated" else polarity
        claim = rng.choice([a for a in lex.adjectives(own, aspect.kind)
                            if mix.words is None or a.word in mix.words[own]])
    return Clause(domain, aspect, claim, polarity, form, _dressing(rng, claim, aspect))


def _dressing(rng, claim, aspect):
    speakers = rng.choice(lex.NAMES), f"{rng.choice(lex.OWNERS)} {rng.choice(lex.KIN)}", rng.choice(lex.CROWD)
    speaker = rng.choice(speakers)
    return dict(article=rng.choice(lex.ARTICLES), verb=rng.choice(lex.COPULA[aspect.plural]), speaker=speaker,
                booster=rng.choice(lex.BOOSTERS[getattr(claim, "degree", 2)]),
                denial=rng.choice(lex.DENIALS), saying=rng.choice(lex.SAYING), finding=rng.choice(lex.FINDING),
                finds=rng.random() < 0.3)


def sample_sentence(rng, domain, polarity, mix=Mix()):
    """A sentence of one or two clauses whose main clause has the given polarity."""
    main = sample_clause(rng, domain, polarity, mix)
    link = rng.choices(("and", "contrast", ""), (mix.joined, mix.contrast, 1 - mix.joined - mix.contrast))[0]
    if not link:
        return Sentence(main)
    if link == "and":
        return Sentence(main, sample_clause(rng, domain, polarity, mix, avoid=main.aspect), "and")
    other = sample_clause(rng, domain, -polarity, mix, avoid=main.aspect)
    link = "but" if rng.random() < 0.5 else rng.choice(lex.CONTRASTS)
    return Sentence(main, other, link, first=link != "but" and rng.random() < 0.4)


def sample_meaning(rng, mix=Mix(), domain=None, polarity=None, sentences=(2, 2, 3), verdict=0.0):
    """A whole document: so many sentences of one polarity, and the consequence which reveals it.

    verdict: how often the consequence is the plainest, "liked it" or "hated it".
    """
    domain = domain or rng.choice(list(lex.DOMAINS))
    polarity = polarity or rng.choice((lex.POSITIVE, lex.NEGATIVE))
    sentences = tuple(sample_sentence(rng, domain, polarity, mix) for _ in range(rng.choice(sentences)))
    everywhere, here = lex.consequences(polarity, domain)
    who = rng.choice(lex.CROWD + [rng.choice(lex.NAMES)])
    what = rng.choice(here if rng.random() < 0.3 else everywhere)
    if rng.random() < verdict:
        what = lex.VERDICTS[polarity]
    return Meaning(domain, polarity, sentences, who, what, joined=rng.random() < 0.5, place=rng.random() < 0.3)


def realise(x):
    """Clause, Sentence or Meaning -> English text (a clause without capital and full stop)."""
    return _REALISE[type(x)](x)


def phrase(c, wrong=False):
    """A clause in English, without capital and full stop; wrong: its verb does not agree with its subject."""
    w, subject = c.words, f"{c.words['article']} {c.aspect.word}"
    be = lex.COPULA[c.aspect.plural != wrong][0]
    verb = be if wrong else w["verb"]
    if isinstance(c.claim, lex.Event):
        said = f"{subject} {c.claim.phrase}"
    elif c.form == "attributed" and w["finds"]:
        return f"{w['speaker']} {w['finding']} {subject} {c.claim.word}"
    elif c.form == "intensified":
        said = f"{subject} {verb} {w['booster']} {c.claim.word}"
    elif c.form == "negated":
        said = f"{subject} {be} {w['denial']} {c.claim.word}"
    else:
        said = f"{subject} {verb} {c.claim.word}"
    return f"{w['speaker']} {w['saying']} {said}" if c.form == "attributed" else said


def _sentence(s, tail=""):
    main, other = phrase(s.main), s.other and phrase(s.other)
    if not s.link:
        text = main
    elif s.link == "and":
        text = f"{main} and {other}"
    elif s.link == "but":
        text = f"{other}, but {main}"
    else:
        text = f"{main}, {s.link} {other}" if s.first else f"{s.link} {other}, {main}"
    return text[0].upper() + text[1:] + tail + "."


def _meaning(m):
    end = f"so {m.who} {m.consequence}"
    texts = [_sentence(s) for s in m.sentences[:-1]] + [_sentence(m.sentences[-1], f", {end}" if m.joined else "")]
    if m.place:
        start = texts[0] if texts[0].split()[0] in (*lex.NAMES, "I") else texts[0][0].lower() + texts[0][1:]
        texts[0] = f"{lex.WHERE.get(m.domain, 'At')} the {m.domain}, {start}"
    return " ".join(texts if m.joined else texts + [f"S{end[1:]}."])


_REALISE = {Clause: phrase, Sentence: _sentence, Meaning: _meaning}


def vocabulary():
    """Every word and mark that the grammar can write, in lower case and sorted."""
    said = [d for d in lex.DOMAINS] + [a.word for d in lex.DOMAINS for a in lex.aspects(d)]
    said += [a.word for p in lex.ADJECTIVES for a in lex.adjectives(p)]
    said += [e for table in lex.EVENTS.values() for e in table.values()]
    said += [*lex.CONSEQUENCES.values(), *lex.VERDICTS.values()]
    said += [side for pair in lex.LOCAL.values() for side in pair]
    said += lex.NAMES + lex.KIN + lex.OWNERS + lex.CROWD + lex.SAYING + lex.FINDING
    said += [w for table in (lex.COPULA, lex.BOOSTERS) for words in table.values() for w in words]
    said += [*lex.DENIALS, *lex.ARTICLES, *lex.CONTRASTS, *lex.WHERE.values(), "and but so at the . ,"]
    return sorted({w for text in said for w in text.lower().replace("|", " ").split()})
