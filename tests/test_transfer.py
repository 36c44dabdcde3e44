"""Soft prompts that build on the prompts of other tasks."""

import copy

import pytest
import tiny
import torch
from small import backbone, home, sentences, write  # noqa: F401

import peftlab as pl
from peftlab import PeftlabError, sources
from peftlab.methods.transfer import factored, similarity
from peftlab.runs import laid_out
from peftlab.specs import spec

NAMES = ("spot", "attempt", "mpt", "ipt")


def some(k):
    """Names of k tasks; here nobody trains on them."""
    return " ".join("reviews topic grammar paraphrase entail sense".split()[:k])


def attached(name, family="roberta", head="classification", **settings):
    m = tiny.model(family, head)
    return m, pl.attach(m, pl.recipe(name, **settings)).deltas[0]


def prompts(k, n=8, d=32, seed=0):
    return torch.randn(k, n, d, generator=torch.Generator().manual_seed(seed))


def take(delta, P):
    delta.take([dict(P=one) for one in P])


# --- SPoT ---------------------------------------------------------------------------------------------------------


def test_spot_starts_where_its_source_ended():
    (P,) = prompts(1)
    m, d = attached("spot", sources=some(1))
    take(d, P[None])
    assert torch.equal(d.P, P)
    plain, prompt = attached("prompt")
    with torch.no_grad():
        prompt.P.copy_(P)
    assert torch.equal(tiny.logits(m), tiny.logits(plain))
    _, mean = attached("spot", sources=some(3), start="mean")
    take(mean, prompts(3))
    assert torch.allclose(mean.P, prompts(3).mean(0))


def test_spot_chooses_the_source_that_is_most_like_a_prompt_of_the_target():
    m, d = attached("spot", sources=some(3))
    batch = tiny.batch(m)
    list(pl.fit(m, iter(lambda: batch, None), [], lr=1e-2, steps=40))  # what a prompt of the target becomes
    goal, before = d.P.detach().clone(), torch.randn(8, 32)
    for where in range(3):
        m, d = attached("spot", sources=some(3), before=20)
        found = prompts(3)
        found[where] = goal + 0.1 * found[where]
        take(d, found)
        with torch.no_grad():
            d.P.copy_(before)
            d.P += goal
        head = [p.clone() for p in pl.head_parameters(m).values()]
        seen = []
        fit = pl.fit(m, iter(lambda: batch, None), [d, Recorder(d, seen)], lr=1e-2, steps=1)
        list(fit)
        assert max(d.near) == d.near[where] and len(d.near) == 3
        assert torch.equal(seen[0], found[where]), "and begins there"
        assert all(torch.equal(a, b) for a, b in zip(head, seen[1:], strict=True)), "the head's trial is forgotten"


class Recorder:
    """Notes the prompt and the head as they are when the training begins."""

    def __init__(self, delta, seen):
        self.delta, self.seen = delta, seen

    def begin(self, view):
        head = pl.head_parameters(view.model).values()
        self.seen += [t.detach().clone() for t in (self.delta.P, *head)]


def test_similarity_is_the_mean_cosine_over_all_pairs_of_tokens():
    a, b = prompts(2, n=3)
    pairs = [torch.cosine_similarity(x, y, 0) for x in a for y in b]
    assert torch.allclose(similarity(a, b), torch.stack(pairs).mean())


# --- ATTEMPT ------------------------------------------------------------------------------------------------------


def test_attempt_mixes_by_the_instance():
    m, d = attached("attempt", sources=some(3), t=0.1)
    take(d, prompts(3))
    tiny.logits(m)
    assert d.heard.shape == (4, 4) and torch.allclose(d.heard.sum(1), torch.ones(4))
    assert not torch.allclose(d.heard[0], d.heard[2], atol=1e-3), "another instance, another mixture"
    heard = d.heard
    m, d = attached("attempt", sources=some(3), t=10.0)
    take(d, prompts(3))
    tiny.logits(m)
    assert d.heard.std() < 0.1 * heard.std(), "a high temperature makes the weights equal"


def test_the_prompt_of_attempt_is_its_own_plus_the_mixture():
    m, d = attached("attempt", sources=some(2))
    take(d, prompts(2))
    e = torch.randn(5, 7, 32)
    d.mask = None
    out = d(e)
    expected = d.P + sum(d.heard[:, j, None, None] * P for j, P in enumerate([*prompts(2), d.P]))
    assert torch.allclose(out[:, 1:9], expected, atol=1e-5)
    assert torch.equal(out[:, 0], e[:, 0]) and torch.equal(out[:, 9:], e[:, 1:])


def test_the_sources_of_attempt_stay_as_they_are():
    m, d = attached("attempt", sources=some(2))
    take(d, prompts(2))
    tiny.train(m, 3)
    assert torch.equal(d.S, prompts(2)) and not d.S.requires_grad
    assert pl.counts(m)["delta"] == 8 * 32 + 2 * 16 * 32 + 2 * 32
    _, fresh = attached("attempt", prompts=3)
    assert fresh.S.requires_grad and fresh.S.shape == (3, 8, 32)


def test_attempt_does_not_read_ahead_in_a_language_model():
    with pytest.raises(PeftlabError, match="would see the words that it is to predict"):
        attached("attempt", "gpt2", "lm")
    attached("attempt", "t5", "seq2seq"), attached("attempt", "gpt2")


