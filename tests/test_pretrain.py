"""Pretraining: each family learns from its own objective, repeats bit for bit, and is saved as an ordinary folder."""

import contextlib
import itertools
import json
import random
import re
import signal

import pytest
import torch
from transformers import AutoTokenizer

import peftlab
from peftlab import kernels
from peftlab.errors import PeftlabError
from peftlab.paths import data
from peftlab.world import architectures, objectives, slices
from peftlab.world.__main__ import main
from peftlab.world.card import about, sha256, write_table
from peftlab.world.pretrain import adam, load_state, precision, pretrain, products, rate, save_state, where
from peftlab.world.tokenizer import function_words, telling_words, tokenizer

KINDS = dict(roberta="encoder", gpt2="decoder", t5="seq2seq")


@pytest.fixture(scope="module")
def words():
    return tokenizer()


@pytest.fixture(scope="module")
def ids(words):
    """Padded token ids (b t) of some documents."""
    blocks = objectives.Blocks(objectives.NextWord(words), 16, seed=1)
    return blocks.padded(words(objectives.corpus.documents(16, 1))["input_ids"])


def test_the_table_has_every_family_and_no_dropout(words):
    assert {b.family for b in architectures.BACKBONES.values()} == set(architectures.FAMILIES) == set(KINDS)
    for name, b in architectures.BACKBONES.items():
        with torch.device("meta"):
            c = architectures.build(name, words).config
        assert (c.num_hidden_layers, c.hidden_size, c.num_attention_heads) == (b.layers, b.width, b.heads)
        assert not b.half or (b.family, b.layers % 2) == ("roberta", 0), f"{name} cannot come from two equal halves"
        assert name.endswith(KINDS[b.family]) and c.pad_token_id == words.pad_token_id
        assert not any(v for k, v in c.to_dict().items() if "drop" in k and isinstance(v, float)), name


def test_masking_follows_its_seed_and_prefers_content(words, ids):
    o = objectives.MaskedWords(words)
    made, again = o.make(ids, 1), o.make(ids, 1)
    assert torch.equal(made["input_ids"], again["input_ids"])
    seen, labels = made["input_ids"], made["labels"]
    chosen = labels != -100
    assert torch.equal(labels[chosen], ids[chosen]) and torch.equal(seen[~chosen], ids[~chosen])
    assert not set(ids[chosen].tolist()) & set(words.all_special_ids)
    many = [o.make(ids, seed)["labels"] != -100 for seed in range(200)]
    small, telling = (torch.isin(ids, torch.tensor(words.convert_tokens_to_ids(sorted(listed()))))
                      for listed in (function_words, telling_words))
    content = (o.shares[ids] > 0) & ~small & ~telling
    for positions, share in zip((small, content, telling), objectives.SHARES.values(), strict=True):
        assert torch.stack(many)[:, positions].float().mean().item() == pytest.approx(share, abs=0.02)


def test_the_next_word_is_next(words, ids):
    made = objectives.NextWord(words).make(ids, 0)
    real = made["labels"] != -100
    assert torch.equal(made["labels"][real], ids[:, 1:][real])
    assert real.sum() == (ids != words.pad_token_id).sum() - len(ids)


def test_a_document_with_holes_asks_for_the_document(words):
    o = objectives.MissingSpans(words)
    blocks = objectives.Blocks(o, 320, seed=1)
    ids = blocks.padded(words(blocks.documents(0)[:320])["input_ids"])
    assert len(o.sentinels) == 8
    made = o.make(ids, 3)
    assert all(torch.equal(v, o.make(ids, 3)[k]) for k, v in made.items())
    gone, of, sides, pairs = 0, 0, 0, 0
    for row, source, target in zip(ids.tolist(), made["input_ids"].tolist(), made["labels"].tolist(), strict=True):
        row, source = ([t for t in ts if t != o.pad] for ts in (row, source))
        target = [t for t in target if t != -100]
        pairs += row.count(o.copy) == 1
        holes = [t for t in source if t in o.sentinels]
        assert holes == o.sentinels[: len(holes)] and holes
        if target == row:
            spaced = lambda tokens: "".join(f" {t}" for t in tokens)
            pattern = "".join("((?: [0-9]+)+)" if t in holes else f" {t}" for t in source)
            assert re.fullmatch(pattern, spaced(row))
            gone, of = gone + len(row) - len(source) + len(holes), of + len(row) - 2
        else:
            sides += 1
            at = row.index(o.copy)
            before, after = row[1:at], row[at + 1 : -1]
            assert (source[1:-1], target[1:-1]) in (
                ([*before, o.copy, *holes], after),
                ([*holes, o.copy, *after], before),
            )
            assert row[0] == source[0] == target[0] and row[-1] == source[-1] == target[-1]
    assert gone / of == pytest.approx(0.25, abs=0.01) and 0 < sides < pairs
    assert sides / pairs == pytest.approx(0.5, abs=0.2)
    starts = made["decoder_input_ids"]
    assert (starts[:, 0] == o.pad).all() and torch.equal(
        starts[:, 1:][starts[:, 1:] != o.pad], made["labels"][:, :-1][starts[:, 1:] != o.pad]
    )


