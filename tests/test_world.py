"""The micro-world: its words, its grammar and its corpus; and no answer is given away by one word.

What the texts mean is tested in test_meaning, the tasks in test_embedded, pretraining in test_pretrain.
"""

import collections
import random

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from peftlab.world import corpus, embedded, logic, things, xx
from peftlab.world import lexicon as lex
from peftlab.world.__main__ import main
from peftlab.world.draw import Draw
from peftlab.world.grammar import (
    Clause,
    Mix,
    Sentence,
    realise,
    sample_clause,
    sample_meaning,
    sample_sentence,
)
from peftlab.world.scenes import COPY, say
from peftlab.world.tokenizer import MARKS, function_words, telling_words, tokenizer, vocabulary

ADJECTIVES = [a for p in lex.ADJECTIVES for a in lex.adjectives(p)]


@pytest.fixture(scope="module")
def pieces():
    return tokenizer()


@pytest.fixture(scope="module")
def documents():
    return corpus.documents(2000, 11)


# ---- words ----
def test_the_world_is_wide():
    assert len(lex.DOMAINS) >= 8
    for domain in lex.DOMAINS:
        assert len(lex.aspects(domain)) >= 10, domain
        assert len(things.PEOPLE[domain]) >= 1 and len(things.PLACES[domain]) >= 2, domain
        assert {*things.classes(domain)} <= {*things.CLASSES}
    for polarity in lex.ADJECTIVES:
        found = lex.adjectives(polarity)
        assert len({a.word for a in found}) == len(found) >= 30
        assert {a.degree for a in found} == {1, 2, 3}
    assert len({a.word for a in ADJECTIVES}) == len(ADJECTIVES), "a word is of both polarities"


def test_every_aspect_has_events_of_both_polarities():
    for domain in lex.DOMAINS:
        for aspect in lex.aspects(domain):
            assert all(lex.events(p, aspect.kind) for p in lex.ADJECTIVES), aspect


def test_opposites_are_mutual_and_every_word_has_one_meaning():
    words = [w for v in things.VERBS.values() for w in v.words] + [w for n in things.LOOKS for w in things.looks(n)]
    assert len({*words}) == len(words)
    for word in words:
        for against in things.opposites(word):
            assert word in things.opposites(against) and word not in things.synonyms(against)
        assert len(things.synonyms(word)) == 2
    for name, verb in things.VERBS.items():
        if verb.opposite:
            assert {*verb.classes} & {*things.VERBS[verb.opposite].classes}, name


def test_every_class_has_verbs_of_its_own_and_every_sense_a_verb_that_tells_it():
    for kind in things.CLASSES:
        assert len({*things.things(kind, False)}) == 8 and len(things.verbs(kind)) >= 10, kind
    for noun, senses in things.SENSES.items():
        first, second = ({*things.verbs(kind)} for kind in senses)
        assert first - second and second - first, noun
    assert not {*things.SENSES} & {w for words in things.CLASSES.values() for w in words.split()}


def test_people_of_reasons_are_she_or_he():
    assert not {*things.SHE} & {*things.HE} and {*lex.NAMES} == {*things.SHE, *things.HE} & {*lex.NAMES}
    verbs = " ".join(things.FEELINGS.values()).split()
    assert len({*verbs}) == len(verbs) and {k for k in things.FEELINGS} == {
        (r, p) for r in ("who", "whom") for p in (1, -1)
    }
    moods = " ".join(things.MOODS.values()).split()
    assert len({*moods}) == len(moods) and not {*moods} & {a.word for a in ADJECTIVES}
    for polarity, word in lex.GENERAL.items():
        assert [a.kind for a in lex.adjectives(polarity) if a.word == word] == ["any"]


def test_every_phrase_and_every_topic_word_is_of_one_kind():
    phrases = [p for name in things.SCENARIOS for side in things.scenario(name) for p in side]
    topics = " ".join(things.TOPICS.values()).split()
    assert len({*phrases}) == len(phrases) and len({*topics}) == len(topics) and not {*topics} & {*things.TOPICS}
    ends = [e for p in lex.ADJECTIVES for d in lex.DOMAINS for es in lex.consequences(p, d) for e in es]
    assert not {*lex.VERDICTS.values()} & {*phrases, *ends}
    assert {name for alike in things.ALIKE for name in alike.split()} <= {*things.SCENARIOS}