# --- MPT ----------------------------------------------------------------------------------------------------------


def test_mpt_reconstructs_sources_that_are_related_by_rank_one():
    g = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(shape, generator=g, dtype=torch.double)
    common, u, v = draw(8, 32), draw(3, 8), draw(3, 32)
    related = common * u[..., None] * v[:, None]
    P, a, b = factored(related)
    assert torch.allclose(P * a[..., None] * b[:, None], related, atol=1e-5)
    assert torch.allclose(a.square().mean(1), b.square().mean(1)), "of a task's two vectors none is larger"
    P, a, b = factored(prompts(3).double())
    assert not torch.allclose(P * a[..., None] * b[:, None], prompts(3).double(), atol=0.1), "others are not related"


def test_mpt_begins_at_the_common_prompt_and_trains_it_with_its_vectors():
    m, d = attached("mpt", sources=some(2))
    take(d, torch.stack([prompts(1)[0], 2 * prompts(1)[0]]))
    start = d.prompt(None).detach()
    cosine = torch.cosine_similarity(start.flatten(), prompts(1).flatten(), 0)
    assert cosine > 0.9999 and 1 < start.norm() / prompts(1).norm() < 2, "between the two"
    before = [t.detach().clone() for t in (d.P, d.u, d.v)]
    tiny.train(m, 3)
    assert all(not torch.equal(a, b) for a, b in zip(before, (d.P, d.u, d.v), strict=True))


# --- IPT ----------------------------------------------------------------------------------------------------------


def test_ipt_trains_d_numbers_and_reaches_the_prompts_of_its_subspace():
    m, d = attached("ipt", d=3, sources=some(6))
    basis, g = prompts(3), torch.Generator().manual_seed(2)
    found = prompts(1, seed=5) + torch.einsum("kj,jnd->knd", torch.randn(6, 3, generator=g), basis)
    take(d, found)
    assert pl.counts(m)["delta"] == 3 and [n for n, p in d.named_parameters() if p.requires_grad] == ["z"]
    assert torch.allclose(d.prompt(None), found.mean(0), atol=1e-5), "it begins at the mean"

    def reached(P):
        z = torch.linalg.lstsq(d.W, (P - d.b).flatten()[:, None]).solution[:, 0]
        return ((d.W @ z).view_as(P) + d.b - P).norm() / P.norm(), z

    assert all(reached(P)[0] < 1e-4 for P in found)
    assert reached(prompts(1, seed=9)[0])[0] > 0.5, "any other prompt is out of reach"
    z = torch.stack([reached(P)[1] for P in found])
    assert torch.allclose(z.square().mean(0), torch.ones(3), atol=1e-3), "one is as far as the sources go"
    W = d.W.clone()
    losses = tiny.train(m, 20, lr=5e-2)
    assert losses[-1] < losses[0] and torch.equal(d.W, W) and d.z.any()


def test_directions_that_the_sources_do_not_fill_stay_random():
    _, d = attached("ipt", d=6, sources=some(3))
    before = d.W.clone()
    take(d, prompts(3))
    assert torch.equal(d.W[:, 2:], before[:, 2:]) and not torch.equal(d.W[:, :2], before[:, :2])
    _, alone = attached("ipt", d=6, sources=some(1))
    before = alone.W.clone()
    take(alone, prompts(1))
    assert torch.equal(alone.W, before) and torch.equal(alone.prompt(None).detach(), prompts(1)[0])
    with pytest.raises(PeftlabError, match="dimension 257 is above the 256"):
        attached("ipt", d=257)


# --- all of them --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", ["roberta", "gpt2", "t5", "llama"])
def test_with_sources_copies_and_files_are_the_same_function(name, family, tmp_path):
    m = tiny.model(family)
    undo = pl.attach(m, [dict(method=name, settings=dict(sources=some(2))), "lora"])
    take(undo.deltas[0], prompts(2))
    tiny.train(m, 3)
    y = tiny.logits(m)
    assert torch.equal(tiny.logits(copy.deepcopy(m)), y)
    pl.save(m, undo, tmp_path)
    fresh = tiny.model(family)
    pl.load(fresh, tmp_path)
    assert torch.equal(tiny.logits(fresh), y)


def test_a_run_hands_over_the_prompts_that_its_sources_learned(tmp_path, home):  # noqa: F811
    tasks = [write(tmp_path / f"{n}.tsv", sentences(60, seed=i)) for i, n in enumerate("abt")]
    place = dict(backbone=backbone(tmp_path / "tiny"), task=tasks[2], steps=4, batch=8)
    wanted = spec("attempt", sources=" ".join(tasks[:2]), **place)
    kept = [sources.trained(s)["0.P"] for s in sources.source_specs(wanted)[0]]
    with laid_out(wanted) as (_, _, undo, _):
        assert torch.equal(undo.deltas[0].S, torch.stack(kept))
        assert not torch.equal(undo.deltas[0].P, kept[0]), "its own prompt is new"
    first = pl.run(spec("prompt", **place | dict(task=tasks[0])))
    only = spec("spot", sources=tasks[0], **place)
    with laid_out(only) as (_, _, undo, _):
        assert torch.equal(undo.deltas[0].P, kept[0])
    assert first.spec == sources.source_specs(only)[0][0], "a source is an ordinary run of prompt-tuning"
