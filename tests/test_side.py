"""Side networks: what they keep for the backward pass, how far gradients go, and a backbone that reads a row once."""

import copy

import pytest
import tiny
import torch
from ladders import SIDES, blocks, each, graph, some

import peftlab as pl
from peftlab.methods.narrow_layers import narrow, side_layer, stacks
from peftlab.methods.side import named
from peftlab.remember import remembered


@each
@some
def test_the_graph_never_reaches_the_backbone(name, family):
    """Not even where the backbone's embeddings would pass a gradient on."""
    m = tiny.model(family).train()
    pl.set_head(m, "frozen")
    (delta,) = pl.attach(m, name).deltas
    seen = []
    for b in blocks(m):
        look_in = lambda b, args, kw: seen.append(named(b, args, kw)["hidden_states"])
        b.register_forward_pre_hook(look_in, with_kwargs=True)
        b.register_forward_hook(lambda b, args, out: seen.append(out[0] if isinstance(out, tuple) else out))
    loss = m(**tiny.batch(m)).loss
    inner = seen[:-1]  # the last is the side network's own
    assert graph(loss) == set(delta.parameters()) and not any(t.requires_grad for t in inner)
    assert seen[-1].requires_grad
    pl.sites(m, "embed")[0].register_forward_hook(lambda e, args, y: y.detach().requires_grad_())
    assert graph(m(**tiny.batch(m)).loss) == set(delta.parameters())


@each
@some
def test_nothing_of_the_backbone_is_kept_but_what_the_side_network_reads(name, family):
    """The bytes of a step are those of the side network alone, its readings handed over as constants."""
    m = tiny.model(family).train()
    (delta,) = pl.attach(m, name).deltas
    calls, inner, until = [], {}, []
    watch(delta, "step", lambda i, h, given: calls.append((i, h, dict(given))))
    for c in (c for b in blocks(m) for c in b.modules() if c is not b):
        c.register_forward_hook(lambda c, args, out: inner.update({storage(t): t for t in tensors(out)}))
    kept, finish = [], delta.finish
    delta.finish = lambda: (finish(), until.append(len(kept)))[0]
    with keeping(m, kept):
        m(**tiny.batch(m, labels=False))
    del delta.finish, delta.step
    read = {storage(t) for _, h, given in calls for t in (h, given["hidden_states"])}
    kept, alone = {storage(t): t.untyped_storage().nbytes() for t in kept[: until[0]]}, []
    assert inner and not (inner.keys() - read) & kept.keys(), "an activation inside a layer is kept"
    with keeping(m, alone):
        for i, h, given in calls:
            delta.step(i, h, given)
        delta.finish()
    alone = {storage(t): t.untyped_storage().nbytes() for t in alone}
    assert sum(kept.values()) == sum(alone.values()) > 0


@each
def test_a_step_keeps_far_less_than_full_fine_tuning(name):
    kept = lambda method: pl.footprint(pl.spec(method, backbone="nano-encoder"))["saved"]
    assert kept(name) < 0.5 * kept("full")


def watch(delta, verb, see):
    """Call `see` before each call of a verb."""
    act = getattr(delta, verb)
    setattr(delta, verb, lambda *args: (see(*args), act(*args))[1])


def keeping(m, kept):
    """Collects, and keeps alive, what autograd keeps but for the model's own tensors."""
    ours = {storage(t) for t in (*m.parameters(), *m.buffers())}
    pack = lambda t: (kept.append(t) if storage(t) not in ours else None, t)[1]
    return torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)


def tensors(out):
    return [t for t in (out if isinstance(out, tuple) else (out,)) if torch.is_tensor(t)]


def storage(t):
    return t.untyped_storage().data_ptr()


def test_a_side_layer_is_the_backbones_layer_made_narrow():
    for family in tiny.CONFIGS:
        m = tiny.model(family)
        _, layers, config = next(stacks(m))
        same = side_layer(layers[0], narrow(config, 1), 0)
        assert {n: p.shape for n, p in same.named_parameters()} == {n: p.shape for n, p in layers[0].named_parameters()}


