"""A backbone that begins with half of its layers: they come twice, and a run that is broken off ends the same."""

import shutil

import torch
from safetensors.torch import load_file

from peftlab.world import architectures, corpus, objectives, stacking
from peftlab.world.pretrain import adam, pretrain
from peftlab.world.tokenizer import tokenizer


def test_half_of_the_layers_come_a_second_time():
    words = tokenizer()
    model, o = architectures.build("nano-encoder", words, layers=1), objectives.MaskedWords(words)
    optimizer, layers = adam(model), model.base_model.encoder.layer
    blocks = objectives.Blocks(o, 16, seed=1)
    batch = o.make(blocks.padded(words(corpus.documents(16, 1))["input_ids"]), 5)
    o.loss(model, batch).backward()
    optimizer.step()
    stacking.stack(model, optimizer)
    assert len(layers) == model.config.num_hidden_layers == 2
    for name, p in layers[0].named_parameters():
        q = layers[1].get_parameter(name)
        assert torch.equal(p, q) and p is not q
        assert optimizer.state[p]["exp_avg"].any() and torch.equal(*(optimizer.state[x]["exp_avg"] for x in (p, q)))
    assert [len(g["params"]) for g in optimizer.param_groups] == [len(g["params"]) for g in adam(model).param_groups]
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    whole = torch.nn.functional.cross_entropy(model(**inputs).logits.flatten(0, 1), batch["labels"].flatten())
    torch.testing.assert_close(o.loss(model, batch), whole)  # of the new last layer alone is less computed


def test_a_stacked_backbone_goes_on_from_anywhere_with_the_same_bytes(tmp_path, monkeypatch):
    line = architectures.plan("nano-encoder")._replace(half=50)
    monkeypatch.setitem(architectures.BACKBONES, "nano-encoder", line)
    plan = dict(name="nano-encoder", steps=8, batch=8, device="cpu", every=2)

    def keep(text):
        (tmp_path / text[5]).mkdir()
        shutil.copy(tmp_path / "straight" / "resume.safetensors", tmp_path / text[5])

    card = pretrain(out=tmp_path / "straight", say=keep, **plan)
    assert card["layers"] == 2 and card["half"] == 4
    assert "first 4 steps trained half of its layers" in (tmp_path / "straight" / "README.md").read_text()
    layers = []
    for step in (2, 4, 6):
        saved = load_file(tmp_path / str(step) / "resume.safetensors")
        layers.append(len({name.split(".")[4] for name in saved if ".layer." in name}))
        again = pretrain(out=tmp_path / str(step), say=str, **plan)
        assert (again["sha256"], again["tokens"]) == (card["sha256"], card["tokens"])
    assert layers == [1, 1, 2]
