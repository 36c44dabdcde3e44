"""The methods that others have too: one entry for each, with their side, and in what the two differ."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

from ..backbones import QKV, prepare, sites
from . import carrying
from .shapes import parts

N, R, STEPS = 8, 8, 1000  # length of prompts, rank, steps of the training from which steps are taken
FUSED = "q, k and v are one module there"
STILL = ("modules_to_save", "original_module", "ranknum")  # heads, and AdaLoRA's count of ranks, which is no weight


class Peer(NamedTuple):
    """One method here and there.

    make(plain, shape): their model, made of a frozen plain one. settings(shape): ours. placed: whether it is put at the
    shape's own sites or where the method is by default. carry(pair): give their model the numbers of ours. after(model,
    step): what theirs does after each step. inputs(shape, batch): what ours must be told so that both read the same.
    differs: family -> in what the two are not one function; without: family -> why they, or we, have none.
    """

    name: str
    title: str
    make: Callable | None
    settings: Callable = lambda shape: {}
    placed: bool = True
    carry: Callable = carrying.nothing
    after: Callable = lambda model, step: None
    inputs: Callable = lambda shape, batch: {}
    moved: bool = True  # whether the delta is given other numbers before the losses are compared
    differs: dict = {}
    without: dict = {}

    def row(self, shape):
        """Ours, as a row of a recipe."""
        place = dict(where=shape.where) if self.placed else {}
        return dict(method=self.name, settings=self.settings(shape)) | place

    def both(self, shape):
        return shape.family not in self.without


@functools.cache
def targets(shape, where=None):
    """Names of the modules at these sites in the plain model (default: the shape's own sites)."""
    model = prepare(shape.thin().model())
    names = {m: name for name, m in model.named_modules()}
    found = [names[m] for m in sites(model, where or shape.where)]
    above = [name.rpartition(".")[0] for name in found]
    fused = [isinstance(model.get_submodule(a), QKV) for a in above]
    return sorted({a if f else name for a, f, name in zip(above, fused, found, strict=True)})


def wrapped(config):
    """A `make` by PEFT, without what is no part of the comparison."""

    def make(plain, shape):
        import peft

        model = peft.get_peft_model(plain, config(peft, shape))
        for name, p in model.named_parameters():
            if any(word in name for word in STILL):
                p.requires_grad_(False)
        return model

    return make


def tuned(chosen):
    """A `make` without any library: those parameters of the pretrained part learn."""

    def make(plain, shape):
        for name, p in plain.base_model.named_parameters():
            p.requires_grad_(chosen(name))
        return plain

    return make


def task(shape):
    """PEFT's kind of task, which its prompts need."""
    return dict(task_type=dict(roberta="SEQ_CLS", gpt2="CAUSAL_LM", t5="SEQ_2_SEQ_LM")[shape.family])


def prompted(shape):
    """A prompt for the first stack only, as ours."""
    return task(shape) | dict(num_virtual_tokens=N, num_transformer_submodules=1)


def lora(peft, shape, **more):
    return peft.LoraConfig(r=R, lora_alpha=2 * R, target_modules=targets(shape), **more)


def adalora(peft, shape):
    ranks = dict(init_r=R, target_r=R // 2, lora_alpha=R)
    times = dict(total_step=STEPS, tinit=STEPS // 10, tfinal=3 * STEPS // 10, deltaT=1)
    # weight 0: ours adds its penalty, which is another one, outside the model; theirs is computed all the same, if only
    # the task is given
    return peft.AdaLoraConfig(**ranks, **times, **task(shape), orth_reg_weight=0.0, target_modules=targets(shape))


def ia3(peft, shape):
    down = targets(shape, "down")
    at = sorted({*targets(shape, "k v"), *down})
    return peft.IA3Config(target_modules=at, feedforward_modules=down)


def lokr(peft, shape):
    factor = dict(decompose_factor=parts(shape.width))
    return peft.LoKrConfig(r=shape.width, alpha=shape.width, target_modules=targets(shape), **factor)


def squared(shape):
    """LoHa's rank, whose square is far below the width; the scale is 2."""
    r = min(R // 2, math.isqrt(shape.width // 8))
    return dict(r=r, alpha=2 * r)


def loha(peft, shape):
    return peft.LoHaConfig(**squared(shape), target_modules=targets(shape))


def shira(peft, shape):
    return peft.ShiraConfig(r=R // 2, target_modules=targets(shape), random_seed=0)


def after_prefix(shape, batch):
    """Positions that a prefix has pushed on: in PEFT it takes some, here it does not."""
    import torch

    if shape.family != "gpt2":
        return {}
    ids = batch["input_ids"]
    return dict(position_ids=torch.arange(N, N + ids.shape[1], device=ids.device)[None])


LORA = dict(settings=lambda shape: dict(r=R, alpha=2 * R), carry=carrying.through_a_file)
PROMPT = dict(placed=False, differs=dict(roberta="theirs comes before [CLS], ours after it"))
PEERS = {
    p.name: p
    for p in (
        Peer("lora", "PEFT LoRA", wrapped(lora), **LORA),
        Peer("dora", "PEFT DoRA", wrapped(functools.partial(lora, use_dora=True)), **LORA),
        Peer(
            "adalora",
            "PEFT AdaLoRA",
            wrapped(adalora),
            lambda shape: dict(r=R // 2, r0=R),
            carry=carrying.adalora,
            after=lambda model, step: model.base_model.update_and_allocate(step),
        ),
        Peer(
            "vera",
            "PEFT VeRA",
            wrapped(lambda peft, shape: peft.VeraConfig(r=64, save_projection=False, target_modules=targets(shape))),
            lambda shape: dict(r=64),
            carry=carrying.through_a_file,
        ),
        Peer(
            "krona",
            "PEFT LoKr",
            wrapped(lokr),
            lambda shape: dict(k=parts(shape.width)),
            carry=carrying.lokr,
            without=dict(gpt2="PEFT's LoKr takes no Conv1D"),
        ),
        Peer(
            "loha",
            "PEFT LoHa",
            wrapped(loha),
            squared,
            carry=carrying.through_a_file,
            without=dict(gpt2="PEFT's LoHa takes no Conv1D"),
        ),
        Peer("ia3", "PEFT (IA)³", wrapped(ia3), placed=False, carry=carrying.ia3, differs=dict(gpt2=FUSED)),
        Peer(
            "random-mask",
            "PEFT SHiRA",
            wrapped(shira),
            lambda shape: dict(p=R / shape.width, select="tensor"),
            carry=carrying.shira,
            without=dict(gpt2="PEFT's SHiRA takes no Conv1D"),
        ),
        Peer(
            "prefix",
            "PEFT prefix",
            wrapped(lambda peft, shape: peft.PrefixTuningConfig(num_virtual_tokens=N, **task(shape))),
            lambda shape: dict(n=N),
            placed=False,
            carry=carrying.prefix,
            inputs=after_prefix,
            differs=dict(roberta="theirs pushes the positions of the text on", t5="theirs is in the decoder only"),
        ),
        Peer(
            "prompt",
            "PEFT prompt",
            wrapped(lambda peft, shape: peft.PromptTuningConfig(**prompted(shape))),
            lambda shape: dict(n=N),
            carry=carrying.prompt,
            **PROMPT,
        ),
        Peer(
            "p-tuning",
            "PEFT P-tuning",
            wrapped(
                lambda peft, shape: peft.PromptEncoderConfig(
                    **prompted(shape),
                    encoder_reparameterization_type="LSTM",
                    encoder_hidden_size=32,
                    encoder_num_layers=1,
                )
            ),
            lambda shape: dict(n=N, r=32, encoder="lstm"),
            carry=carrying.p_tuning,
            placed=False,
            differs=dict.fromkeys(("roberta", "t5"), "theirs comes before the text, ours around it"),
        ),
        Peer(
            "bitfit",
            "plain biases",
            tuned(lambda name: name.endswith("bias") and "relative" not in name),
            placed=False,
            carry=carrying.biases,
            without=dict(t5="T5 has no biases"),
        ),
        Peer("full", "plain transformers", tuned(lambda name: True), placed=False, moved=False),
    )
}


def chosen(options, peers=None):
    """The peers that the options ask for, all by default."""
    peers = PEERS if peers is None else peers
    return [p for p in peers.values() if not options.methods or p.name in options.methods]


def named(shape, one):
    """How a row begins."""
    return dict(shape=shape.name, method=one.name, peer=one.title)
