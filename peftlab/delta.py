"""A delta is a small module added to a frozen backbone at one of its seams.

    weight     forward(W) -> W'            W (out in), or a bias (out)
    output     forward(x, y) -> y'         x (b t in)  y (b t out)
    block      forward(h) -> h'            h (b t d), the hidden states that leave a layer
    key/value  forward(k, v) -> k', v'     k, v (b h t d)
    tokens     forward(e) -> e'            e (b t d) -> (b n+t d)

A method is a leaf class whose `forward` is its equation. Four optional verbs reach the training: `begin(view)` sees
model and data before it (`peftlab.view`), `penalty()` is added to the loss, and so is `compare(model, batch, output)`,
which may ask the model again; `after_step(t, total)` runs after each optimizer step, with the gradients still there.
Two optional attributes reach the optimizer: `speeds` (name -> factor of the learning rate) and `optimizer` (takes
AdamW's place). Deltas of one method, or of one `kin`, that were attached together know each other as `group`.
`taps` only reads hidden states.
"""

import torch
from torch import nn
from torch.nn.utils import parametrize

from . import attention
from .backbones import max_tokens
from .errors import PeftlabError
from .families import FAMILIES
from .rows import EVERY


class Delta(nn.Module):
    """One attached module. Subclasses say which sites and modules they take and how they attach."""

    sites = ("q", "k", "v", "o", "up", "down")
    needs = "needs Linear layers"  # said when a backbone offers none
    on = True  # toggled off, a delta is the identity
    rows = EVERY  # of a batch; see `serving`
    by_row = False  # whether it can be for some rows only
    uncompiled = None  # why torch.compile does not make one graph of it for all steps, where it does not
    kin = None  # a word by which methods share one group

    def __init__(self, m=None):
        super().__init__()
        self.group = (self,)  # all deltas of its class, or of its kin, that are attached with it

    @classmethod
    def fits(cls, m):
        """Whether this delta can be built on module `m`."""
        return isinstance(m, nn.Linear)

    @classmethod
    def among(cls, modules, model, **settings):
        """Those of the modules that were asked for at which it is built."""
        return [m for m in modules if cls.fits(m)]

    def joined(self):
        """Called once when `group` is known."""

    def watch(self, model):
        """Before each pass `self.ids` and `self.mask` are what the model is given (b t); returns a handle."""
        return model.register_forward_pre_hook(self.see, with_kwargs=True, prepend=True)

    def see(self, model, args, kw):
        self.ids = self.rows.pick(args[0] if args else kw.get("input_ids"))
        self.mask = self.rows.pick(kw.get("attention_mask"))

    def own(self):
        """Name -> tensor of all that must be stored to rebuild this delta; buffers that do not persist are not."""
        passing = self._non_persistent_buffers_set
        return dict(self.named_parameters()) | {n: b for n, b in self.named_buffers() if n not in passing}

    def stored(self):
        """What a file holds of it, where that is less than its own; `unpack(tensors)` then makes its own of that."""
        return self.own()

    @classmethod
    def merges(cls, settings):
        """Whether the trained delta can be folded into the backbone's own tensors."""
        return False


def register(m, delta):
    """Add `delta` to `m` under a free name, so that a state dict reads `…query.lora.A`; returns the name."""
    base = type(delta).__name__.lower()
    name = next(n for n in (base, *(f"{base}_{i}" for i in range(2, 99))) if not hasattr(m, n))
    m.add_module(name, delta.train(m.training))
    return name


class OutputDelta(Delta):
    """y' = forward(x, y), by a forward hook on a leaf module; `enter(x)`, where a class has it, changes the input."""

    by_row = True

    def attach(self, m, model):
        name, handles = register(m, self), [m.register_forward_hook(self.hook)]
        if hasattr(self, "enter"):
            handles.append(m.register_forward_pre_hook(self.before))
        return lambda: ([h.remove() for h in handles], delattr(m, name))

    # bound methods, not closures: a deep copy of the model must call its own deltas
    def hook(self, m, args, y):
        return self.rows.call(self, args[0], y) if self.on else y

    def before(self, m, args):
        return (self.rows.call(self.enter, args[0]), *args[1:]) if self.on else args

    @classmethod
    @torch.no_grad()
    def merges(cls, settings):
        """Probed, not declared: with random parameters, is x -> y' affine?"""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            m = nn.Linear(128, 128).eval()
            delta = cls(m, **settings)
            for p in delta.parameters():
                nn.init.normal_(p)
            x, z = torch.randn(2, 128), torch.zeros(2, 128)
        delta.attach(m, None)
        return torch.allclose(m(2 * x) - m(x), m(x) - m(z), rtol=1e-3, atol=1e-2)


class BlockDelta(OutputDelta):
    """h' = forward(h), what leaves a layer; `enter(h)`, where a class has it, changes what comes in.  h (b t d)"""

    sites = ("block",)

    @classmethod
    def fits(cls, m):
        return hasattr(m, "block_index")

    def hook(self, m, args, out):
        if not self.on:
            return out
        h = self.rows.call(self, out[0] if isinstance(out, tuple) else out)
        return (h, *out[1:]) if isinstance(out, tuple) else h

    def forward(self, h):
        return h

    @classmethod
    def merges(cls, settings):
        return False


