"""Side networks: they read a frozen backbone's hidden states, and no gradient ever passes through its layers."""

import inspect

import torch
from torch import nn

from ..backbones import n_layers
from ..delta import Delta, cached_tokens, register
from ..errors import PeftlabError
from . import Choice, Knob, method
from .narrow_layers import cut_down, narrow, side_layer, stacks
from .tensors import like, zeros

APART = "a side network reads whole layers, and coda calls them with some of the tokens; attach one of the two"


class SideDelta(Delta):
    """Reads what leaves each layer and takes the place of what leaves the last; a final norm of the backbone follows.

    `step(i, h, given)` sees layer i's output and what the layer was called with; `finish()` gives the new states
    (b t d). While nothing inside the backbone learns, its states are cut from the graph and it reads without dropout:
    the same row has the same states each time, and `peftlab.remembered` may keep them. Where something does learn, a
    LoRA say, gradients pass.
    """

    sites = ("model",)
    cut = True

    @classmethod
    def fits(cls, m):
        return True

    def attach(self, m, model):
        base = model.base_model
        self.inside, self.last = tuple(inside(base)), n_layers(model) - 1
        name, handles = register(base, self), [base.register_forward_pre_hook(self.before)]
        for block in (b for b in self.inside if hasattr(b, "block_index")):
            handles.append(block.register_forward_hook(self.tap, with_kwargs=True))
        return lambda: ([h.remove() for h in handles], delattr(base, name))

    def before(self, base, args):
        mine = {id(p) for p in self.parameters()}
        self.cut = not any(p.requires_grad for p in base.parameters() if id(p) not in mine)
        if self.on and self.cut and self.training:
            for m in self.inside:
                m.training = False

    def tap(self, block, args, kw, out):
        if not self.on:
            return out
        h = out[0] if isinstance(out, tuple) else out
        given = named(block, args, kw)
        if given["hidden_states"].shape[1] != h.shape[1]:
            raise PeftlabError(APART)
        if self.cut:
            h, given["hidden_states"] = h.detach(), given["hidden_states"].detach()
        self.step(block.block_index, h, given)
        if block.block_index < self.last:
            return out
        y = self.finish()
        return (y, *out[1:]) if isinstance(out, tuple) else y


def inside(m):
    """All modules in `m`, without those of its deltas."""
    for child in m.children():
        if not isinstance(child, Delta):
            yield child
            yield from inside(child)


def named(module, args, kw):
    """What a module is called with, name by name."""
    given = dict(inspect.signature(type(module).forward).bind(module, *args, **kw).arguments)
    del given["self"]
    return given | given.pop("kwargs", {})


@method(
    "attention-fusion",
    title="AttentionFusion",
    aliases=("late-fusion",),
    review="additive/others",
    delta_tuning="addition/others",
    sparse_view="–",
    paper="2022.findings-naacl.64",
    where="model",
    lr=3e-2,
)
class AttentionFusion(SideDelta):
    """h̃ = Σⱼ softmaxⱼ(q·h⁽ʲ⁾) h⁽ʲ⁾, token by token, over what leaves the layers j

    One trained query q of the task; q = 0 at the start: the mean over the layers, so not the identity. In a T5 over the
    decoder's layers.
    """

    def __init__(self, model):
        super().__init__()
        self.q = zeros(model, model.config.hidden_size)  # (d)

    def attach(self, m, model):
        self.first, self.states = [first for first, _, _ in stacks(model)][-1], []
        return super().attach(m, model)

    def step(self, i, h, given):
        if i == self.first:
            self.states = []
        self.states.append(h)

    def finish(self):
        H, self.states = torch.stack(self.states, 2), []
        return self(H)

    def forward(self, H):  # (b t L d)
        weight = (H @ self.q).softmax(-1)
        return (weight.unsqueeze(-2) @ H).squeeze(-2)


