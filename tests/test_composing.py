"""Several deltas on one backbone: stacked, averaged, switched, and each by its own rows of one batch."""

import copy

import pytest
import tiny
import torch
from test_laws import REFUSES

import peftlab as pl
from peftlab.checkpoint import kept_state
from peftlab.rows import EVERY

FAMILIES = ("roberta", "gpt2", "t5", "llama")
LENGTHS = dict(prefix=(3, 5, 8), prompt=(3, 5, 8))  # rows of different lengths


@torch.no_grad()
def stirred(attached, seed):
    """Numbers as training might leave them, with a scale that leaves the hidden states in their range."""
    g = torch.Generator().manual_seed(seed)
    for d in attached.deltas:
        for p in d.own().values():
            if p.is_floating_point():
                p.add_(torch.randn(p.shape, generator=g) * 0.1)
    return attached


def several(m, name, n=3, first=0):
    """n deltas of one method on one model, all different; soft prompts also in length."""
    lengths = LENGTHS.get(name)
    made = [pl.recipe(name, **(dict(n=lengths[i]) if lengths else {})) for i in range(n)]
    return [stirred(pl.attach(m, r, seed=i), first + i) for i, r in enumerate(made)]


def alone(m, rows, **batch):
    """The logits of each row, one by one, with what is its own."""
    out = []
    for i, a in enumerate(rows):
        pl.switch(m, a)
        out.append(m(**{k: t[i : i + 1] for k, t in batch.items()}).logits)
    return torch.cat(out)


BY_ROW = [n for n, method in pl.METHODS.items() if method.by_row]
SHARED = [n for n in pl.METHODS if n not in {*BY_ROW, "head"}]


def on_families(names):
    pairs = [(f, n) for f in FAMILIES for n in names if f not in REFUSES.get(n, ())]
    return pytest.mark.parametrize("family, name", pairs)


@on_families(BY_ROW)
@torch.no_grad()
def test_rows_of_one_batch_use_different_deltas(family, name):
    m = tiny.model(family)
    batch = tiny.batch(m, labels=False)
    bare = m(**batch).logits
    a, b, c = several(m, name)
    rows = [a, b, None, c]
    before = [(d, d.on) for d in m.modules() if isinstance(d, pl.Delta)]
    with pl.serving(m, rows):
        served, again = m(**batch).logits, m(**batch).logits
    assert [(d, d.on) for d in m.modules() if isinstance(d, pl.Delta)] == before
    assert torch.equal(served, again) and torch.allclose(served[2], bare[2], atol=1e-5)
    wanted = alone(m, rows, **batch)
    assert torch.allclose(served, wanted, atol=1e-5), (served - wanted).abs().max()
    assert (served - bare)[[0, 1, 3]].abs().amax(1).min() > 1e-3, "each of the deltas does something"
    with pl.serving(m, [c, b, None, a]):
        assert not torch.allclose(m(**batch).logits[0], served[0], atol=1e-4), "and it matters which"


@on_families(SHARED)
def test_what_all_rows_share_is_refused(family, name):
    m = tiny.model(family)
    a, before = pl.attach(m, name), tiny.logits(m)
    part = next(row["method"] for row in pl.recipe(name) if not pl.get(row["method"]).by_row)
    with pytest.raises(pl.PeftlabError, match=f"{part} cannot change some rows of a batch.*merge it.*or take lora"):
        with pl.serving(m, [a, None, None, None]):
            pass
    assert torch.equal(tiny.logits(m), before)


def test_weight_deltas_alone_are_refused():
    assert {"full", "bitfit", "mask", "said", "qlora"} <= {*SHARED}
    assert {"lora", "adapter", "ia3", "prefix", "prompt", "pissa", "krona", "dora"} <= {*BY_ROW}


MIXED = ("lora", [dict(method="prompt", settings=dict(n=5)), "prefix", "adapter"], None, ["prompt", "ia3"])


@pytest.mark.parametrize("family", tiny.CONFIGS)
@torch.no_grad()
def test_methods_and_hybrids_share_a_batch_on_every_family(family):
    m = tiny.model(family)
    rows = [r and stirred(pl.attach(m, r, seed=i), i) for i, r in enumerate(MIXED)]
    batch = tiny.batch(m, labels=False)
    with pl.serving(m, rows):
        served, unmasked = m(**batch).logits, m(input_ids=batch["input_ids"]).logits
    assert torch.allclose(served, alone(m, rows, **batch), atol=1e-4), "hidden states are larger than 10 in some"
    assert torch.allclose(unmasked, alone(m, rows, input_ids=batch["input_ids"]), atol=1e-4)


