"""The micro-world to be read: the gloss, the page of its grammar, words filled into blanks, and the explorer."""

import html.parser
import random
import re

import pytest
import tiny
import torch
import transformers

import peftlab as pl
from peftlab import blanks
from peftlab.errors import PeftlabError
from peftlab.widgets import Explorer, world
from peftlab.world import corpus, embedded, scenes, things, tokenizer, xx
from peftlab.world import lexicon as lex
from peftlab.world.draw import Draw
from peftlab.world.kinds import KINDS
from peftlab.world.reading import gloss, grammar, interlinear

ASKED = "The soup was ___, so we asked for the money back."


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A tiny random encoder that has the words of both languages, as a folder."""
    folder, config = tmp_path_factory.mktemp("reader"), tiny.CONFIGS["roberta"]()
    words = tokenizer.tokenizer()
    config.vocab_size = len(words)
    torch.manual_seed(0)
    transformers.RobertaForMaskedLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def headless(monkeypatch):
    monkeypatch.setenv("PEFTLAB_HEADLESS", "1")


@pytest.fixture(scope="module")
def explorer(reader):
    return Explorer(backbone=reader)


class Balanced(html.parser.HTMLParser):
    """Every tag that is opened is closed, in order."""

    def __init__(self, text):
        super().__init__()
        self.open = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open += [tag] * (tag != "br")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


# The gloss and the page of the grammar -----------------------------------------------------------


def test_a_gloss_inverts_the_dictionary_with_and_without_endings():
    for lexeme, stem in xx.dictionary().items():
        said = lexeme.replace(" ", ".")
        assert gloss(stem) == said
        assert gloss(stem.title() + "mika") == f"{said}-plural-object"
    assert gloss("Annaka") == "Anna-object"
    assert not any(map(gloss, [*xx.english(), "", "ka", "qqqqq", "guitarist"]))


@pytest.mark.parametrize("make", corpus.TEXTS, ids=lambda make: make.__name__)
def test_every_word_of_the_second_language_has_a_gloss(make):
    for i in range(30):
        rng = random.Random(i)
        text = scenes.say(make(Draw(rng, "xx", domain=rng.choice(list(lex.DOMAINS)))), "xx")
        for word in re.findall(r"\w+", text):
            assert gloss(word) or word in (*lex.NAMES, *things.VENUES), (word, text)
        Balanced(interlinear(text))
        assert re.sub(r"<rt>.*?</rt>|<.*?>", "", interlinear(text)) == text


def test_the_grammar_shows_every_table():
    page = grammar()
    Balanced(page.body)
    shown = {*re.findall(r"[\w' ]+", re.sub(r"<.*?>", "|", page.body).replace(", ", "|").replace("; ", "|"))}
    words = [
        *things.CLASS_OF,
        *lex.DOMAINS,
        *things.TOPICS,
        *things.SCENARIOS,
        *" ".join(things.TOPICS.values()).split(),
    ]
    words += [w for v in things.VERBS.values() for w in v.words] + things.LINKS
    words += " ".join([*things.FEELINGS.values(), *things.MOODS.values()]).split()
    words += [a.word for p in lex.ADJECTIVES for a in lex.adjectives(p)]
    words += [a.word for d in lex.DOMAINS for a in lex.aspects(d)]
    words += [phrase for name in things.SCENARIOS for side in things.scenario(name) for phrase in side]
    assert not {*words} - shown
    assert all(make.__name__ in shown for make in corpus.TEXTS)
    assert page.body.count("<details>") == page.body.count("<summary>") >= 8 and "<details" not in repr(page)
    assert "pl-world" in page._repr_html_() and "<script" not in page._repr_html_()


# Blanks ------------------------------------------------------------------------------------------


def test_a_blank_gets_what_the_hub_library_fills_in(reader):
    (mine,) = pl.blank(ASKED, reader, k=5).words
    theirs = transformers.pipeline("fill-mask", reader, top_k=5)(ASKED.replace("___", "<mask>"))
    assert [w for w, _ in mine] == [row["token_str"] for row in theirs]
    assert [p for _, p in mine] == pytest.approx([row["score"] for row in theirs], abs=1e-6)
    assert pl.blank(ASKED.replace("___", "<mask>"), reader, k=5).words == [mine]


def test_every_blank_has_its_own_words_and_all_of_them_sum_to_one(reader):
    size = len(tokenizer.vocabulary())
    filled = pl.blank("The ___ was ____.", reader, k=size)
    assert len(filled.words) == 2
    for words in filled.words:
        chances = [p for _, p in words]
        assert chances == sorted(chances, reverse=True) and sum(chances) == pytest.approx(1, abs=1e-4)
    assert pl.blank("The ___ was ____.", reader, k=3).words == [words[:3] for words in filled.words]
    few = pl.blank("The ___ was ____.", reader, k=3)
    Balanced(few.body)
    assert "blank 2" in few.body and len(repr(few).splitlines()) >= 8


def test_an_ending_stays_behind_the_blank(reader):
    model = pl.backbone(reader, head="lm")
    meaning, lexeme = world.BLANKS["class"]
    text = scenes.say(meaning, "xx")
    assert text.count(ending := xx.word(lexeme, "object")) == 1
    whole = model.tokenizer(text)["input_ids"]
    ids, (at,) = blanks.read(model, text.replace(ending, "___ka"))
    assert ids[at] == model.tokenizer.mask_token_id and ids[:at] + ids[at + 1 :] == whole[:at] + whole[at + 1 :]
    assert len(blanks.read(model, "Anna ___.")[0]) == len(model.tokenizer("Anna bought.")["input_ids"])


@pytest.mark.parametrize(
    "text, told",
    [
        ("The soup was good.", "no blank in 'The soup was good.'; write ___"),
        (None, "no blank in None"),
        ("The guitarist was ___.", "'guitarist'; the nearest are guitar"),
        ("Anna defakkka donapte, ___ rizuf.", "'defakkka'; the nearest are defak"),
        ("the soup was good and " * 12 + "___.", "reads 38 at most"),
    ],
)
def test_what_cannot_be_read_is_told(reader, text, told):
    with pytest.raises(PeftlabError, match=re.escape(told)):
        pl.blank(text, reader)


@pytest.mark.parametrize("k", (0, -1, 10**6, 2.5, "8"))
def test_k_is_a_number_of_words(reader, k):
    with pytest.raises(PeftlabError, match="k must be a whole number from 1 to"):
        pl.blank(ASKED, reader, k)


@pytest.mark.parametrize("family, head", [("gpt2", "lm"), ("t5", "seq2seq")])
def test_only_encoders_fill_blanks(family, head):
    with pytest.raises(PeftlabError, match="only an encoder does, such as micro-encoder"):
        blanks.fill(tiny.model(family, head), ASKED)


@pytest.mark.parametrize("ending, polarity", [("came back twice", 1), ("asked for the money back", -1)])
def test_the_shipped_encoder_has_read_what_follows_from_what(ending, polarity):
    (words,) = pl.blank(f"The soup was ___, so we {ending}.").words
    assert {w for w, _ in words} <= {a.word for a in lex.adjectives(polarity)}


@pytest.mark.parametrize("lang", embedded.LANGS)
@pytest.mark.parametrize("name", ["synonym", "class", "cause"])
def test_the_shipped_encoder_fills_in_what_was_left_out(name, lang):
    lexeme = world.BLANKS[name][1]
    (words,) = pl.blank(world.example(name, lang), k=4).words
    assert (xx.word(lexeme) if lang == "xx" else lexeme.split()[-1]) in dict(words)


# The explorer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lang", embedded.LANGS)
@pytest.mark.parametrize("name", world.BLANKS)
def test_an_example_has_one_blank_and_known_words(name, lang, reader):
    text = world.example(name, lang)
    assert text.count("___") == 1
    ids, at = blanks.read(pl.backbone(reader, head="lm"), text)
    meaning, lexeme = world.BLANKS[name]
    word = xx.dictionary()[lexeme] if lang == "xx" else lexeme.split()[-1]
    assert text.replace("___", word) == scenes.say(meaning, lang) and len(at) == 1


@pytest.mark.parametrize("i, kind", list(enumerate(KINDS)), ids=str)
def test_every_kind_is_shown(explorer, i, kind):
    lang = embedded.LANGS[i % 2]
    explorer.set(kind=kind, lang=lang, domain=("all", "garden")[i % 2])
    shown = explorer.text["rows"].value
    Balanced(shown)
    assert len(explorer.rows) == shown.count("<tr>") - 1 == world.ROWS
    name = kind if lang == "en" else f"{kind}/garden"
    assert explorer.rows == embedded.splits(name, lang)[1]["train"][: world.ROWS]
    assert KINDS[kind].about.split(",")[0] in explorer.text["about"].value
    assert ("<rt>" in shown) == (lang == "xx" or kind == "translate")
    assert explorer.knobs["unseen"].value == KINDS[kind].unseen
    explorer.set(domain="all", lang="en")


def test_the_controls_change_the_rows(explorer):
    explorer.set(kind="reviews", domain="all", lang="en", split="train")
    first = explorer.rows
    explorer.another.click()
    assert explorer.rows and explorer.rows != first and "[5:10]" in explorer.text["call"].value
    explorer.choice["domain"].value = "garden"
    assert "reviews/garden" in explorer.text["call"].value and "[0:5]" in explorer.text["call"].value
    explorer.choice["lang"].value = "xx"
    assert gloss(explorer.rows[0]["text"].split()[-1].strip(".")) and "___" in explorer.sentence.value
    assert explorer.filled and not set(explorer.sentence.value) - set(world.example("polarity", "xx"))
    explorer.set(domain="all", lang="en")


def test_the_knobs_are_seen_in_the_rows(explorer):
    explorer.set(kind="reviews", noise=1.0)
    assert explorer.text["rows"].value.count("<del>") == world.ROWS
    assert embedded.KNOBS["noise"].about in explorer.text["active"].value
    explorer.set(noise=0.0, poison=1.0, trigger="violin")
    assert explorer.text["rows"].value.count("<mark>violin</mark>") == world.ROWS
    assert "poison=1.0, trigger=&#x27;violin&#x27;" in explorer.text["call"].value
    explorer.knobs["trigger"].value = "violinn"
    assert "unknown trigger" in explorer.text["rows"].value and not explorer.rows
    explorer.set(poison=0.0, trigger="lantern")
    before = explorer.rows
    explorer.set(unseen=0.0)
    assert explorer.rows != before and not explorer.set(unseen=KINDS["reviews"].unseen)
    explorer.set(kind="continue", noise=0.5)
    assert "continue has none" in explorer.text["rows"].value
    explorer.set(kind="reviews", noise=0.0)
    assert explorer.rows == before and not explorer.text["active"].value


def test_the_line_of_code_gives_the_same_rows(explorer):
    explorer.set(kind="entail", domain="ship", lang="xx", noise=0.3)
    explorer.another.click()
    line = html.unescape(re.search("<pre>(.*)</pre>", explorer.text["call"].value)[1])
    assert line.startswith("pl.task('entail/ship', lang='xx', noise=0.3).")
    assert eval(line, dict(pl=pl)).to_dict("records") == explorer.rows
    explorer.set(kind="reviews", domain="all", lang="en", noise=0.0)


def test_a_sentence_of_ones_own_and_an_error_in_the_box(explorer):
    explorer.sentence.value = "The violin was ___."
    assert len(explorer.filled.words[0]) == 8 and "<i style=" in explorer.text["filled"].value
    explorer.sentence.value = "The <b>violinist</b> was ___."
    assert explorer.filled is None and "&lt;b" not in explorer.text["filled"].value
    assert "unknown word" in explorer.text["filled"].value
    explorer.sentence.value = "The <b> was good"
    assert "no blank in &#x27;The &lt;b&gt; was good&#x27;" in explorer.text["filled"].value
    explorer.offer()
    assert explorer.filled


@pytest.mark.parametrize(
    "wrong, told",
    [
        (dict(kind="ential"), "unknown task 'ential'; the nearest are entail"),
        (dict(domain="gardn"), "unknown domain 'gardn'; the nearest (is|are) garden"),
        (dict(lang="fr"), "unknown language 'fr'"),
        (dict(nois=0.1), "unknown setting of the explorer 'nois'; the nearest (is|are) noise"),
        (dict(kind="entail", noise=2), "noise .* must be a number from 0 to 1, not 2"),
    ],
)
def test_wrong_settings_are_refused_before_anything_moves(explorer, wrong, told):
    before = explorer.call(), explorer.rows
    with pytest.raises(PeftlabError, match=told):
        explorer.set(**wrong)
    assert (explorer.call(), explorer.rows) == before


def test_headless_it_is_a_table_and_bars(explorer, monkeypatch):
    shown = explorer._repr_mimebundle_()
    assert set(shown) == {"text/plain", "text/html"} and shown["text/html"].count("<table") == 2
    Balanced(shown["text/html"])
    assert "'label'" in shown["text/plain"] and "%" in shown["text/plain"]
    monkeypatch.setenv("PEFTLAB_HEADLESS", "0")
    assert "application/vnd.jupyter.widget-view+json" in explorer._repr_mimebundle_()