class WeightDelta(Delta):
    """W' = forward(W), by parametrization: only where the formula needs W, as autograd then forms the whole dL/dW'."""

    tensor = "weight"

    def attach(self, m, model):
        mine, inside = {id(p) for p in m.parameters()}, set(m.modules())
        others = (p for other in model.modules() if other not in inside for p in other._parameters.values())
        if any(id(p) in mine for p in others):
            raise PeftlabError(
                f"the {self.tensor} at site {m.site} is tied to another module, which would not follow; leave it out"
            )
        if not isinstance(getattr(m, self.tensor), nn.Parameter) and not parametrize.is_parametrized(m, self.tensor):
            raise PeftlabError(f"the {self.tensor} at site {m.site} is packed; take a method that adds to the output")
        # unsafe skips a forward pass that only checks shapes; ours are right
        parametrize.register_parametrization(m, self.tensor, self, unsafe=True)
        return lambda: self.detach(m)

    @classmethod
    def merges(cls, settings):
        return True

    def detach(self, m):
        """torch removes a whole stack of parametrizations at once; the others go back in their order."""
        rest = [d for d in m.parametrizations[self.tensor] if d is not self]
        parametrize.remove_parametrizations(m, self.tensor, leave_parametrized=False)
        for d in rest:
            parametrize.register_parametrization(m, self.tensor, d, unsafe=True)

    def __call__(self, W):
        return super().__call__(W) if self.on else W


class KeyValueDelta(Delta):
    """k', v' = forward(k, v), inside every attention (b h t d), through transformers' attention registry."""

    sites, by_row = ("attn",), True

    @classmethod
    def fits(cls, m):
        return True

    def attach(self, m, model):
        if not attention.routed(model):
            raise PeftlabError(
                f"{model.backbone_name} does not use transformers' attention registry, so its keys and values "
                "are out of reach; load it with peftlab.backbone, or take a method at q k v o up down"
            )
        name = register(m, self)
        m.keyvals = [*getattr(m, "keyvals", ()), self]
        return lambda: (setattr(m, "keyvals", [d for d in m.keyvals if d is not self]), delattr(m, name))


class TokenDelta(Delta):
    """e' = forward(e): new tokens (b n+t d), put after [CLS] in an encoder and first elsewhere.

    On the way out their hidden states are dropped again, so that labels, heads and pooling see the positions they know;
    only T5's encoder keeps them, as its decoder attends to them.
    """

    sites, by_row = ("model",), True

    @classmethod
    def fits(cls, m):
        return True

    def attach(self, m, model):
        stack = text(model)
        name, self.at, self.limit = register(stack, self), int(model.kind == "encoder"), max_tokens(model)
        handles = [stack.register_forward_pre_hook(self.widen, with_kwargs=True)]
        if model.kind == "seq2seq":
            handles.append(model.get_decoder().register_forward_pre_hook(self.widen_cross, with_kwargs=True))
        else:
            handles.append(stack.register_forward_hook(self.narrow, prepend=True))  # the last to widen is the first
        return lambda: ([h.remove() for h in handles], delattr(stack, name))

    def widen(self, stack, args, kw):
        if not self.on:
            return args, kw
        ids = args[0] if args else kw.pop("input_ids", None)
        e = kw.pop("inputs_embeds", None) if ids is None else stack.get_input_embeddings()(ids)
        self.text_mask, cached = kw.get("attention_mask"), cached_tokens(kw.get("past_key_values"))
        new = e if cached else self.rows.splice(e, self.longer)  # what is cached begins with the prompt
        self.widened = not cached
        if self.limit and cached + new.shape[1] > self.limit:
            raise PeftlabError(
                f"{e.shape[1]} tokens and a prompt of {self.n} exceed the {self.limit} positions; shorten one of them"
            )
        if cached and self.rows is not EVERY:
            raise PeftlabError("rows with prompts of their own cannot be cached; generate with use_cache=False")
        if cached and self.text_mask is not None and cached + e.shape[1] < self.text_mask.shape[1] + self.n:
            raise PeftlabError("the cached tokens were read without this prompt; begin with an empty cache")
        for key, value in (("attention_mask", 1), ("token_type_ids", 0)):
            if kw.get(key) is not None:
                kw[key] = self.rows.splice(kw[key], lambda t, value=value: self.insert(t, value))
        self.rows.spliced(self.n)
        if kw.pop("position_ids", None) is not None and kw.get("attention_mask") is not None and not self.at:
            kw["position_ids"] = (kw["attention_mask"].cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        return (), {k: v for k, v in kw.items() if k != "cache_position"} | dict(inputs_embeds=new)

    def longer(self, e):
        new = self(e)
        self.n = new.shape[1] - e.shape[1]
        return new

    def insert(self, t, value):  # t (b s)
        return torch.cat([t[:, : self.at], t.new_full((len(t), self.n), value), t[:, self.at :]], 1)

    def widen_cross(self, decoder, args, kw):
        if self.on and kw.get("encoder_attention_mask") is not None:
            kw["encoder_attention_mask"] = self.rows.splice(kw["encoder_attention_mask"], lambda t: self.insert(t, 1))
            self.rows.spliced(self.n)
        return args, kw

    def narrow(self, stack, args, out):
        if self.on and self.widened:
            out.last_hidden_state = self.rows.cut(out.last_hidden_state, self.drop)
        return out

    def drop(self, h):
        return torch.cat([h[:, : self.at], h[:, self.at + self.n :]], 1)


def cached_tokens(cache):
    return 0 if cache is None else int(cache.get_seq_length())


def text(model):
    """The module that turns token ids into hidden states."""
    return model.base_model.get_submodule(FAMILIES[model.config.model_type].text)


def stack_of(m, model):
    """The stack of layers that `m` is in, which is given ids and mask, and whether its tokens see only those before."""
    if model.kind == "seq2seq" and m in set(model.get_decoder().modules()):
        return model.get_decoder(), True
    return text(model), model.kind == "decoder"
