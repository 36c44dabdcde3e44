"""The micro-world: the meaning decides, the seed repeats, and what is shipped is what the commands make."""
import json
import random

import pytest
import torch

from peftlab.errors import PeftlabError
from peftlab.paths import data
from peftlab.world import corpus, reviews
from peftlab.world import lexicon as lex
from peftlab.world.__main__ import main
from peftlab.world.card import sha256
from peftlab.world.grammar import (
    Clause,
    Mix,
    Sentence,
    realise,
    sample_clause,
    sample_meaning,
    sample_sentence,
    vocabulary,
)
from peftlab.world.pretrain import pretrain
from peftlab.world.tokenizer import tokenizer

POLARITY = {a.word: p for p in lex.ADJECTIVES for a in lex.adjectives(p)}
EVENTS = [e for p, kinds in lex.EVENTS.items() for kind in kinds for e in lex.events(p, kind)]


def words(text):
    return text.lower().replace(",", " ").replace(".", " ").split()


def read_off(text):
    """The polarity of one clause from its words alone: its event, or the last judging word, turned by a denial."""
    for event in EVENTS:
        if text.endswith(event.phrase):
            return event.polarity
    denied = any(f" {d} " in f" {text} " for d in lex.DENIALS)
    said = [POLARITY[w] for w in words(text) if w in POLARITY]
    return -said[-1] if denied else said[-1]


@pytest.fixture(scope="module")
def made():
    return reviews.splits()


def test_the_world_is_wide():
    assert len(lex.DOMAINS) >= 8
    for domain in lex.DOMAINS:
        assert len(lex.aspects(domain)) >= 10, domain
    for polarity in lex.ADJECTIVES:
        found = lex.adjectives(polarity)
        assert len({a.word for a in found}) == len(found) >= 30
        assert {a.degree for a in found} == {1, 2, 3}
    assert len(POLARITY) == sum(len(lex.adjectives(p)) for p in lex.ADJECTIVES), "a word is of both polarities"


def test_every_aspect_has_events_of_both_polarities():
    for domain in lex.DOMAINS:
        for aspect in lex.aspects(domain):
            assert all(lex.events(p, aspect.kind) for p in lex.ADJECTIVES), aspect


def test_same_seed_same_bytes_and_another_seed_another_text():
    assert corpus.documents(50, 3, 7) == corpus.documents(50, 3, 7)
    assert corpus.documents(50, 3, 7) != corpus.documents(50, 3, 8)
    assert corpus.documents(50, 3, 7) != corpus.documents(50, 4, 7)


def test_a_clause_says_what_its_meaning_says():
    rng = random.Random(1)
    for _ in range(2000):
        polarity = rng.choice((1, -1))
        c = sample_clause(rng, rng.choice(list(lex.DOMAINS)), polarity, Mix(event=0.2))
        assert c.polarity == polarity and read_off(realise(c)) == polarity, realise(c)


def test_the_main_clause_decides():
    rng = random.Random(2)
    for _ in range(2000):
        polarity = rng.choice((1, -1))
        s = sample_sentence(rng, "hotel", polarity)
        assert s.polarity == s.main.polarity == polarity
        if s.other:
            assert s.other.polarity == (polarity if s.link == "and" else -polarity)


def test_contrast_is_written_as_the_docstring_says():
    clause = {p: sample_clause(random.Random(4), "hotel", p, Mix(0, 0, 0, event=0.0)) for p in (1, -1)}
    good, bad = realise(clause[1]), realise(clause[-1])
    wrote = {link: realise(Sentence(clause[1], clause[-1], link, first)).lower().rstrip(".")
             for link, first in (("but", False), ("although", False), ("while", True))}
    assert wrote == {"but": f"{bad}, but {good}", "although": f"although {bad}, {good}",
                     "while": f"{good}, while {bad}"}


def test_a_document_keeps_to_one_polarity():
    rng = random.Random(3)
    for _ in range(500):
        m = sample_meaning(rng)
        everywhere, here = lex.consequences(m.polarity, m.domain)
        assert {s.polarity for s in m.sentences} == {m.polarity} and m.consequence in everywhere + here
        assert m.consequence in realise(m) and 2 <= len(m.sentences) <= 3


def test_the_shares_are_those_of_the_mix():
    rng, n = random.Random(5), 6000
    drawn = [sample_sentence(rng, "ship", 1) for _ in range(n)]
    forms = [s.main.form for s in drawn]
    for form, share in dict(intensified=0.20, negated=0.08, attributed=0.22, plain=0.50).items():
        assert abs(forms.count(form) / n - share) < 0.02, form
    links = [s.link for s in drawn]
    assert abs(links.count("") / n - 0.5) < 0.02 and abs(links.count("and") / n - 0.3) < 0.02


def test_every_word_is_in_the_tokenizer(made):
    t = tokenizer()
    texts = corpus.documents(2000, 11) + [r["text"] for rows in made.values() for r in rows]
    ids = t(texts)["input_ids"]
    assert not any(t.unk_token_id in row for row in ids)
    assert max(map(len, ids)) <= t.model_max_length
    assert set(vocabulary()) <= set(t.get_vocab()) and len(t) == len(vocabulary()) + 5


def test_the_tokenizer_loads_like_any_other(tmp_path):
    from transformers import AutoTokenizer
    tokenizer().save_pretrained(tmp_path)
    t = AutoTokenizer.from_pretrained(tmp_path)
    assert t("The soup", "was good")["input_ids"] == tokenizer()("The soup", "was good")["input_ids"]
    assert (t.bos_token_id, t.pad_token_id, t.eos_token_id, t.unk_token_id, t.mask_token_id) == (0, 1, 2, 3, 4)
    assert t("the zyzzyva")["input_ids"][2] == t.unk_token_id