@torch.no_grad()
def test_a_row_order_is_a_row_order():
    """One attachment at rows that are not neighbours, and its rows in another order, are read the same."""
    m = tiny.model("t5")
    a, b, _ = several(m, "prompt")
    batch = tiny.batch(m, labels=False)
    for rows in ([a, b, a, b], [b, b, a, None], [a] * 4):
        with pl.serving(m, rows):
            served = m(**batch).logits
        assert torch.allclose(served, alone(m, rows, **batch), atol=1e-5)


@pytest.mark.parametrize("family, head", [("gpt2", "lm"), ("llama", "lm"), ("t5", "seq2seq")])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["lora", "prefix", "prompt"])
@torch.no_grad()
def test_generation_and_beam_search(family, head, beams, name):
    m = tiny.model(family, head)
    a, b, c = several(m, name)
    rows = [c, a, None, b]
    ids = tiny.batch(m, pad=False)["input_ids"][:, :6]
    how = dict(num_beams=beams, max_new_tokens=5, min_new_tokens=5, do_sample=False, use_cache=name != "prompt")
    say = lambda ids: m.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how)
    with pl.serving(m, rows, beams=beams):
        served = say(ids)
    for i, one in enumerate(rows):
        pl.switch(m, one)
        assert torch.equal(served[i], say(ids[i : i + 1])[0])
    if name == "prompt" and family != "t5":
        how["use_cache"] = True
        with pytest.raises(pl.PeftlabError, match="generate with use_cache=False"), pl.serving(m, rows, beams=beams):
            say(ids)
    if name == "lora" and beams > 1:
        with pytest.raises(pl.PeftlabError, match="12 rows came where 4 are served.* beams"), pl.serving(m, rows):
            say(ids)


def test_training_a_batch_of_several_tasks_is_training_each():
    m = tiny.model("roberta")
    pl.set_head(m, "frozen")
    a, b, c = several(m, "lora")
    batch = tiny.batch(m)
    with pl.serving(m, [a, b, None, b]):
        m(**batch).loss.backward()
    assert all(p.grad is None for d in c.deltas for p in d.parameters())
    served = {d: [p.grad.clone() for p in d.parameters()] for one in (a, b) for d in one.deltas}
    m.zero_grad()
    for one, rows in ((a, [0]), (b, [1, 3])):
        pl.switch(m, one)
        (m(**{k: t[rows] for k, t in batch.items()}).loss * len(rows) / 4).backward()
    for d, grads in served.items():
        assert all(torch.allclose(p.grad, g, atol=1e-5) for p, g in zip(d.parameters(), grads, strict=True))


def tasks_with_heads(family, tmp_path):
    """Two folders, as runs on tasks of two and of three labels leave them, and what each model says."""
    said = []
    for i, n in enumerate((2, 3)):
        m = tiny.model(family, labels=n)
        m.base_model.load_state_dict(tiny.model(family).base_model.state_dict())
        undo = stirred(pl.attach(m, ("lora", "adapter")[i]), i)
        with torch.no_grad():
            for p in pl.head_parameters(m).values():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
        pl.save(m, undo, tmp_path / str(i))
        said.append(tiny.logits(m, labels=False))
    return said


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_each_task_has_its_own_head(family, tmp_path):
    two, three = tasks_with_heads(family, tmp_path)
    m = tiny.model(family)
    bare, batch = tiny.logits(m, labels=False), tiny.batch(m, labels=False)
    a, b = (pl.load(m, tmp_path / n, own_head=True) for n in "01")
    with pl.serving(m, [b, a, None, b]):
        served = m(**batch).logits
        with pytest.raises(pl.PeftlabError, match="no common loss; leave the labels out"):
            m(**tiny.batch(m))
    assert torch.allclose(served[[0, 3]], three[[0, 3]], atol=1e-5)
    assert torch.allclose(served[1:3, :2], torch.stack([two[1], bare[2]]), atol=1e-5)
    assert served[1:3, 2].eq(-torch.inf).all() and (served.softmax(1)[1:3, 2] == 0).all()
    for one, said in ((b, three), (a, two), (b, three)):
        pl.switch(m, one)
        assert torch.allclose(m(**batch).logits, said, atol=1e-5)
        for p in pl.head_parameters(m).values():
            p.add_(1)  # what becomes of the model's head is not the attachment's
    assert m(**tiny.batch(m)).loss.isfinite() and m.config.num_labels == 3
    pl.save(m, a, tmp_path / "again")
    fresh = tiny.model(family)
    pl.load(fresh, tmp_path / "again")
    assert torch.allclose(tiny.logits(fresh, labels=False), two, atol=1e-5), "an attachment is kept with its own head"


@torch.no_grad()
def test_a_head_is_carried_from_where_it_was_trained():
    m = tiny.model("roberta")
    a, b, _ = several(m, "lora")
    pl.switch(m, a)
    for p in pl.head_parameters(m).values():
        p.mul_(2)
    pl.keep_head(a)
    first = tiny.logits(m, labels=False)
    for p in pl.head_parameters(m).values():
        p.mul_(-1)
    with pl.serving(m, [a, a, b, b]):
        served = tiny.logits(m, labels=False)
    pl.switch(m, b)
    assert torch.allclose(served, torch.cat([first[:2], tiny.logits(m, labels=False)[2:]]), atol=1e-5)
    with pl.serving(m, [a] * 4):
        assert m(**tiny.batch(m)).loss > 0, "heads of one size have a common loss"


