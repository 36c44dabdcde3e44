"""A side network that begins as a cut of its backbone: which channels, by what, in what place."""

import copy

import pytest
import tiny
import torch
from ladders import ALL, blocks

import peftlab as pl
from peftlab.methods.narrow_layers import pick
from peftlab.remember import remembered
from peftlab.view import View


def ladder(m, **settings):
    (delta,) = pl.attach(m, pl.recipe("lst", **settings)).deltas
    return delta


def distinct(family):
    """A tiny model no two entries of whose tensors are equal."""
    m = tiny.model(family).double()
    with torch.no_grad():
        for p in m.parameters():
            p.add_(1e-9 * torch.randn_like(p))
    return m


def found(part, whole):
    """Where the entries of a tensor lie in a larger one without equal entries: a list of places for each dimension."""
    flat = whole.detach().flatten()
    at = (part.detach().flatten()[:, None] == flat).nonzero()
    assert len(at) == part.numel() and flat.unique().numel() == flat.numel(), "an entry is not the backbone's"
    grid = torch.stack(torch.unravel_index(at[:, 1], whole.shape)).view(whole.ndim, *part.shape)
    places = [grid[i].select(1 - i, 0).tolist() if whole.ndim == 2 else grid[i].tolist() for i in range(whole.ndim)]
    assert torch.equal(whole[torch.meshgrid(*map(torch.tensor, places), indexing="ij")], part), "not a grid"
    return places


