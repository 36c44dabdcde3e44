"""Soft prompts around the text: new tokens before it and before its end, some of them computed, one to be filled in."""

import torch
from torch import nn
from torch.nn import functional as F

from ..backbones import head_parameters
from ..delta import TokenDelta
from ..errors import PeftlabError
from ..kernels import unfused
from . import Choice, Knob, Words, method
from .prompts import drawn, embedded
from .tensors import like, normal


class Template(TokenDelta):
    """New tokens around the text: the first half before it, the others before its end token.

    The text begins after [CLS] in an encoder; what is padding does not count. A decoder's text sees nothing that comes
    after it: there all new tokens come first.
    """

    def attach(self, m, model):
        self.causal = model.kind == "decoder"
        return super().attach(m, model)

    def forward(self, e):
        (b, t, _), new = e.shape, self.inserted()
        n = len(new)
        places = torch.cat([2 * self.gaps(e, n), (2 * torch.arange(t, device=e.device) + 1).expand(b, -1)], 1)
        self.order = places.argsort(dim=1, stable=True)  # (b n+t): which of [new; text] comes where
        return spread(torch.cat([new.expand(b, -1, -1), e], 1), self.order)

    def inserted(self):  # (n d)
        return self.vectors()

    def gaps(self, e, n):
        """Before which position of the text each new token comes (b n)."""
        mask = self.rows.mine(self.text_mask)
        mask = e.new_ones(e.shape[:2]) if mask is None else mask[:, : e.shape[1]]
        first = mask.argmax(1) + self.at
        last = torch.maximum(first, mask.shape[1] - 1 - mask.flip(1).argmax(1))
        last = first if self.causal else last
        return torch.cat([first[:, None].expand(-1, n // 2), last[:, None].expand(-1, n - n // 2)], 1)

    def insert(self, t, value):
        order = self.order.repeat_interleave(len(t) // len(self.order), 0)  # beams share the order of their text
        return spread(torch.cat([t.new_full((len(t), self.n), value), t], 1), order)

    def drop(self, h):
        return spread(h, self.order.argsort(1))[:, self.n :]


def spread(t, order):
    """t (b s …) with its first positions in another order (b s'); what comes later stays where it is."""
    later = torch.arange(order.shape[1], t.shape[1], device=t.device).expand(len(t), -1)
    rows = torch.arange(len(t), device=t.device)[:, None]
    return t[rows, torch.cat([order, later], 1)]  # not gather, which keeps t for the backward pass


@method(
    "p-tuning",
    title="P-tuning",
    aliases=("p-tuning-v1",),
    review="additive/soft prompt",
    delta_tuning="addition/prompt",
    sparse_view="–",
    paper="2103.10385",
    where="model",
    lr=3e-3,
    knobs=dict(
        n=Knob(8, 1, 64, "prompt length", log=True),
        r=Knob(32, 1, 512, "encoder width", log=True),
        encoder=Choice("lstm", ("lstm", "mlp", "none"), "prompt encoder"),
    ),
)
class PTuning(Template):
    """e' = [P_1…i; e; P_i+1…n], P = MLP(BiLSTM(p))

    The new tokens lie around the text, in a decoder all before it. With `mlp` an MLP reads each p alone; with `none`
    P = p, which is also what `pl.flatten` leaves of the two others. One layer of LSTM, r wide in each direction.
    """

    uncompiled = "torch.compile reads an LSTM only where torch._dynamo.config.allow_rnn is set"

    def __init__(self, model, n, r, encoder):
        super().__init__()
        self.p = nn.Parameter(drawn(model, n))  # (n d)
        d, like_p = self.p.shape[1], dict(device=self.p.device, dtype=self.p.dtype)
        chain = dict(none=(), lstm=(2 * r, 2 * r, d), mlp=(d, r, r, d))[encoder]
        self.lstm = nn.LSTM(d, r, bidirectional=True, **like_p) if encoder == "lstm" else None
        self.mlp = nn.ModuleList(nn.Linear(a, b, **like_p) for a, b in zip(chain, chain[1:], strict=False))

    def vectors(self):
        with unfused():  # oneDNN's LSTM keeps memory that cannot be predicted
            P = self.p if self.lstm is None else self.lstm(self.p)[0]
        for i, layer in enumerate(self.mlp):
            P = layer(F.relu(P) if i else P)
        return P

    def plain(self, row):
        """(row of a recipe, tensors): what does the same without the encoder."""
        return row | dict(settings=row["settings"] | dict(encoder="none")), dict(p=self.vectors())


@method(
    "warp",
    title="WARP",
    aliases=("word-level-adversarial-reprogramming",),
    review="additive/soft prompt",
    delta_tuning="addition/prompt",
    sparse_view="–",
    paper="2101.00121",
    where="model",
    lr=3e-2,
    knobs=dict(
        n=Knob(8, 1, 64, "prompt length", log=True),
        verbalizers=Words("", "class words", "bad good"),
    ),
)
class WARP(Template):
    """score of class c = V_c · f([P_1…i; e; P_i+1…n; [MASK]])

    f is the last hidden state at a [MASK] put before the end token. The trained prompt P and the trained rows of V, one
    for each class, are all there is: the backbone's head is neither asked nor trained. P starts as [MASK]s, V small and
    random or at the words that are named.
    """

    needs = "scores the classes at a [MASK]: it needs an encoder with a classification head and a tokenizer with one,"

    def __init__(self, model, n, verbalizers):
        super().__init__()
        mask = getattr(model.tokenizer, "mask_token_id", None)
        if model.kind != "encoder" or model.head_kind != "classification" or mask is None:
            raise PeftlabError(f"warp {self.needs} and {model.backbone_name} is none with a {model.head_kind} head")
        self.register_buffer("blank", embedded(model, torch.tensor([mask])), persistent=False)  # (1 d)
        self.P = nn.Parameter(self.blank.repeat(n, 1))  # (n d)
        self.V = normal(model, model.config.num_labels, self.P.shape[1], std=0.02)  # (classes d)
        if verbalizers:
            self.V = nn.Parameter(embedded(model, self.spelled(verbalizers.split(), model)).to(like(model)))

    def spelled(self, words, model):
        """The token of each word."""
        if len(words) != len(self.V):
            raise PeftlabError(f"name one word for each of the {len(self.V)} classes, not {len(words)}")
        tokens = [model.tokenizer(f" {w}", add_special_tokens=False)["input_ids"] for w in words]
        for w, ids in zip(words, tokens, strict=True):
            if len(ids) != 1 or ids[0] == model.tokenizer.unk_token_id:
                raise PeftlabError(f"{w!r} is not one token of {model.backbone_name}; take a word that it knows")
        return torch.tensor(tokens)[:, 0]

    def attach(self, m, model):
        undo, handle = super().attach(m, model), model.classifier.register_forward_hook(self.verbalize)
        head = {p: p.requires_grad for p in head_parameters(model).values()}
        for p in head:
            p.requires_grad_(False)
        return lambda: (handle.remove(), [p.requires_grad_(was) for p, was in head.items()], undo())

    def vectors(self):
        return self.P

    def inserted(self):
        # summed, not joined: the gradient of P is then a tensor of its own
        return F.pad(self.P, (0, 0, 0, 1)) + F.pad(self.blank, (0, 0, len(self.P), 0))

    def drop(self, h):
        self.f = h.gather(1, self.order.argsort(1)[:, self.n - 1, None, None].expand(-1, -1, h.shape[2]))[:, 0]  # (b d)
        return super().drop(h)

    def verbalize(self, head, args, logits):
        if not self.on:
            return logits
        f, self.f = self.f, None  # a tensor with a graph cannot be copied with the model
        return self.rows.call(lambda _: F.linear(f, self.V), logits)