def test_lst_is_its_equation():
    """On a GPT-2, from the hidden states alone, with layers of its own."""
    m = tiny.model("gpt2")
    (delta,) = pl.attach(m, pl.recipe("lst", r=4)).deltas
    with torch.no_grad():
        delta.a.copy_(torch.tensor([0.1, -0.2]))
    ids = tiny.batch(m, pad=False)["input_ids"]
    with torch.no_grad():
        with pl.taps(m) as h:
            y = m.base_model(ids)[0]
        t = torch.arange(7)
        s = delta.D0[0](m.base_model.wte(ids) + m.base_model.wpe(t))
        causal = torch.ones(7, 7, dtype=torch.bool).tril()[None, None]
        delta.on = False
        with pl.taps(m) as h:
            m.base_model(ids)
        for i, layer in enumerate(delta.layers):
            mu = 1 / (1 + torch.exp(-delta.a[i] * 10))
            s = layer(mu * s + (1 - mu) * delta.D[i](h[i]), attention_mask=causal)
        want = m.base_model.ln_f(delta.U(delta.norms[0](s)))
    assert torch.allclose(y, want, atol=1e-5)


def test_attention_fusion_is_its_equation():
    m = tiny.model("roberta")
    (delta,) = pl.attach(m, "attention-fusion").deltas
    mean = m.base_model(**tiny.batch(m, labels=False))[0]
    delta.on = False
    with pl.taps(m) as h, torch.no_grad():
        m.base_model(**tiny.batch(m, labels=False))
    H = torch.stack([h[0], h[1]])
    assert torch.allclose(mean, H.mean(0), atol=1e-5)
    delta.on = True
    with torch.no_grad():
        delta.q.copy_(torch.randn(32))
        y = m.base_model(**tiny.batch(m, labels=False))[0]
        weight = torch.exp(H @ delta.q) / torch.exp(H @ delta.q).sum(0)
    assert torch.allclose(y, (weight[..., None] * H).sum(0), atol=1e-5)


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text", "t5"])
def test_no_token_sees_a_later_one(name, family):
    m = tiny.model(family, "seq2seq" if family == "t5" else "lm")
    pl.attach(m, name)
    ids = tiny.batch(m, pad=False)["input_ids"]
    other = ids.clone()
    other[:, 5:] = 7
    own = (lambda i: dict(input_ids=ids, decoder_input_ids=i)) if family == "t5" else (lambda i: dict(input_ids=i))
    with torch.no_grad():
        a, b = m(**own(ids)).logits, m(**own(other)).logits
    assert torch.allclose(a[:, :5], b[:, :5], atol=1e-5) and not torch.allclose(a[:, 5:], b[:, 5:], atol=1e-3)


@each
def test_the_backbone_reads_without_dropout(name):
    """So that a row has the same states each time; what a side network has of it stays on."""
    m = tiny.model("roberta").train()
    assert m.config.hidden_dropout_prob > 0
    (delta,) = pl.attach(m, name).deltas
    delta.train()
    seen = []
    blocks(m)[0].register_forward_hook(lambda b, args, out: seen.append(out))
    for _ in range(2):
        m(**tiny.batch(m))
    assert torch.equal(*seen) and all(d.training for d in delta.modules()) and m.classifier.training
    pl.attach(m, "lora")
    m.train()(**tiny.batch(m))
    assert blocks(m)[0].training, "a backbone that learns itself has its dropout"


@each
def test_lora_beside_it_learns_through_the_ladder(name):
    m = tiny.model("roberta").train()
    undo = pl.attach(m, [name, "lora"])
    m(**tiny.batch(m)).loss.backward()
    assert all(p.grad is not None for d in undo.deltas[1:] for n, p in d.named_parameters() if n == "B")


def test_what_lst_refuses():
    m = tiny.model("gpt2", "lm")
    pl.attach(m, "lst")
    with pytest.raises(pl.PeftlabError, match="use_cache=False"):
        m.generate(torch.full((1, 3), 5), max_new_tokens=3, min_new_tokens=3)
    out = m.generate(torch.full((1, 3), 5), max_new_tokens=3, min_new_tokens=3, use_cache=False)
    assert out.shape == (1, 6)
    with pytest.raises(pl.PeftlabError, match="r = 64 leaves nothing of a width of 32; take at most 32"):
        pl.attach(tiny.model(), pl.recipe("lst", r=64))


