"""Masks and changes as things of their own: where they sit, united and shared, added up, kept in a file."""

import math

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import peftlab as pl
from peftlab import sparsity
from peftlab.masks import places


@pytest.fixture(scope="module")
def m():
    return tiny.model()


def sparse_mask(m, p, seed, where="q k v o up down"):
    return pl.changes(m, pl.recipe("random-mask", p=p, where=where), seed)


def same(a, b):
    dense = lambda t: t.to_dense() if t.is_sparse else t
    return a.keys() == b.keys() and all(dense(a[n]).equal(dense(b[n])) for n in a)


def size(mask):
    return sum(int(t.sum()) for t in mask.values())


def test_density_and_overlap(m):
    numbers = sum(p.numel() for n, p in m.named_parameters() if n in places(m))
    a, b, c = sparse_mask(m, 0.2, 0), sparse_mask(m, 0.3, 1), sparse_mask(m, 0.2, 0, "q")
    assert sparsity.density(a, m) == size(a) / numbers and 0 < sparsity.density(a, m) < 0.2
    assert sparsity.overlap(a, a) == 1.0 and sparsity.overlap(a, {}) == 0.0 and sparsity.overlap({}, {}) is None
    for x, y in ((a, b), (a, c), (b, c)):
        both = sum(int((t & y.get(n, torch.zeros_like(t))).sum()) for n, t in x.items())
        assert sparsity.overlap(x, y) == sparsity.overlap(y, x) == both / (size(x) + size(y) - both)
        assert 0 < sparsity.overlap(x, y) < 1


def test_united_and_shared(m):
    a, b, c = sparse_mask(m, 0.2, 0), sparse_mask(m, 0.3, 1), sparse_mask(m, 0.2, 0, "q")
    either, both = sparsity.united(a, b, c), sparsity.shared(a, b)
    for n in a:
        others = a[n] | b[n] | c.get(n, torch.zeros_like(a[n]))
        assert either[n].equal(others) and both[n].equal(a[n] & b[n])
    assert size(sparsity.united(a, b)) + size(both) == size(a) + size(b)
    assert set(sparsity.shared(a, c)) <= set(c) and sparsity.shared(c, sparse_mask(m, 0.2, 0, "down")) == {}
    assert sparsity.overlap(a, b) == size(both) / size(sparsity.united(a, b))


def test_where_a_mask_sits(m):
    a = sparse_mask(m, 0.2, 0, "q down")
    rows = sparsity.located(a, m)
    total = lambda key, **at: sum(r[key] for r in rows if all(r[k] == v for k, v in at.items()))
    assert total("chosen") == size(a) and total("numbers") == round(size(a) / sparsity.density(a, m))
    assert {(r["layer"], r["site"]) for r in rows if r["chosen"]} == {(i, s) for i in (0, 1) for s in ("q", "down")}
    assert total("chosen", part="attention") == total("chosen", site="q")
    assert total("chosen", part="feed-forward") == total("chosen", site="down")
    assert [r["layer"] for r in rows if r["part"] == "embedding"] == [None] and total("numbers", part="norm") > 0
    assert all(r["share"] == r["chosen"] / r["numbers"] for r in rows)


def moved(m, undo, seed):
    """Put random numbers into a delta."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in (p for d in undo.deltas for p in d.own().values() if isinstance(p, nn.Parameter)):
            p.copy_(0.1 * torch.randn(p.shape, generator=g))
    return undo


def test_what_is_attached_does_not_change_where_a_mask_is(m):
    a = sparse_mask(m, 0.2, 0)
    bare = sparsity.density(a, m), sparsity.located(a, m)
    undo = moved(m, pl.attach(m, "random-mask"), 0)
    assert sorted(places(m)) == sorted(places(tiny.model())) and sparsity.density(a, m) == bare[0]
    key = lambda rows: sorted(rows, key=str)
    assert key(sparsity.located(a, m)) == key(bare[1])
    undo()


@pytest.mark.parametrize("name", ["random-mask", "lora", "bitfit", "full"])
def test_a_change_is_what_a_delta_adds(name):
    """W' = W + change, with another delta on the same weights or without; the model is bare of the delta then."""
    m, want = tiny.model(), tiny.model()
    undo = moved(want, pl.attach(want, name), 1)
    logits = tiny.logits(want)
    other = None if name == "full" else moved(m, pl.attach(m, pl.recipe("magnitude-mask", p=0.1)), 2)
    change = sparsity.change(m, moved(m, pl.attach(m, name), 1))
    assert same(change, sparsity.change(want, undo)) and change
    if other:
        other()
    before = {n: p.clone() for n, p in m.state_dict().items()}
    back = sparsity.applied(m, change)
    assert torch.allclose(tiny.logits(m), logits, atol=1e-5)
    back()
    assert same(before, m.state_dict()) and not any(isinstance(x, pl.Delta) for x in m.modules())