def test_reviews_are_balanced_disjoint_and_of_their_sizes(made):
    assert {k: len(v) for k, v in made.items()} == reviews.SPLITS
    texts = [r["text"] for rows in made.values() for r in rows]
    assert len(set(texts)) == len(texts)
    for rows in made.values():
        assert sum(r["label"] for r in rows) * 2 == len(rows)
    assert max(len(words(t)) for t in texts) <= 24


def test_the_label_is_the_polarity_of_the_main_clause(made):
    """Read off the words again, by the rule in the docstring: nothing of the generator's meaning is used."""
    for row in made["test"]:
        text = row["text"].rstrip(".")
        text = text[0].lower() + text[1:]
        if ", but " in text:
            main = text.split(", but ")[1]
        elif text.startswith(lex.CONTRASTS):
            main = text.split(", ")[1]
        else:
            main = text.split(", ")[0].split(" and ")[0]
        assert read_off(main) == (1 if row["label"] else -1), row


def test_unseen_words_are_unseen_in_training(made):
    train, test = ({w for r in made[s] for w in words(r["text"])} for s in ("train", "test"))
    unseen = set(POLARITY) - {w for seen in reviews.SEEN.values() for w in seen}
    assert len(unseen) > len(POLARITY) / 2 and not unseen & train and unseen <= test
    assert sum(any(w in unseen for w in words(r["text"])) for r in made["test"]) > 0.5 * len(made["test"])


def test_the_shipped_task_is_what_the_command_makes(tmp_path, capsys):
    main(["tasks", "--out", str(tmp_path)])
    assert "reviews" in capsys.readouterr().out
    made, shipped = tmp_path / "reviews", data() / "tasks" / "reviews"
    assert {p.name for p in made.iterdir()} == {"train.jsonl", "validation.jsonl", "test.jsonl", "card.json"}
    for p in made.iterdir():
        assert p.read_bytes() == (shipped / p.name).read_bytes(), p.name


def test_sample_prints_documents(capsys):
    main(["sample", "-n", "3", "--seed", "9"])
    assert capsys.readouterr().out.splitlines() == corpus.documents(3, 9)


def test_masking_follows_its_generator_and_spares_the_special_tokens():
    t = tokenizer()
    b = corpus.batches(t, 8, seed=1, group=1)[0]
    seen, labels = corpus.masked(b, t, torch.Generator().manual_seed(1))
    again, _ = corpus.masked(b, t, torch.Generator().manual_seed(1))
    assert torch.equal(seen, again)
    chosen = labels != -100
    assert (b["input_ids"][chosen] > t.mask_token_id).all() and torch.equal(labels[chosen], b["input_ids"][chosen])
    assert torch.equal(seen[~chosen], b["input_ids"][~chosen]) and 0.1 < chosen.float().mean() < 0.3


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    """The same 20 steps: straight, and stopped at step 10 and taken up again."""
    straight, resumed = tmp_path_factory.mktemp("straight"), tmp_path_factory.mktemp("resumed")
    said = []
    card = pretrain(out=straight, steps=20, batch=16, every=10, say=said.append)

    def stop(text):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        pretrain(out=resumed, steps=20, batch=16, every=10, say=stop)
    assert (resumed / "resume.safetensors").exists()
    with pytest.raises(PeftlabError, match="another run"):
        pretrain(out=resumed, steps=30, batch=16)
    pretrain(out=resumed, steps=20, batch=16, every=10)
    return straight, resumed, card, said


def test_pretraining_lowers_the_loss(twenty):
    card = twenty[2]
    assert card["held_out_loss"] < 0.97 * torch.tensor(float(card["vocabulary"])).log().item()
    assert any(text.startswith("step 10/20") for text in twenty[3])


def test_pretraining_repeats_bit_for_bit_even_when_interrupted(twenty):
    straight, resumed, card, _ = twenty
    assert sha256(straight / "model.safetensors") == sha256(resumed / "model.safetensors") == card["sha256"]
    assert not (resumed / "resume.safetensors").exists()
    again = json.loads((resumed / "card.json").read_text())
    assert again["tokens"] == card["tokens"] > 20 * 16 * 10


def test_a_pretrained_folder_is_an_ordinary_one(twenty):
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    model, t = AutoModelForMaskedLM.from_pretrained(twenty[0]), AutoTokenizer.from_pretrained(twenty[0])
    assert model.dtype == torch.float32 and model.config.pad_token_id == t.pad_token_id == 1
    with torch.no_grad():
        assert model(**t(["The soup was good."], return_tensors="pt")).logits.shape[-1] == len(t)


def test_shipped_backbones_agree_with_their_cards():
    cards = sorted((data() / "backbones").glob("*/card.json"))
    assert cards
    table = (data() / "README.md").read_text()
    for path in cards:
        card = json.loads(path.read_text())
        assert sha256(path.parent / "model.safetensors") == card["sha256"] and card["sha256"] in table
        assert card["vocabulary"] == len(tokenizer()) and card["command"] in (path.parent / "README.md").read_text()


def test_meanings_can_be_edited_and_realised():
    """What later task kinds rest on: change the meaning, and the words follow."""
    c = sample_clause(random.Random(6), "ship", 1, Mix(0, 0, 0, event=0.0))
    other = Clause(c.domain, c.aspect, lex.adjectives(-1)[0], -1, c.form, c.words)
    assert realise(c).replace(c.claim.word, other.claim.word) == realise(other)