def count(m):
    """Calls of the layers' own forward, under whatever is put in its place."""
    calls = []
    for b in blocks(m):
        first = next(c for c in b.modules() if getattr(c, "site", None) == "q")
        first.register_forward_hook(lambda c, args, y: calls.append(len(y)))
    return calls


@each
@some
def test_remembered_rows_are_read_once_and_have_the_same_logits(name, family):
    m = tiny.model(family)
    pl.attach(m, name)
    tiny.train(m, 3)
    b, y = tiny.batch(m, labels=False), tiny.logits(m)
    calls = count(m)
    with remembered(m) as kept, torch.no_grad():
        assert torch.allclose(m(**b).logits, y, atol=1e-6) and len(calls) == len(blocks(m))
        assert torch.allclose(m(**b).logits, y, atol=1e-6)
        short = {k: t[1:2, :5] for k, t in b.items()}  # without its padding it is the same row
        assert torch.allclose(m(**short).logits, y[1:2], atol=1e-5)
        assert len(calls) == len(blocks(m)) and len(kept.rows) == 4
        mixed = {k: torch.cat([t[:2], tiny.batch(m, seed=5, labels=False)[k][:1], t[:1]]) for k, t in b.items()}
        z = m(**mixed).logits
        assert calls[len(blocks(m)) :] == [1] * len(blocks(m)), "only the new row is read"
        assert len(kept.rows) == 5 and kept.bytes == sum(h.nbytes for r in kept.rows.values() for h in r)
    assert torch.allclose(z[[0, 1, 3]], y[[0, 1, 0]], atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(m(**mixed).logits, z, atol=1e-6)
        assert torch.equal(tiny.logits(m), y) and "forward" not in vars(blocks(m)[0])


@each
@pytest.mark.parametrize("family, head", [("roberta", "classification"), ("gpt2", "lm"), ("t5", "seq2seq")])
def test_a_fit_with_memory_has_the_same_losses(name, family, head):
    def run(memory):
        m = tiny.model(family, head).double()  # AdamW makes whole steps of gradients that are nothing but rounding
        undo = pl.attach(m, name)
        calls = count(m)
        rows = iter([tiny.batch(m, seed=s % 2) for s in range(8)])
        fit = pl.fit(m, rows, undo.deltas, lr=1e-2, steps=8, every=1)
        if not memory:
            return [r["loss"] for r in fit], calls
        with remembered(m):
            return [r["loss"] for r in fit], calls

    (a, often), (b, once) = run(False), run(True)
    assert b == pytest.approx(a, abs=1e-6) and b[-1] < b[0]
    assert len(once) * 4 == len(often)


def test_memory_has_an_end():
    m = tiny.model("roberta")
    pl.attach(m, "lst")
    y, size = tiny.logits(m), 2 * 7 * 32 * 4  # one row: two layers of 7 states
    calls = count(m)
    with remembered(m, most=2 * size) as kept, torch.no_grad():
        for _ in range(2):
            assert torch.allclose(m(**tiny.batch(m, labels=False)).logits, y, atol=1e-6)
    assert kept.bytes <= 2 * size and len(kept.rows) == 2 and calls == [4, 4, 2, 2]


def test_what_cannot_be_remembered():
    m = tiny.model("roberta")
    with pytest.raises(pl.PeftlabError, match="no side network on this model; attach lst or attention-fusion"):
        with remembered(m):
            pass
    undo = pl.attach(m, ["lst", "lora"])
    with pytest.raises(pl.PeftlabError, match="only a backbone that nothing changes"):
        with remembered(m):
            pass
    undo()
    pl.attach(m, "lst")
    blocks(m)[0].requires_grad_(True)
    with pytest.raises(pl.PeftlabError, match="only a backbone that nothing changes"):
        with remembered(m):
            pass


def test_a_deep_copy_has_a_ladder_of_its_own():
    m = tiny.model("t5").train()
    pl.attach(m, "lst")
    m(**tiny.batch(m)).loss.backward()
    twin = copy.deepcopy(m).eval()
    y = tiny.logits(m.eval())
    with torch.no_grad():
        next(d for d in twin.modules() if hasattr(d, "D0")).U.weight.zero_()
    assert torch.equal(tiny.logits(m), y) and not torch.equal(tiny.logits(twin), y)
