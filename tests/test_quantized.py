"""Weights in few bits: what is packed, how far it is from the weight, and that nothing is kept beside it."""

import copy

import pytest
import tiny
import torch
from torch import nn

import peftlab as pl
from peftlab import memory, quantized
from peftlab.quantized import Grouped, NormalFloat

ALL = "q k v o up down"


def weight(out=96, width=128, seed=0):
    return torch.randn(out, width, generator=torch.Generator().manual_seed(seed)) / width**0.5


def bytes_of(module):
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


@pytest.mark.parametrize("bits", quantized.BITS)
def test_packing_is_undone_exactly(bits):
    codes = torch.randint(2**bits, (7, 5), generator=torch.Generator().manual_seed(bits))
    packed = quantized.pack(codes, bits)
    assert packed.dtype == torch.uint8 and len(packed) == -(-35 * bits // 8)
    assert torch.equal(quantized.unpack(packed, bits, codes.shape), codes.to(torch.uint8))


def test_the_values_of_nf4_are_the_papers():
    """Appendix E of 2305.14314."""
    paper = [-1.0, -0.6961928, -0.5250730, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0, 0.0795803, 0.1609302]
    paper += [0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
    assert torch.allclose(quantized.normal_float(4), torch.tensor(paper), atol=1e-6)


def test_bitsandbytes_reads_the_same_bytes():
    """The oracle on a CPU: its own NF4 gives the same codes, and from our bytes and constants it gives our weight."""
    kernels = pytest.importorskip("bitsandbytes.functional", reason="needs: pip install bitsandbytes")
    W = weight()
    theirs, state = kernels.quantize_4bit(W, blocksize=64, quant_type="nf4")
    ours = NormalFloat(W, 4)
    assert torch.equal(theirs.flatten(), ours.codes)
    state.absmax = ours.constants()
    assert torch.allclose(kernels.dequantize_4bit(theirs, state), ours(), atol=1e-6)


def test_bits_and_error():
    W, apart, size = weight(256, 256), [], []
    for bits in quantized.BITS:
        packed = NormalFloat(W, bits)
        apart.append(float((packed() - W).norm() / W.norm())), size.append(8 * bytes_of(packed) / W.numel())
    assert apart[0] > 3 * apart[1] > 9 * apart[2] and apart[1] < 0.1
    assert all(bits < s < bits + 0.3 for bits, s in zip(quantized.BITS, size, strict=True)), size


def test_qlora_keeps_four_bits_and_nothing_else():
    m = tiny.model("roberta")
    wide = bytes_of(m)
    linear = sum(s.weight.numel() * 4 for s in pl.sites(m, ALL))
    undo = pl.attach(m, "qlora")
    own = sum(t.numel() * 4 for d in undo.deltas for t in d.own().values())
    packed = sum(bytes_of(s.packed) for s in pl.sites(m, ALL))
    assert bytes_of(m) == wide - linear + packed + own and packed < linear / 5
    assert all("weight" not in s._parameters for s in pl.sites(m, ALL))
    assert pl.counts(m)["total"] == pl.counts(tiny.model("roberta"))["total"] + pl.counts(m)["delta"]


def test_the_way_back_keeps_no_unpacked_weight():
    """What autograd saves grows by what LoRA itself saves, not by the weights."""
    m = tiny.model("roberta").eval()
    batch = tiny.batch(m)
    undo = pl.attach(m, pl.recipe("lora", where=ALL))
    plain = memory.saved(m, batch)
    undo()
    pl.attach(m, "qlora")
    assert memory.saved(m, batch) <= plain
    x = torch.randn(3, 32, requires_grad=True)
    layer = pl.sites(m, "q")[0]
    W = layer.weight
    assert torch.allclose(torch.autograd.grad(layer(x).sum(), x)[0], W.sum(0).expand(3, 32), atol=1e-5)


def test_switched_off_the_layer_has_its_own_weight():
    m = tiny.model("roberta")
    y = tiny.logits(m)
    undo = pl.attach(m, "qlora")
    packed = tiny.logits(m)
    undo.toggle(False)
    assert torch.equal(tiny.logits(m), y) and not torch.equal(packed, y)
    undo.toggle(True)
    assert torch.equal(tiny.logits(m), packed) and torch.equal(tiny.logits(copy.deepcopy(m)), packed)


def test_loftq_starts_nearer_than_qlora_and_says_how_near():
    """The error of each iteration; at 4 bits it falls, and T = 1 already beats the plain weight."""
    layer = nn.Linear(128, 96)
    with torch.no_grad():
        layer.weight.copy_(weight())
    made = [pl.METHODS["loftq"].cls(layer, r=16, bits=4, T=T) for T in (1, 2, 5)]
    plain = float((NormalFloat(layer.weight, 4)() - layer.weight).norm())
    left = [float((d.packed[0]() + d.B @ d.A - layer.weight).norm()) / plain for d in made]
    assert 1 > left[0] > left[1] > left[2]


def test_qa_lora_merges_into_the_zero_points():
    """Packed again, the merged weight has the same codes and scales; only z has moved, and nothing is lost."""
    m = tiny.model("roberta")
    undo = pl.attach(m, "qa-lora")
    tiny.train(m, 5)
    y, before = tiny.logits(m), [s.packed for s in pl.sites(m, ALL)]
    pl.merge(m, undo)
    assert torch.allclose(tiny.logits(m), y, atol=1e-4)
    for layer, old in zip(pl.sites(m, ALL), before, strict=True):
        again = Grouped(layer.weight, 4, 16)
        assert torch.equal(again.codes, old.codes) and torch.allclose(again.s, old.s, rtol=1e-4)
        assert torch.allclose(again(), layer.weight, atol=1e-5) and not torch.allclose(again.z, old.z, atol=1e-3)


def test_dora_learns_on_packed_weights_what_it_would_on_the_unpacked_ones():
    m, plain = tiny.model("roberta").eval(), tiny.model("roberta").eval()
    pl.attach(m, "qlora")
    for unpacked, layer in zip(pl.sites(plain, ALL), pl.sites(m, ALL), strict=True):
        unpacked.weight.data.copy_(layer.weight)
    grads = []
    for model in (m, plain):
        attached = pl.attach(model, pl.recipe("dora", where=ALL))
        tiny.scatter(attached)
        model(**tiny.batch(model)).loss.backward()
        grads.append([p.grad for d in attached.deltas for p in d.parameters()])
    for ours, wanted in zip(*grads, strict=True):
        assert torch.allclose(ours, wanted, rtol=1e-3, atol=1e-6) and wanted.any()
    codes = [layer.packed.codes.clone() for layer in pl.sites(m, ALL)]
    losses = tiny.train(m, 10)
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(old, layer.packed.codes) for old, layer in zip(codes, pl.sites(m, ALL), strict=True))


def test_what_does_not_fit_is_refused_and_nothing_changes():
    m = tiny.model("roberta")
    before = {n: t.clone() for n, t in m.state_dict().items()}
    for what, words in {
        ("qlora", ("bits", 3)): "2, 4, 8 bits, not in 3",
        ("qa-lora", ("g", 24)): "groups of 24 do not divide the 32 inputs",
    }.items():
        with pytest.raises(pl.PeftlabError, match=words):
            pl.attach(m, pl.recipe(what[0], **dict([what[1]])))
    undo = pl.attach(m, "qlora")
    for second, words in {"qlora": "already", "threshold-mask": "packed"}.items():
        with pytest.raises(pl.PeftlabError, match=words):
            pl.attach(m, second)
    quiet = tiny.logits(m)
    for on_top in ("lora", "dora"):
        again = pl.attach(m, on_top)
        assert torch.allclose(tiny.logits(m), quiet, atol=1e-5), "at its start it changes nothing"
        again()
    undo()
    assert {n: t.shape for n, t in m.state_dict().items()} == {n: t.shape for n, t in before.items()}
    assert all(torch.equal(before[n], t) for n, t in m.state_dict().items())
