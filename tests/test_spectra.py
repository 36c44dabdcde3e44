"""The spectrum of a change: what is measured, that the shipped record repeats, and the figure of it."""

import json

import pytest
import tiny
import torch

import peftlab as pl
from peftlab import spectra


def test_the_change_of_lora_is_its_product():
    m = tiny.model("roberta")
    undo = pl.attach(m, "lora")
    with torch.no_grad():
        [d.B.normal_() for d in undo.deltas]
    wanted = {(layer.layer, layer.site): d.s * (d.B @ d.A).detach() for d, layer in undo.placed}
    found = spectra.changes(m, undo)
    assert found.keys() == wanted.keys() and all(torch.allclose(found[k], wanted[k], atol=1e-5) for k in wanted)
    assert not any(isinstance(x, pl.Delta) for x in m.modules()), "the model is as it was"


@pytest.mark.slow
def test_the_shipped_spectra_repeat():
    record = json.loads(spectra.file().read_text())
    assert set(record["spectra"]) == {"full", *map(str, spectra.RANKS)} and record["place"] == spectra.PLACE
    assert all(len(seeds) == len(spectra.SEEDS) for seeds in record["spectra"].values())
    again = spectra.spectrum(spectra.lora(4), 0, **spectra.PLACE)
    assert again == pytest.approx(record["spectra"]["4"][0], rel=0.02, abs=1e-4)


def test_the_figure_has_a_frame_for_each_rank():
    figure = pl.plots.spectrum()
    assert [f.name for f in figure.frames] == [str(r) for r in spectra.RANKS]
    assert all(len(f.data[0].x) == int(f.name) and f.data[0].y[0] == 1 for f in figure.frames)
    assert "rank 1<br>" in figure.layout.title.text and len(figure.layout.sliders[0].steps) == len(spectra.RANKS)