@torch.no_grad()
def test_a_language_model_has_one_head_for_all(tmp_path):
    m = tiny.model("gpt2", "lm")
    a, b, _ = several(m, "lora")
    pl.save(m, pl.keep_head(b), tmp_path)
    again = pl.load(m, tmp_path, own_head=True)
    with pl.serving(m, [a, b, None, again]):
        served = tiny.logits(m)
    with pl.serving(m, [b] * 4):
        assert torch.allclose(served[[1, 3]], tiny.logits(m)[[1, 3]], atol=1e-5)
    pl.switch(m, a)
    assert torch.allclose(served[0], tiny.logits(m)[0], atol=1e-5)


def test_switch_lets_one_be_heard():
    m = tiny.model("gpt2")
    bare = tiny.logits(m)
    a, b = stirred(pl.attach(m, "dora"), 0), stirred(pl.attach(m, ["adapter", "prefix"]), 1)
    both, heard = tiny.logits(m), []
    for one in (a, b, None):
        pl.switch(m, one)
        heard.append(tiny.logits(m))
    assert torch.equal(heard[2], bare)
    a.toggle(True)
    assert torch.equal(tiny.logits(m), heard[0]) and not torch.allclose(heard[0], heard[1], atol=1e-3)
    b.toggle(True)
    assert torch.equal(tiny.logits(m), both)
    b()
    assert torch.equal(tiny.logits(m), heard[0])
    for wrong in (b, pl.attach(tiny.model("gpt2"), "lora")):
        with pytest.raises(pl.PeftlabError, match="not attached to this model"):
            pl.switch(m, wrong)


@pytest.mark.parametrize("rows", [2, 3, 5])
def test_a_batch_of_another_number_of_rows_is_refused_and_all_is_as_it_was(rows):
    m = tiny.model("roberta")
    a, b, c = several(m, "prompt")
    pl.attach(m, "prefix")
    before = tiny.logits(m)
    with pytest.raises(pl.PeftlabError, match=f"4 rows came where {rows} are served"):
        with pl.serving(m, [a, b, None, a, a][:rows]):
            tiny.logits(m)
    assert torch.equal(tiny.logits(m), before) and torch.equal(tiny.logits(copy.deepcopy(m)), before)
    assert all(d.rows is EVERY and d.on for d in c.deltas + a.deltas)


def test_the_average_of_deltas():
    m = tiny.model("roberta")
    a, b, c = several(m, "lora")
    pl.average(c, [a, b])
    for x, y, z in zip(a.deltas, b.deltas, c.deltas, strict=True):
        assert torch.allclose(z.B, (x.B + y.B) / 2) and torch.allclose(z.A, (x.A + y.A) / 2)
    pl.average(c, [a, kept_state(b)], weights=[1.0, 0.0])
    assert all(torch.equal(x.B, z.B) for x, z in zip(a.deltas, c.deltas, strict=True))
    with pytest.raises(pl.PeftlabError, match="different recipes"):
        pl.average(c, [a, pl.attach(m, "adapter")])
    with pytest.raises(pl.PeftlabError, match="0 deltas"):
        pl.average(c, [])


@torch.no_grad()
def test_stacked_the_first_acts_first():
    m = tiny.model("roberta")
    at = dict(where="down", layers=[1])
    first, second = (stirred(pl.attach(m, pl.recipe("adapter", **at), seed=i), i) for i in range(2))
    layer, x = first.placed[0][1], torch.randn(2, 48)
    y = torch.nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.allclose(layer(x), second.deltas[0](x, first.deltas[0](x, y)), atol=1e-6)
    assert not torch.allclose(layer(x), first.deltas[0](x, second.deltas[0](x, y)), atol=1e-3), "order matters"
    k = torch.randn(1, 4, 2, 8)
    p, q = (pl.attach(m, pl.recipe("prefix", n=n, layers=[0])) for n in (3, 1))
    heard = p.placed[0][1].keyvals
    assert heard == [p.deltas[0], q.deltas[0]]
    assert torch.equal(heard[1](*heard[0](k, k))[0][:, :, 1:4], heard[0](k, k)[0][:, :, :3]), "the later stands before"


def test_a_carried_head_comes_back_with_what_was_merged():
    m = tiny.model("roberta")
    undo = pl.keep_head(pl.attach(m, "lora"))
    again = pl.merge(m, undo)()
    assert again.head is not None and all(torch.equal(again.head[n], p) for n, p in pl.head_parameters(m).items())