def test_a_tied_tensor_changes_once():
    m = tiny.model("gpt2", "lm")
    undo = moved(m, pl.attach(m, "full"), 0)
    y, change = tiny.logits(m), sparsity.change(m, undo)
    assert m.lm_head.weight is m.transformer.wte.weight
    sparsity.applied(m, change)
    assert torch.allclose(tiny.logits(m), y, atol=1e-5)


def test_a_change_that_cannot_be_merged_is_refused_and_stays():
    m = tiny.model()
    undo = moved(m, pl.attach(m, "adapter"), 0)
    y = tiny.logits(m)
    with pytest.raises(pl.PeftlabError, match="adapter cannot be merged"):
        sparsity.change(m, undo)
    assert tiny.logits(m).equal(y)


def learned(m, seed):
    """A lottery ticket of its own data, after some training."""
    undo, batch = pl.attach(m, pl.recipe("lt-sft", p=0.02, before=4), seed=seed), tiny.batch(m, seed=seed)
    torch.manual_seed(seed)
    assert list(pl.fit(m, iter(lambda: batch, None), undo.deltas, lr=1e-2, steps=4))
    return undo


def test_a_language_and_a_task_add_up():
    """The sum of two trained sparse changes is the model with both deltas attached."""
    m = tiny.model()
    pl.set_head(m, "frozen")
    language = learned(m, 1)
    language.toggle(False)
    task = learned(m, 2)
    language.toggle(True)
    both = tiny.logits(m)
    a, b = sparsity.change(m, language), sparsity.change(m, task)
    one, two = (sparsity.mask_of(c) for c in (a, b))
    k = math.floor(0.02 * sum(s.weight.numel() for s in pl.sites(m, "q k v o up down")))
    assert size(one) == size(two) == k and sparsity.overlap(one, two) < 0.5
    bare, total = tiny.logits(m), sparsity.total(a, b)
    assert size(sparsity.mask_of(total)) == size(sparsity.united(one, two)), "no entry cancels"
    back = sparsity.applied(m, total)
    assert torch.allclose(tiny.logits(m), both, atol=1e-5)
    back()
    assert tiny.logits(m).equal(bare) and not torch.allclose(bare, both, atol=1e-3)


def test_masks_and_changes_are_kept(m, tmp_path):
    mask = sparse_mask(m, 0.01, 0)
    path = sparsity.keep(mask, tmp_path / "mask.safetensors")
    assert same(sparsity.kept(path), mask) and all(t.dtype == torch.bool for t in sparsity.kept(path).values())
    twin = tiny.model()
    change = sparsity.change(twin, moved(twin, pl.attach(twin, pl.recipe("random-mask", p=0.01)), 0))
    again = sparsity.kept(sparsity.keep(change, tmp_path / "change.safetensors"))
    assert same(again, change) and all(t.is_sparse for t in again.values())
    flat, k = load_file(tmp_path / "change.safetensors"), size(mask)
    numbers = {end: sum(t.numel() for n, t in flat.items() if n.endswith(end)) for end in ("positions", "values")}
    assert numbers == dict(positions=k, values=k), "nothing is stored but positions and values"
    assert same(sparsity.kept(sparsity.keep({"w": torch.zeros(2, 3).bool()}, path)), {"w": torch.zeros(2, 3).bool()})


def test_another_file_is_no_mask(tmp_path):
    other, words = tmp_path / "other.safetensors", tmp_path / "words.txt"
    save_file({"w": torch.zeros(2)}, other)
    words.write_text("no tensors at all")
    for path in (other, words, tmp_path / "nothing"):
        with pytest.raises(pl.PeftlabError, match="holds no mask; write one there with peftlab.sparsity.keep"):
            sparsity.kept(path)