@method(
    "lst",
    title="Ladder Side-Tuning",
    aliases=("ladder-side-tuning", "ladder"),
    review="additive/others",
    delta_tuning="addition/others",
    sparse_view="–",
    paper="2206.06522",
    where="model",
    lr=5e-3,
    knobs=dict(
        r=Knob(8, 1, 64, "narrower by", log=True),
        start=Choice("random", ("random", "magnitude", "fisher"), "first weights"),
    ),
)
class LST(SideDelta):
    """sᵢ = Layerᵢ(μᵢ sᵢ₋₁ + (1 - μᵢ) Dᵢ hᵢ), μᵢ = σ(αᵢ / 0.1), s₀ = D₀ h₀;  y = U norm(s_L)

    A narrow network beside the backbone: for each layer one of the same kind, 1/r as wide, with its own weights, masks
    as in the backbone; h₀ are the embeddings, hᵢ leaves the backbone's layer i. α = 0 at the start. Not the identity: y
    takes the place of the last hidden states. In a T5 each stack has a ladder, and the side decoder attends to the side
    encoder.

    `start`: the layers begin random, or as the backbone's own cut down to the channels with the largest Σ |W|
    (magnitude) or, once the data was seen, Σ (∂L/∂W)² over single rows (fisher); so does the norm where the backbone
    ends in one. D and U begin random in any case. `cut_down` says which channels go together.
    """

    def __init__(self, model, r, start):
        super().__init__()
        self.r, self.start, self.ready = r, start, False
        d = model.config.hidden_size
        if r > d:
            raise PeftlabError(f"lst with r = {r} leaves nothing of a width of {d}; take at most {d}")
        norm = [m for m in model.base_model.modules() if getattr(m, "site", None) == "norm2"][-1]
        self.layers, self.D0, self.norms = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.firsts = []
        for first, blocks, config in stacks(model):
            small = narrow(config, r)
            self.firsts.append(first)
            self.layers.extend(side_layer(b, small, i) for i, b in enumerate(blocks))
            self.D0.append(nn.Linear(d, d // r))
            self.norms.append(type(norm)(d // r))
        self.D = nn.ModuleList(nn.Linear(d, d // r) for _ in self.layers)
        self.a, self.U = nn.Parameter(torch.zeros(len(self.layers))), nn.Linear(d // r, d)
        p = like(model)
        self.to(p.device, p.dtype).requires_grad_(True).train(model.training)
        self.s, self.carried = None, {}
        self.register_load_state_dict_post_hook(lambda delta, _: delta.restored())
        if start == "magnitude":
            cut_down(self.layers, self.norms, model, r, start)

    @property
    def waits(self):
        """Whether its first weights wait for the data."""
        return self.start == "fisher" and not self.ready

    def restored(self):
        """Its weights came from a file: the data is not looked at again."""
        self.ready = True

    def begin(self, view):
        """Look, once, which channels matter for the data."""
        if self.waits:
            was, self.on = self.on, False  # the gradients are those of the backbone alone
            try:
                cut_down(self.layers, self.norms, view.model, self.r, self.start, view)
            finally:
                self.on = was
            self.ready = True

    def step(self, i, h, given):
        if i in self.firsts:
            self.foot(self.firsts.index(i), h, given)
        gate = torch.sigmoid(self.a[i] / 0.1)
        self.s = self(self.layers[i], gate * self.s + (1 - gate) * self.D[i](h), given)

    def foot(self, n, h, given):
        """Where the ladder of stack n stands: its embeddings, and what is handed on from layer to layer."""
        if cached_tokens(given.get("past_key_values")) > h.shape[1]:
            raise PeftlabError(
                "the side network of lst keeps no cache of earlier tokens; generate with use_cache=False"
            )
        self.carried = dict(past_key_values=None)
        if n:
            if self.s is None:
                raise PeftlabError("the side decoder of lst needs its encoder in the same pass; call the whole model")
            self.carried["encoder_hidden_states"] = self.norms[n - 1](self.s)
        self.s = self.D0[n](given["hidden_states"])

    def forward(self, layer, s, given):
        """One side layer, called like the backbone's; T5's first layer makes the position biases of all."""
        own = {k: v for k, v in self.carried.items() if k in given}
        out = layer(**given | own | dict(hidden_states=s))
        if isinstance(out, tuple):
            self.carried |= dict(position_bias=out[1], encoder_decoder_position_bias=out[2])
            out = out[0]
        return out

    def finish(self):
        s, self.s, self.carried = self.s, None, {}
        return self.U(self.norms[-1](s))
