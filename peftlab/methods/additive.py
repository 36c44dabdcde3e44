"""Additive deltas that are neither adapters nor prompts: gains, and vectors for special tokens."""

import torch
from torch.nn import functional as F

from ..delta import BlockDelta, OutputDelta, stack_of
from ..errors import PeftlabError
from . import Knob, method
from .adapters import inside
from .tensors import ones, zeros

OTHERS = dict(review="additive/others", delta_tuning="addition/others", sparse_view="–")


@method(
    "ia3",
    title="(IA)³",
    aliases=("(ia)3", "(ia)³"),
    **OTHERS,
    paper="2205.05638",
    where="k v down",
    lr=1e-2,
)
class IA3(OutputDelta):
    """y' = l ⊙ (W x + b) at k and v;  y' = W (l ⊙ x) + b at down

    One gain per channel, l = 1 at the start. At `down` it scales what enters, the inner activations.
    """

    sites = ("k", "v", "down")

    def __init__(self, m):
        super().__init__()
        self.inner = getattr(m, "site", None) == "down"
        self.l = ones(m, m.in_features if self.inner else m.out_features)

    def enter(self, x):
        return self.l * x if self.inner else x

    def forward(self, x, y):
        return y if self.inner else self.l * y


@method(
    "pasta",
    title="PASTA",
    aliases=("special-token-adaptation",),
    **OTHERS,
    paper="2210.04382",
    where="block",
    lr=1e-2,
    knobs=dict(n=Knob(4, 1, 16, "special tokens")),
)
class Pasta(BlockDelta):
    """hₜ' = hₜ + e₍ₛ₎ where token t is the s-th special one of its text, hₜ' = hₜ elsewhere

    In front of each layer one vector for each special token in turn ([CLS], the first [SEP], the second; what begins or
    ends a text in other backbones), 0 at the start; those after the n-th share the last one. Padding is not special.
    """

    by_row = False

    def __init__(self, m, n):
        super().__init__()
        self.E = zeros(m, n, inside(m, "down").out_features)  # (n d)

    def attach(self, m, model):
        stack, causal = stack_of(m, model)
        self.at, self.special = int(model.kind == "encoder"), specials(model, causal and model.kind == "seq2seq")
        self.unheard = causal and model.head_kind == "lm"  # the last token's state is read by nobody
        undo, seen = super().attach(m, model), self.watch(stack)
        return lambda: (seen.remove(), undo())

    def marks(self, ids, mask):
        """Which special token of its text each one is (b t), counted from 1; 0: none."""
        if ids is None:
            raise PeftlabError("pasta looks for special tokens; give the model input_ids, not inputs_embeds")
        special = (ids[..., None] == ids.new_tensor(self.special)).any(-1)
        if mask is not None:
            special = special & mask[:, -ids.shape[1] :].bool()
        return special * special.cumsum(1).clamp(max=len(self.E))

    def enter(self, h):
        marks = self.marks(self.ids, self.mask)
        new = marks.new_zeros(len(marks), h.shape[1] - marks.shape[1])  # the tokens of a prompt
        marks = torch.cat([marks[:, : self.at], new, marks[:, self.at :]], 1)
        return h + F.embedding(marks, F.pad(self.E, (0, 0, 1, 0)))

    def begin(self, view):
        """Nothing can be learned from texts in which no special token is read."""
        if self is not self.group[0]:
            return
        batch = next(view.batches)
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        marks = self.marks(ids, mask)
        if self.unheard:
            marks = marks[:, :-1] * (ids if mask is None else mask)[:, 1:]
        if not marks.any():
            raise PeftlabError("pasta changes special tokens, and in these texts no other token reads one; take ia3")


def specials(model, started):
    """Ids of the tokens that begin, separate or end texts; `started`: also of the one that a decoder starts with."""
    named = lambda source: [getattr(source, f"{name}_token_id", None) for name in ("cls", "sep", "bos", "eos")]
    found = named(model.tokenizer) if any(i is not None for i in named(model.tokenizer)) else named(model.config)
    found += [model.config.decoder_start_token_id] if started else []
    flat = {i for f in found for i in (f if isinstance(f, list) else [f])} - {None}
    if not flat:
        raise PeftlabError(f"pasta changes special tokens, and {model.backbone_name} has none; take ia3")
    return sorted(flat)


@method(
    "hadamard",
    title="Hadamard adapter",
    aliases=("hadamard-adapter",),
    **OTHERS,
    paper="2407.11033",
    where="o",
    lr=1e-2,
)
class Hadamard(OutputDelta):
    """y' = w ⊙ y + b, y what an attention gives

    A gain and a shift for each channel, w = 1 and b = 0 at the start. Layer norms stay frozen here.
    """

    sites = ("o",)

    def __init__(self, m):
        super().__init__()
        self.w, self.b = ones(m, m.out_features), zeros(m, m.out_features)

    def forward(self, x, y):
        return self.w * y + self.b