# ---- the second language ----
def test_no_stem_is_english_and_no_stem_means_two_things():
    stems = xx.dictionary()
    assert len({*stems.values()}) == len(stems) and not {*stems.values()} & {*xx.english()}


def test_stems_and_endings_are_pieces(pieces):
    ending = {**xx.ENDINGS}
    for lexeme, stem in xx.dictionary().items():
        for name, end in ending.items():
            assert pieces.tokenize(xx.word(lexeme, name)) == [stem, f"##{end}"]
    for name in lex.NAMES:
        assert pieces.tokenize(xx.word(name, "object").capitalize()) == [name.lower(), "##ka"]
    assert pieces.tokenize(xx.word("soup", "plural", "object")) == [xx.word("soup"), "##mi", "##ka"]


# ---- the tokenizer ----
def test_every_word_is_in_the_tokenizer(pieces, documents):
    ids = pieces(documents)["input_ids"]
    assert not any(pieces.unk_token_id in row for row in ids)
    assert max(map(len, ids)) <= pieces.model_max_length
    assert len({*vocabulary()}) == len(vocabulary()) == len(pieces)
    english = {*xx.english()}
    assert all(pieces.tokenize(w) == [w] for w in english)


def test_small_words_are_not_content():
    small = function_words()
    assert {"the", "a", "every", "because", ".", "##ka", *MARKS, xx.word("every"), xx.word("because")} <= small
    telling = {"never", "so", "surely", "namely", "weather", xx.word("so"), xx.word("hated it")}
    assert telling <= telling_words() <= {*vocabulary()} and not small & telling_words()
    assert not small & {*lex.NAMES, *things.CLASSES, *(a.word for a in ADJECTIVES)}


def test_the_tokenizer_loads_like_any_other(tmp_path, pieces):
    from transformers import AutoTokenizer

    pieces.save_pretrained(tmp_path)
    t = AutoTokenizer.from_pretrained(tmp_path)
    assert t("The soup", "was good")["input_ids"] == pieces("The soup", "was good")["input_ids"]
    assert (t.bos_token_id, t.pad_token_id, t.eos_token_id, t.unk_token_id, t.mask_token_id) == (0, 1, 2, 3, 4)
    assert t("the zyzzyva")["input_ids"][2] == t.unk_token_id


# ---- judgements ----
def test_the_main_clause_decides():
    rng = random.Random(2)
    for _ in range(1000):
        polarity = rng.choice((1, -1))
        s = sample_sentence(rng, "hotel", polarity)
        assert s.polarity == s.main.polarity == polarity
        if s.other:
            assert s.other.polarity == (polarity if s.link == "and" else -polarity)


def test_contrast_is_written_as_the_docstring_says():
    clause = {p: sample_clause(random.Random(4), "hotel", p, Mix(0, 0, 0, event=0.0)) for p in (1, -1)}
    good, bad = realise(clause[1]), realise(clause[-1])
    wrote = {
        link: realise(Sentence(clause[1], clause[-1], link, first)).lower().rstrip(".")
        for link, first in (("but", False), ("although", False), ("while", True))
    }
    assert wrote == dict(but=f"{bad}, but {good}", although=f"although {bad}, {good}") | {
        "while": f"{good}, while {bad}"
    }


def test_a_document_keeps_to_one_polarity():
    rng = random.Random(3)
    for _ in range(300):
        m = sample_meaning(rng)
        everywhere, here = lex.consequences(m.polarity, m.domain)
        assert {s.polarity for s in m.sentences} == {m.polarity} and m.consequence in everywhere + here
        assert m.consequence in realise(m) and 2 <= len(m.sentences) <= 3


def test_the_shares_are_those_of_the_mix():
    rng, n = random.Random(5), 6000
    drawn = [sample_sentence(rng, "ship", 1) for _ in range(n)]
    forms = collections.Counter(s.main.form for s in drawn)
    for form, share in dict(intensified=0.20, negated=0.08, attributed=0.22, plain=0.50).items():
        assert abs(forms[form] / n - share) < 0.02, form
    links = [s.link for s in drawn]
    assert abs(links.count("") / n - 0.5) < 0.02 and abs(links.count("and") / n - 0.3) < 0.02