def cuts(m, delta):
    """(what runs through, {(layer, site, number): its inner channels}, {(layer, number): heads of the biases})."""
    through, inner, heads = [], {}, {}
    for i, (block, side) in enumerate(zip(blocks(m), delta.layers, strict=True)):
        seen = dict.fromkeys(("q", "k", "v", "o", "up", "down"), 0)
        for name, p in side.named_parameters():
            path, _, leaf = name.rpartition(".")
            c = block.get_submodule(path)
            at, site = found(p, block.get_parameter(name)), getattr(c, "site", None)
            if leaf == "weight" and site in seen:
                through.append(at[site not in ("o", "down")])
                inner[i, site, seen[site]] = at[site in ("o", "down")]
                seen[site] += 1
            elif site in ("o", "down") or (site in ("norm1", "norm2") and p.ndim == 1):
                through.append(at[0])
            elif site in seen:  # a bias
                assert at[0] == inner[i, site, seen[site] - 1]
            elif p.ndim == 2:
                assert at[0] == list(range(32)), "all distances"
                heads[i] = at[1]
    return through, inner, heads


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_a_pruned_start_is_a_cut_of_the_backbone(family):
    """Every tensor; what belongs together is cut at the same channels, and a side head is made of one head's."""
    for r in (1, 2, 3, 4, 8):
        m = distinct(family)
        delta = ladder(m, r=r, start="magnitude")
        through, inner, heads = cuts(m, delta)
        assert all(t == through[0] for t in through) and len(set(through[0])) == 32 // r
        for (i, site, n), at in inner.items():
            other = dict(q="o", o="q", k="v", v="k", up="down", down="up")[site]
            assert at == inner[i, other, 0 if "up" in (site, other) else n] and len(set(at)) == len(at)
        for (i, site, n), at in inner.items():
            if site == "q" and len(at) % 8 == 0:  # whole heads of 8
                mine = [c // 8 for c in at[::8]]
                assert at == [h * 8 + c for h in mine for c in range(8)]
                if (i, "k", n) in inner and m.config.model_type in ("llama", "gemma3_text"):
                    keys = [c // 8 for c in inner[i, "k", n][::8]]
                    assert [h // 2 for h in mine] == [k for k in keys for _ in range(len(mine) // len(keys))]
                if i in heads and n == 0:
                    assert heads[i] == mine and inner[i + 1, "q", 0] == at, "the biases of layer 0 serve all layers"
        final = [n for n, _ in m.base_model.named_modules() if n.split(".")[-1] in ("ln_f", "final_layer_norm", "norm")]
        final = [n for n in final if "lst" not in n and not any(c.isdigit() for c in n)]
        for name, side in zip(final, delta.norms, strict=False):
            for n, p in side.named_parameters():
                assert found(p, m.base_model.get_parameter(f"{name}.{n}")) == [through[0]]
        assert bool(final) == (m.kind != "encoder")
        assert pl.counts(m)["delta"] == sum(p.numel() for p in ladder(tiny.model(family), r=r).parameters())


@torch.no_grad()
def louder(m, site, layer, rows=ALL, columns=ALL, n=0, by=100.0):
    W = [s for s in pl.sites(m, site) if s.layer == layer][n].weight
    loud = torch.zeros(W.shape)
    loud[rows] = 1
    loud[:, columns] += 1
    W[loud == 2] *= by


@pytest.mark.parametrize("family", ["roberta", "t5", "llama"])
def test_the_largest_channels_are_kept(family):
    """Those of the residual stream, of the heads (keys count as queries do), and within."""
    m, wanted, within = tiny.model(family), [1, 6, 7, 11, 18, 22, 23, 30], [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37]
    for i in range(pl.n_layers(m)):
        louder(m, "q", i, columns=wanted)
        louder(m, "down", i, wanted, within)
    louder(m, "o", 0, wanted, slice(16, 24), by=1e4)
    louder(m, "v", 1, slice(8, 16), wanted, by=1e3)
    if family == "t5":
        louder(m, "o", 2, wanted, slice(0, 8), by=1e5)
        louder(m, "o", 2, wanted, slice(24, 32), n=1, by=1e4)
    through, inner, _ = cuts(m, ladder(m, r=4, start="magnitude"))
    assert through[0] == wanted
    assert all(at == within for (_, s, _), at in inner.items() if s == "up")
    assert inner[0, "q", 0] == list(range(16, 24)) and inner[0, "k", 0][0] == (8 if family == "llama" else 16)
    assert inner[1, "k", 0] == list(range(8, 16)) or family == "t5"
    if family == "t5":
        assert inner[1, "q", 0] == inner[0, "q", 0], "the encoder's layers have the same heads"
        assert inner[2, "q", 0] == inner[3, "q", 0] == list(range(8)) and inner[2, "q", 1] == list(range(24, 32))


def test_a_side_head_wider_than_a_head_is_filled_up():
    score = torch.tensor([[1.0, 9, 1], [5, 5, 5], [8, 1, 1], [2, 3, 4]])
    rows, at = pick(score, 2, 2)
    assert rows.tolist() == [0, 1] and at.tolist() == [0, 1, 3, 4]
    rows, at = pick(score, 2, 5)
    assert rows.tolist() == [0, 1] and at.tolist() == [0, 1, 2, 6, 9, 3, 4, 5, 10, 11]


def squares(m, b):
    """Σ g² over single rows, by the backbone's tensors: one backward pass each."""
    sites = pl.sites(m, "q k v o up down")
    total = {s: 0 for s in sites}
    for i in range(len(b["labels"])):
        weights = [s.weight.requires_grad_(True) for s in sites]
        grads = torch.autograd.grad(m(**{k: t[i : i + 1] for k, t in b.items()}).loss, weights)
        total = {s: total[s] + g**2 for s, g in zip(sites, grads, strict=True)}
    m.base_model.requires_grad_(False)
    return total


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_fisher_looks_once_and_at_the_backbones_gradients(family, tmp_path):
    m = distinct(family)
    score = squares(copy.deepcopy(m), tiny.batch(m))
    through = sum(t.sum(1 if s.site in ("o", "down") else 0) for s, t in score.items())
    bare = copy.deepcopy(m)
    undo = pl.attach(m, pl.recipe("lst", r=4, start="fisher"))
    (delta,) = undo.deltas
    fresh = {n: p.clone() for n, p in delta.named_parameters()}
    again = iter([tiny.batch(m)] * 8)
    assert delta.waits
    delta.begin(View(m, again))
    assert not delta.waits and delta.on and len(list(again)) == 4
    assert cuts(m, delta)[0][0] == sorted(through.argsort(descending=True)[:8].tolist())
    kept = {n for n, p in delta.named_parameters() if torch.equal(p, fresh[n])}
    assert {n.split(".")[0] for n in kept} - {"norms"} == {"a", "D", "D0", "U"}
    assert not any(p.requires_grad for n, p in m.base_model.named_parameters() if not n.startswith("lst."))
    tiny.train(m, 3)
    now = {n: p.clone() for n, p in delta.named_parameters()}
    delta.begin(View(m, iter(())))
    y = tiny.logits(m)
    pl.save(m, undo, tmp_path)
    other = copy.deepcopy(bare)
    (loaded,) = pl.load(other, tmp_path).deltas
    loaded.begin(View(other, iter(())))
    assert torch.equal(tiny.logits(other), y) and all(torch.equal(p, now[n]) for n, p in loaded.named_parameters())
    twin = ladder(bare, r=4, start="fisher")
    twin.load_state_dict(delta.state_dict())
    assert not twin.waits


def test_a_look_that_fails_looks_again_and_leaves_the_ladder_on():
    m = tiny.model()
    delta = ladder(m, start="fisher")
    with pytest.raises(RuntimeError):
        delta.begin(View(m, iter(())))
    assert delta.waits and delta.on


def test_a_pruned_start_beside_other_deltas():
    """The cut is of the backbone's own tensors, also below a parametrization; packed ones have no gradients."""
    m = tiny.model()
    for p in (p for d in pl.attach(m, ["bitfit", "lora", "magnitude-mask"]).deltas for p in d.parameters()):
        torch.nn.init.normal_(p)
    delta = ladder(m, r=4, start="magnitude")
    other = tiny.model()
    want = ladder(other, r=4, start="magnitude")
    assert all(torch.equal(p, want.get_parameter(n)) for n, p in delta.layers.named_parameters(prefix="layers"))
    m = tiny.model()
    pl.attach(m, "qlora")
    delta = ladder(m, start="fisher")
    with pytest.raises(pl.PeftlabError, match="fisher needs gradients of the weights, and these are packed"):
        delta.begin(View(m, iter([tiny.batch(m)] * 4)))
    assert tiny.logits(m).isfinite().all() and ladder(m, start="magnitude")


def test_fisher_within_remembered_rows():
    """What it looks at is not what is remembered."""
    m, other = tiny.model(), tiny.model()
    delta, want = ladder(m, start="fisher"), ladder(other, start="fisher")
    want.begin(View(other, iter([tiny.batch(m)] * 4)))
    with remembered(m) as kept:
        delta.begin(View(m, iter([tiny.batch(m)] * 4)))
        assert not kept.rows
        assert torch.allclose(m(**tiny.batch(m)).logits, other(**tiny.batch(m)).logits, atol=1e-5) and kept.rows
    assert all(torch.equal(p, want.get_parameter(n)) for n, p in delta.named_parameters())


@pytest.mark.parametrize("start", ["magnitude", "fisher"])
def test_a_run_with_a_pruned_start(start, tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTLAB_HOME", str(tmp_path))
    spec = pl.spec("lst", start=start, backbone="nano-encoder", task="reviews", size=64, steps=4)
    a = pl.run(spec)
    assert ("looking_bytes" in a.peak) == (start == "fisher")
    assert [r["loss"] for r in pl.run(spec, fresh=True).rows] == [r["loss"] for r in a.rows]


def test_another_start_is_refused():
    with pytest.raises(pl.PeftlabError, match=r"start \(first weights\).*magnitud"):
        pl.recipe("lst", start="magnitud")
