"""Scores, selections and the view of the data: each against its definition."""

import collections
import math
from fractions import Fraction
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional as F

import peftlab as pl
from peftlab.masks import SELECTIONS, select
from peftlab.scores import SCORES, Look
from peftlab.training import stored
from peftlab.view import View, trial

# Scores -------------------------------------------------------------------------------------------


N = 3  # batches


@pytest.fixture
def net():
    """A tiny model, some of its frozen weights, and batches."""
    m = tiny.model()
    return m, [s.weight for s in pl.sites(m, "q down")], [tiny.batch(m, seed=i) for i in range(N)]


def cut(batch, i, j):
    return {k: v[i:j] for k, v in batch.items()}


def by_backward(m, tensors, batch):
    """The gradients of the mean cross-entropy, by another way than the view's."""
    copies = {id(t): t.detach().clone().requires_grad_() for t in tensors}
    state = {n: copies.get(id(p), p.detach()) for n, p in m.named_parameters()}
    out = torch.func.functional_call(m, state, kwargs={k: v for k, v in batch.items() if k != "labels"})
    F.cross_entropy(out.logits, batch["labels"]).backward()
    return [copies[id(t)].grad for t in tensors]


def each(net, single=False):
    """A list of gradients for every batch, or for every row, one stack for each tensor."""
    m, tensors, batches = net
    seen = [cut(b, i, i + 1) for b in batches for i in range(len(b["labels"]))] if single else batches
    return [torch.stack(g) for g in zip(*(by_backward(m, tensors, b) for b in seen), strict=True)]


def made(name, net, **more):
    m, tensors, batches = net
    return SCORES[name].make(Look(tensors, View(m, iter(batches), **more), N))


WANTED = {
    "gradient": lambda g, W: g.sum(0).abs(),
    "absolute": lambda g, W: g.abs().sum(0),
    "squares": lambda g, W: g.square().sum(0),
    "fisher": lambda g, W: g.square().sum(0),
    "snip": lambda g, W: (W * g.sum(0)).abs(),
}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", WANTED)
def test_a_score_is_its_formula(net, name, parts):
    """Also where a batch is worked off in parts; "fisher" sums over rows."""
    gradients = each(net, single=name == "fisher")
    for found, g, W in zip(made(name, net, parts=parts), gradients, net[1], strict=True):
        torch.testing.assert_close(found, WANTED[name](g, W.detach()), rtol=1e-3, atol=1e-7)
        assert found.max() > 1e-4
    assert not any(t.requires_grad or t.grad is not None for t in net[1]), "the weights are frozen again"


def test_the_square_of_a_mean_is_not_the_mean_of_squares(net):
    batches, rows = (torch.cat([t.flatten() for t in made(n, net)]) for n in ("squares", "fisher"))
    assert (rows > 1.2 * batches).float().mean() > 0.5


def test_scores_that_need_no_data(net):
    _, tensors, _ = net
    assert {n for n, s in SCORES.items() if not s.data} == {"random", "magnitude"}
    assert all(s.equal(W.abs()) for s, W in zip(SCORES["magnitude"].make(Look(tensors)), tensors, strict=True))
    drawn = torch.cat([s.flatten() for s in SCORES["random"].make(Look(tensors))])
    assert len(drawn) == sum(W.numel() for W in tensors) and len(drawn.unique()) > 0.99 * len(drawn)
    changes = [torch.randn_like(W) for W in tensors]
    found = SCORES["moved"].make(Look(tensors, moved=lambda: changes))
    assert all(s.equal(D.abs()) for s, D in zip(found, changes, strict=True))


def test_what_the_view_can_do_to_a_gradient(net):
    m, tensors, batches = net
    see = lambda **how: next(View(m, iter(batches)).gradients(tensors, 1, **how))
    norm = lambda g: torch.cat([t.flatten() for t in g]).norm()
    plain, short, long = see(), see(clip=0.01), see(clip=1e6)
    assert norm(plain) > 0.01 and norm(short) == pytest.approx(0.01)
    assert all(torch.allclose(s / norm(short), g / norm(plain), atol=1e-6) for s, g in zip(short, plain, strict=True))
    assert all(a.equal(b) for a, b in zip(long, plain, strict=True))
    assert not m.training and not torch.allclose(see(dropout=True)[0], plain[0]) and m.training


