"""What a search of gates leaves behind: the backbone untouched, a structure in files, copies and merged weights."""

import copy
import itertools
from types import SimpleNamespace

import pytest
import tiny
import torch
from gated import FAMILIES, attached, kept, same, searched, stored, stream

import peftlab as pl
from peftlab.methods import gates
from peftlab.structures import structure
from peftlab.training import fit

# After the search ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_all_is_rewound_and_the_backbone_untouched(family):
    m = tiny.model(family)
    before, y = {n: t.clone() for n, t in m.state_dict().items()}, tiny.logits(m)
    undo = attached(m)
    drawn = [{n: t.clone() for n, t in d.start.items()} for d in undo.deltas]
    searched(m, undo)
    assert torch.equal(tiny.logits(m), y), "the head too is where it was"
    for d, first in zip(undo.deltas, drawn, strict=True):
        assert d.start is None and d.z is None
        for n, t in first.items() if d.kept else ():
            assert torch.equal(getattr(d, n), t), "kept ones begin as they were drawn"
    undo()
    assert same(before, m.state_dict())


def test_only_what_is_kept_learns_is_stored_and_acts():
    m = tiny.model()
    pl.set_head(m, "frozen")
    undo = attached(m)
    losses = [
        row["loss"] for row in fit(m, repeated(m), undo.deltas, lr=1e-2, steps=30, every=1, weight_decay=0.1)
    ]
    first, given = undo.deltas[0], torch.randn(2, 32)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5]) and {*kept(undo)} == {True, False}
    assert set(stored(undo)) == {"0.v", "0.structure"} and pl.trainable(m) == [first.v]
    parts = [range(len(first.v))[part] for d in undo.deltas for part in d.part.values()]
    used = [i for part in parts for i in part]
    assert used == [*range(sum(d.size for d in undo.deltas if d.kept))], "no number is anyone else's"
    assert not first.v[len(used) :].any(), "what is left of the budget stays 0"
    y = tiny.logits(m.eval())
    for d in undo.deltas:
        assert d.kept or (d(given) is given and not any(hasattr(d, n) for n in "A B D U b d".split()))
        d.on = False
        felt = not torch.allclose(tiny.logits(m), y, atol=1e-6)
        assert felt == d.kept or isinstance(d, gates.GateBias), "a bias of all keys is never felt"
        d.on = True


def repeated(m):
    return itertools.repeat(tiny.batch(m))


def test_training_looks_once():
    m = tiny.model()
    undo, looks = attached(m), []
    for _ in range(2):
        list(fit(m, repeated(m), undo.deltas, lr=1e-2, steps=2))
        looks.append((kept(undo), len(undo.deltas[0].history)))
    assert looks[0] == looks[1] and looks[0][1] == 2


def test_an_interrupted_search_leaves_the_random_structure_and_is_made_again():
    m = tiny.model()
    undo = attached(m)
    before, random = stored(undo), kept(undo)

    def stopping():
        yield from itertools.islice(stream(m), 5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched(m, undo, batches=stopping())
    assert same(before, stored(undo)) and kept(undo) == random and undo.deltas[0].v.requires_grad
    assert len([*undo.deltas[0].parameters()]) == 1 and sum(1 for d in undo.deltas for _ in d.parameters()) == 1
    tiny.train(m, 2)
    searched(m, undo)
    assert kept(undo) != random


# Files and copies ----------------------------------------------------------------------------------


def trained(family, seed=0):
    m = tiny.model(family)
    undo = searched(m, attached(m, seed=seed))
    tiny.train(m, 4)
    return m.eval(), undo


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_brings_its_structure_with_it(family, tmp_path):
    m, undo = trained(family)
    y, found = tiny.logits(m), kept(undo)
    pl.save(m, undo, tmp_path)
    fresh = tiny.model(family)
    assert kept(attached(tiny.model(family))) != found, "the random one is another"
    again = pl.load(fresh, tmp_path)
    assert torch.equal(tiny.logits(fresh), y) and kept(again) == found and same(stored(undo), stored(again))
    assert {r["p"] for r in structure(fresh, again)} == {None}
    searched(fresh, again)
    assert torch.equal(tiny.logits(fresh), y), "it is not looked for again"
    other = tiny.model(family)
    there = attached(other, seed=4)
    other.load_state_dict(m.state_dict())
    assert torch.equal(tiny.logits(other), y) and kept(there) == found


def test_a_copy_searches_and_learns_by_itself():
    m = tiny.model()
    undo = attached(m)
    twin, y, was = copy.deepcopy(m), tiny.logits(m), stored(undo)
    copies = [d for d in twin.modules() if isinstance(d, gates.Gate)]
    searched(twin, SimpleNamespace(deltas=copies[0].peers))
    tiny.train(twin, 4)
    assert same(was, stored(undo)) and torch.equal(tiny.logits(m), y)
    assert kept(undo) != [d.kept for d in copies[0].peers]
    assert torch.equal(tiny.logits(copy.deepcopy(twin)), tiny.logits(twin)) and not torch.equal(tiny.logits(twin), y)


def test_what_is_merged_keeps_its_structure():
    m = tiny.model().eval()
    undo = searched(m, attached(m, "gate-lora gate-norm"))
    tiny.train(m, 4)
    y, found = tiny.logits(m), kept(undo)
    unmerge = pl.merge(m, undo)
    assert torch.allclose(tiny.logits(m), y, atol=1e-5) and not any(isinstance(d, pl.Delta) for d in m.modules())
    again = unmerge()
    assert torch.allclose(tiny.logits(m), y, atol=1e-5) and kept(again) == found


# What a lab asks -----------------------------------------------------------------------------------


def test_the_rows_of_a_structure():
    m = tiny.model("t5")
    rows = structure(m, attached(m))
    assert len(rows) == len({(r["name"], r["kind"]) for r in rows}) == 85
    assert {(r["kind"], r["site"]) for r in rows} == {
        *((kind, site) for kind in ("lora", "bias") for site in "q k v o up down".split()),
        *(("adapter", site) for site in ("o", "down")),
        *(("norm", site) for site in ("norm1", "norm2")),
    }
    for r in rows:
        place = m.get_submodule(r["name"])
        wide = sum(place.weight.shape)
        n = dict(lora=4 * wide, bias=len(place.weight), norm=len(place.weight), adapter=(2 * 4 + 1) * 32 + 4)
        assert r["numbers"] == n[r["kind"]] and (r["layer"], r["site"]) == (place.layer, place.site)
    m = tiny.model()
    with pytest.raises(pl.PeftlabError, match="none of these deltas has a gate that chooses it; attach s3delta first"):
        structure(m, pl.attach(m, "lora"))