def test_meanings_can_be_edited_and_realised():
    """What every task kind rests on: change the meaning, and the words follow."""
    c = sample_clause(random.Random(6), "ship", 1, Mix(0, 0, 0, event=0.0))
    other = Clause(c.domain, c.aspect, lex.adjectives(-1)[0], -1, c.form, c.words)
    assert realise(c).replace(c.claim.word, other.claim.word) == realise(other)


# ---- scenes ----
def test_a_scene_makes_sense_and_its_knobs_do_what_they_say():
    draw = Draw(random.Random(8))
    for i in range(1200):
        draw.domain = list(lex.DOMAINS)[i % 12]
        p = logic.scene(
            draw, look=i % 2, place=i // 2 % 2, never=i // 4 % 2, quantified=i % 3 == 0, opposed=i % 5 == 0, clear=True
        )
        assert (bool(p.what.look), bool(p.place), p.never) == (bool(i % 2), bool(i // 2 % 2), bool(i // 4 % 2))
        assert (p.who.det in ("every", "some")) == (i % 3 == 0)
        assert {*logic.kinds_of(p.what.noun)} <= {*logic.verb_of(p.verb).classes} and len(
            logic.kinds_of(p.what.noun)
        ) == 1
        assert i % 5 or things.opposites(p.verb)


# ---- the corpus ----
def test_same_seed_same_bytes_and_another_seed_another_text():
    assert corpus.documents(50, 3, 7) == corpus.documents(50, 3, 7)
    assert corpus.documents(50, 3, 7) == corpus.documents(90, 3, 7)[:50]
    blocks = [corpus.documents(50, 3, 8), corpus.documents(50, 4, 7), corpus.documents(50, 3, corpus.HELD_OUT)]
    for other in blocks:
        assert len({*corpus.documents(50, 3, 7)} & {*other}) <= 2


def test_the_corpus_is_mixed_as_declared(monkeypatch, documents):
    assert sum(corpus.TEXTS.values()) == pytest.approx(1) == sum(corpus.LANGUAGES.values())
    drawn = collections.Counter()
    counted = {lambda draw, t=text: (drawn.update([t]), t(draw))[1]: share for text, share in corpus.TEXTS.items()}
    monkeypatch.setattr(corpus, "TEXTS", counted)
    assert corpus.documents(2000, 11) == documents, "counting changes nothing"
    monkeypatch.undo()
    for text, share in corpus.TEXTS.items():
        assert abs(drawn[text] / 2000 - share) < 0.03, text.__name__
    english = {*xx.english()}
    language = lambda text: "both" if COPY in text.split() else "en" if is_english(text, english) else "xx"
    found = collections.Counter(map(language, documents))
    for lang, share in corpus.LANGUAGES.items():
        assert abs(found[lang] / 2000 - share) < 0.04, lang


def is_english(text, english):
    words = text.lower().replace(",", " ").replace(".", " ").replace("?", " ").split()
    return sum(w in english for w in words) > len(words) / 2


def test_a_translation_in_the_corpus_is_of_its_sentence():
    draw = Draw(random.Random(9), domain="hotel")
    p = logic.scene(draw)
    assert say(corpus.Same(p)) == f"{say(p)} {COPY} {say(p, 'xx')}"


def test_sample_prints_documents(capsys):
    main(["sample", "-n", "3", "--seed", "9"])
    assert capsys.readouterr().out.splitlines() == corpus.documents(3, 9)


# ---- no answer is given away: a bag of the words of one text must stay near chance ----
@pytest.mark.parametrize("lang", embedded.LANGS)
@pytest.mark.parametrize(
    ("name", "column", "most"),
    [("paraphrase", "text2", 0.62), ("sense", "text2", 0.62), ("answer", "text2", 0.62), ("cause", "text2", 0.62),
     ("entail", "text2", 0.45), ("entail", "text", 0.55), ("answer", "text", 0.62), ("cause", "text", 0.62),
     ("grammar", "text", 0.58), ("refer", "text", 0.62)],
)  # fmt: skip
def test_no_word_gives_the_answer_away(pieces, name, column, most, lang):
    made = embedded.splits(name, lang, size=1000, unseen=0.0)[1]
    words = CountVectorizer(analyzer=pieces.tokenize)
    seen = words.fit_transform([r[column] for r in made["train"]])
    model = LogisticRegression(C=0.3, max_iter=300).fit(seen, [r["label"] for r in made["train"]])
    test = words.transform([r[column] for r in made["test"]])
    assert model.score(test, [r["label"] for r in made["test"]]) <= most