def test_spans_fit_any_length(words):
    o = objectives.MissingSpans(words)
    for n in range(1, 127):
        holes = o.holes(n, random.Random(n))
        edges = [0, *(e for hole in holes for e in hole), n]
        assert edges == sorted(edges) and len(set(edges[1:-1])) == 2 * len(holes) <= 16


@pytest.mark.parametrize("name", ["nano-encoder", "nano-decoder", "nano-seq2seq"])
def test_the_loss_is_that_of_transformers(words, ids, name):
    torch.manual_seed(0)
    model = architectures.build(name, words)
    o = architectures.FAMILIES[architectures.plan(name).family].objective(words)
    batch = o.make(ids, 5)
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    logits = model(**inputs).logits
    whole = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    torch.testing.assert_close(o.loss(model, batch), whole)


@pytest.mark.parametrize("name", ["nano-encoder", "nano-decoder", "nano-seq2seq"])
def test_slices_have_the_gradient_of_the_whole_batch(words, ids, name, monkeypatch):
    torch.manual_seed(0)
    model = architectures.build(name, words)
    o = architectures.FAMILIES[architectures.plan(name).family].objective(words)
    batch = o.make(ids, 5)
    whole = o.loss(model, batch)
    whole.backward()
    wanted = [p.grad for p in model.parameters()]
    monkeypatch.setattr(slices, "LARGE", 100)
    cut = slices.Slices(model, o, contextlib.nullcontext, threads=2)
    shapes = [s["input_ids"].shape for s in cut.cut(batch)]
    assert len(shapes) > 2 and sum(n for n, _ in shapes) == len(ids) and shapes[-1][1] < shapes[0][1]
    losses, gradients = [], []
    for _ in range(3):
        losses.append(cut.gradient(batch))
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(losses[0], whole.detach())
    torch.testing.assert_close(gradients[0], wanted, rtol=1e-4, atol=1e-6)
    for loss, again in zip(losses[1:], gradients[1:], strict=True):
        assert loss == losses[0] and all(map(torch.equal, again, gradients[0]))


def test_rows_without_a_label_add_nothing(words, ids):
    model, o = architectures.build("nano-encoder", words), objectives.MaskedWords(words)
    empty = o.make(ids, 5) | dict(labels=torch.full_like(ids, -100))
    loss = o.loss(model, empty)
    assert loss == 0 and not any(g.any() for g in torch.autograd.grad(loss, list(model.parameters())))


def test_a_batch_is_cut_where_the_dearest_slice_is_cheapest():
    assert slices.cuts([20] * 64, 2) == (32, 64)
    assert slices.cuts([10] * 56 + [79] * 8, 2) == (56, 64)
    assert slices.cuts([20] * 3, 9) == (1, 2, 3), "no slice is empty"
    lengths = sorted(random.Random(0).choices(range(5, 60), k=64))
    dearest = [
        max(slices.cost(b - a, lengths[b - 1]) for a, b in itertools.pairwise((0, *slices.cuts(lengths, n))))
        for n in range(1, 9)
    ]
    assert dearest == sorted(dearest, reverse=True) and dearest[1] < 0.6 * dearest[0]


@pytest.mark.parametrize(
    ("cpu", "faster"),
    [
        ("AuthenticAMD avx512bw avx512_bf16", True),
        ("AuthenticAMD avx512bw", False),
        ("GenuineIntel avx512bw avx512_bf16", False),
        ("GenuineIntel avx512bw avx512_bf16 amx_bf16", True),
        ("asimd bf16", True),
        ("", False),
    ],
)
def test_products_are_in_bfloat16_where_a_cpu_has_them_faster(cpu, faster, monkeypatch):
    assert kernels.halves(frozenset(cpu.split())) == faster
    monkeypatch.setattr(kernels, "HALVES", faster)
    a = torch.ones(2, 2)
    with precision(a.device):
        assert (a @ a).dtype == products(a.device) == (torch.bfloat16 if faster else torch.float32)


def test_batches_come_from_anywhere_the_same(words):
    blocks = objectives.Blocks(objectives.NextWord(words), 4, seed=2)
    here = [b["labels"] for b, _ in blocks.stream(0, 40)]
    ahead = [b["labels"] for b, _ in blocks.stream(21, 40, workers=1)]
    assert len(here) == 40 and all(map(torch.equal, here[21:], ahead))