def test_a_view_tells_what_it_holds(net):
    """The gradients and their sum; in a trial a copy of all that is rewound, also when the training fails."""
    m, tensors, batches = net
    report = {}
    list(View(m, iter(batches), report=report).gradients(tensors, N))
    assert report["dense_bytes"] == 2 * stored(tensors) and report["saved_bytes"] > 0
    v, before, report = nn.Parameter(torch.zeros(3)), [t.detach().clone() for t in tensors], {}
    with pytest.raises(KeyError), trial(View(m, None, report=report), tensors, [v]) as moved:
        assert all(t.requires_grad for t in tensors) and not v.requires_grad
        with torch.no_grad():
            tensors[0].add_(1.0)
        assert torch.allclose(moved()[0], torch.ones(32, 32), atol=1e-6) and not moved()[1].any()
        raise KeyError
    assert all(t.equal(b) and not t.requires_grad for t, b in zip(tensors, before, strict=True)) and v.requires_grad
    assert report["dense_bytes"] == stored(tensors)


# Curvature ----------------------------------------------------------------------------------------


class Bowl(nn.Module):
    """½ wᵀ H w + gᵀ w, H and g from the batch; w is cut into two tensors."""

    def __init__(self, n):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(n)), nn.Parameter(torch.zeros(n))

    def forward(self, H, g, labels):
        w = torch.cat([self.a, self.b])
        return SimpleNamespace(loss=w @ H[0] @ w / 2 + g[0] @ w)


class Net(nn.Module):
    """Two layers and a cross-entropy: neither quadratic nor convex."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.A, self.B = (nn.Parameter(torch.randn(s, dtype=torch.double)) for s in ((3, 2), (2, 3)))

    def forward(self, x, labels):
        return SimpleNamespace(loss=F.cross_entropy(torch.tanh(x @ self.A.T) @ self.B.T, labels))


def bowl(h, g):
    return dict(H=torch.diag(torch.tensor(h))[None], g=torch.tensor([g]), labels=torch.zeros(1))


def curvature(m, tensors, batches, probes, seed=0):
    found = View(m, iter(batches)).curvature(tensors, len(batches), probes, seed)
    return torch.cat([t.flatten() for t in found])


def test_one_probe_gives_a_diagonal_hessian_exactly():
    m, batches = Bowl(2), [bowl([1.0, -2.0, 3.0, 0.0], [0.0] * 4), bowl([5.0, 0.0, 1.0, 8.0], [0.0] * 4)]
    assert curvature(m, [m.a, m.b], batches, probes=1).tolist() == [3.0, -1.0, 2.0, 4.0]


def test_hutchinson_is_unbiased_and_as_exact_as_its_variance_says():
    """z ⊙ H z with random signs z has the mean diag H and the variance Σ_{j≠i} H_ij² in entry i."""
    m = Net()
    x, y = torch.randn(5, 2, dtype=torch.double), torch.tensor([0, 1, 1, 0, 1])
    loss = lambda A, B: torch.func.functional_call(m, dict(A=A, B=B), kwargs=dict(x=x, labels=y)).loss
    rows = torch.autograd.functional.hessian(loss, (m.A.detach(), m.B.detach()))
    H = torch.cat([torch.cat([t.reshape(6, 6) for t in row], 1) for row in rows])
    spread = (H - torch.diag(H.diag())).norm(dim=1)
    assert spread.min() > 0.01 and H.diag().min() < 0, "no special case"
    one = torch.stack([curvature(m, [m.A, m.B], [dict(x=x, labels=y)], 1, seed) for seed in range(500)])
    off = (one.mean(0) - H.diag()) / (spread / 500**0.5)  # in standard errors, for each of the 12 entries
    assert off.abs().max() < 4
    assert (one.std(0) / spread).tolist() == pytest.approx([1.0] * 12, abs=0.2)
    many = curvature(m, [m.A, m.B], [dict(x=x, labels=y)], 500)
    assert ((many - H.diag()) / (spread / 500**0.5)).abs().max() < 4, "so many probes of one call"


def test_hutchinson_goes_through_attention(net):
    m, _, batches = net
    b = pl.sites(m, "q")[1].bias
    state = {n: p.detach() for n, p in m.named_parameters()}
    (name,) = (n for n, p in m.named_parameters() if p is b)
    loss = lambda t: torch.func.functional_call(m, state | {name: t}, kwargs=batches[0]).loss
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        H = torch.autograd.functional.hessian(loss, b.detach())
    off = (curvature(m, [b], batches[:1], 200) - H.diag()) / ((H - torch.diag(H.diag())).norm(dim=1) / 200**0.5)
    assert H.diag().abs().max() > 1e-5 and off.abs().max() < 4.5


def test_the_score_of_curvature_is_g_squared_over_h():
    """The mean of g and of h over the same batches; h is at least its mean size."""
    m, batches = Bowl(2), [bowl([1.0, 0.0, 6.0, -4.0], [1.0, 2, 3, 4]), bowl([3.0, 8.0, 2.0, 0.0], [5.0, 0, -1, 4])]
    h, g = torch.tensor([2.0, 4.0, 4.0, -2.0]), torch.tensor([3.0, 1.0, 1.0, 4.0])
    least = 3.0  # |h| is 2 and 4 in the first tensor, 4 and 2 in the second
    found = SCORES["curvature"].make(Look([m.a, m.b], View(m, iter(batches)), 2))
    assert torch.cat(found).tolist() == pytest.approx((g**2 / h.clamp_min(least)).tolist())


# Selections ---------------------------------------------------------------------------------------


SHAPES = {"q": (8, 6), "o": (6, 8), "v": (8,), "down": (5, 7)}  # out and in; v stands for a bias
PLACES = [SimpleNamespace(site=s, layer=i, heads=2) for i, s in ((1, "q"), (0, "o"), (1, "v"), (0, "down"))]


def drawn(sites, seed=0, values=4):
    """Scores with many ties."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(values, SHAPES[s], generator=g).float() for s in sites]