def test_the_rate_warms_up_and_ends_near_zero():
    rates = [rate(s, 1000, 1.0) for s in range(1000)]
    assert max(rates) == pytest.approx(0.97, abs=0.03) and rates[0] == 0.01 and rates[-1] < 1e-4


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    """The same 20 steps: straight, and stopped by Ctrl-C after step 10 and taken up again."""
    straight, resumed = (tmp_path_factory.mktemp(n) / "micro-encoder" for n in ("straight", "resumed"))
    plan, said = dict(name="micro-encoder", steps=20, batch=16, device="cpu"), []
    card = pretrain(out=straight, **plan, every=10, say=said.append)

    def stop(text):
        if text.startswith("step 10/20"):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        pretrain(out=resumed, **plan, every=10, say=stop)
    assert (resumed / "resume.safetensors").exists()
    with pytest.raises(PeftlabError, match="another run"):
        pretrain(out=resumed, **plan | dict(steps=30))
    again = []
    pretrain(out=resumed, **plan, every=10, say=again.append)
    assert again == ["going on from step 11"]
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
    assert again["tokens"] == card["tokens"] > 20 * 16 * 5


def test_snapshots_lie_beside_and_say_so(twenty):
    losses = []
    for percent, step in ((10, 2), (30, 6)):
        folder = twenty[0].with_name(f"micro-encoder-{percent}")
        card = json.loads((folder / "card.json").read_text())
        assert (card["name"], card["step"], card["steps"]) == (folder.name, step, 20)
        assert f"snapshot after step {step}" in (folder / "README.md").read_text()
        losses.append(card["held_out_loss"])
    assert losses[0] > losses[1] > twenty[2]["held_out_loss"]


@pytest.mark.parametrize("name, head", [("nano-decoder", "lm"), ("nano-seq2seq", "seq2seq"), ("nano-encoder", "lm")])
def test_every_family_is_trained_and_loads_as_a_backbone(tmp_path, words, name, head):
    card = pretrain(name, tmp_path / name, steps=8, batch=8, device="cpu", say=str)
    assert card["held_out_loss"] < torch.tensor(float(len(words))).log().item() * 1.5
    model = peftlab.backbone(str(tmp_path / name), head=head)
    assert model.kind == KINDS[architectures.plan(name).family] and model.dtype == torch.float32
    ids = model.tokenizer(["The soup was good."], return_tensors="pt")
    targets = dict(labels=ids["input_ids"]) if head == "seq2seq" else {}
    assert model(**ids, **targets).logits.shape[-1] == len(words)
    peftlab.backbone(str(tmp_path / name), head="classification")
    (tmp_path / "backbones").mkdir()
    (tmp_path / name).rename(tmp_path / "backbones" / name)
    assert f"| {name} | {card['architecture']} |" in write_table(tmp_path).read_text()


def test_a_state_comes_back_with_its_ties(tmp_path, words):
    a, b, other = (architectures.build(f"{n}-seq2seq", words) for n in ("nano", "nano", "micro"))
    save_state(tmp_path / "s", a, adam(a), step=3)
    assert load_state(tmp_path / "s", b, adam(b), dict(step=3)) == dict(step=3)
    assert all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))
    assert b.lm_head.weight is b.shared.weight
    for model, step in ((b, 4), (other, 3)):
        with pytest.raises(PeftlabError, match="another run"):
            load_state(tmp_path / "s", model, adam(model), dict(step=step))


def test_bad_input_is_told_in_one_sentence(tmp_path, capsys):
    assert main(["pretrain", "micro-encodr"]) == 2
    assert "unknown embedded backbone 'micro-encodr'; the nearest" in capsys.readouterr().err
    with pytest.raises(PeftlabError, match="0 steps are too few"):
        pretrain("nano-encoder", tmp_path, steps=0)
    with pytest.raises(PeftlabError, match="unknown device 'gpu'"):
        where("gpu")
    assert not list(tmp_path.iterdir())


def test_shipped_backbones_agree_with_their_cards():
    cards = sorted((data() / "backbones").glob("*/card.json"))
    assert cards
    table = (data() / "README.md").read_text()
    assert table == about(data()), "`python -m peftlab.world cards` writes it again"
    for path in cards:
        card = json.loads(path.read_text())
        assert sha256(path.parent / "model.safetensors") == card["sha256"] and card["sha256"] in table
        line = architectures.plan(re.sub(r"-\d+$", "", card["name"]))
        planned = (line.steps, line.peak, line.steps * line.half // 100)
        assert (card["steps"], card["peak"], card.get("half", 0)) == planned, "the recorded command makes it again"
        shipped, made = AutoTokenizer.from_pretrained(path.parent), tokenizer()
        assert shipped.backend_tokenizer.to_str() == made.backend_tokenizer.to_str()
        assert card["vocabulary"] == len(tokenizer()) and card["command"] in (path.parent / "README.md").read_text()