def cells(scores, held):
    """Every entry with all that a definition may ask for."""
    position = 0
    for t, (s, place) in enumerate(zip(scores, held, strict=True)):
        table = s.reshape(-1, s.shape[-1]) if s.ndim > 1 else s[:, None]
        for f, value in enumerate(s.flatten().tolist()):
            r, c = divmod(f, table.shape[1])
            block = c // (table.shape[1] // 2) if place.site == "o" else r // (len(table) // 2)
            unit = dict(neuron=(t, r), head=(t, block), layer=place.layer, module=t)
            row = t, r if s.ndim > 1 else 0
            yield SimpleNamespace(at=position, score=value, tensor=t, row=row, flat=f, unit=unit)
            position += 1


def grouped(entries, key):
    found = collections.defaultdict(list)
    for e in entries:
        found[key(e)].append(e)
    return [found[k] for k in sorted(found)]


def first(entries, k):
    return sorted(entries, key=lambda e: (-e.score, e.at))[:k]


def budget(p, n):
    return math.floor(Fraction(str(p)) * n)


def by_definition(how, p, entries):
    if how in ("global", "tensor", "row"):
        among = {"global": lambda e: 0, "tensor": lambda e: e.tensor, "row": lambda e: e.row}[how]
        taken = [first(group, budget(p, len(group))) for group in grouped(entries, among)]
    elif how == "n-of-m":
        m = math.ceil(1 / Fraction(str(p)))
        taken = [first(group, len(group) // m) for group in grouped(entries, lambda e: (e.tensor, e.flat // m))]
    else:
        units = grouped(entries, lambda e: e.unit[how])
        units.sort(key=lambda u: -Fraction(sum(int(e.score) for e in u), len(u)))  # stable: of equal units the first
        taken = [sum(units, [])[: budget(p, len(entries))]]
    return sorted(e.at for group in taken for e in group)


@pytest.mark.parametrize("p", [0.04, 0.1, 0.25, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("how", SELECTIONS)
def test_a_selection_is_its_definition(how, p):
    """Ties and sizes included: never more than ⌊p·m⌋ of all m, and as many for whole budgets."""
    held = [x for x in PLACES if how != "head" or x.site != "down"]
    for seed in range(8):
        scores = drawn([x.site for x in held], seed)
        entries = list(cells(scores, held))
        wanted = by_definition(how, p, entries)
        if not wanted:
            with pytest.raises(pl.PeftlabError, match="picks"):
                select(scores, p, how, held)
            continue
        assert select(scores, p, how, held).tolist() == wanted
        assert len(wanted) <= budget(p, len(entries))
        assert how in ("tensor", "row", "n-of-m") or len(wanted) == budget(p, len(entries))


def test_units_of_a_half_precision_backbone():
    """More units than bfloat16 has whole numbers: 900 neurons, each with the next larger score."""
    ascending = (torch.arange(900) + 0x3F00).to(torch.int16).view(torch.bfloat16)
    found = select([ascending[:, None].expand(900, 4)], 0.4, "neuron", PLACES[3:])
    assert found.tolist() == list(range(540 * 4, 900 * 4))


def test_only_attention_has_heads():
    with pytest.raises(pl.PeftlabError, match="only q k v o have heads"):
        select(drawn(["q", "down"]), 0.5, "head", [PLACES[0], PLACES[3]])
