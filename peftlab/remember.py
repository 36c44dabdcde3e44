"""A frozen backbone need not read the same row twice: side networks only want the hidden states of its layers."""

import contextlib
import functools

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from .delta import Delta
from .errors import PeftlabError
from .methods.side import SideDelta, named, stacks

READ = ("input_ids", "attention_mask", "token_type_ids")


@contextlib.contextmanager
def remembered(model, most=2**30):
    """Within it the backbone's layers read each row once; later its states come from memory, in training and scoring.

    `with remembered(model) as kept: …` needs a side method (lst, attention-fusion) on the model and nothing that learns
    inside the backbone. A row is its tokens and mask, without padding at its end (in a T5 also its target). At most
    `most` bytes are kept, on the model's device; rows that come later are read every time. The logits of real tokens
    are the same. kept.bytes, len(kept.rows): what is kept.
    """
    refuse(model)
    kept, blocks = Kept(model, most), [b for _, bs, _ in stacks(model) for b in bs]
    handles = [
        model.register_forward_pre_hook(kept.before, with_kwargs=True, prepend=True),
        model.register_forward_hook(kept.after, always_call=True),
    ]
    for b in blocks:
        b.forward = functools.partial(kept.through, b.block_index, b.forward)
    try:
        yield kept
    finally:
        for h in handles:
            h.remove()
        for b in blocks:
            del b.forward


def refuse(model):
    """PeftlabError unless the states of the layers are the same each time."""
    deltas = [d for d in model.modules() if isinstance(d, Delta) and d.on]
    sides = [d for d in deltas if isinstance(d, SideDelta)]
    if not sides:
        raise PeftlabError("there is no side network on this model; attach lst or attention-fusion first")
    mine = {id(p) for d in sides for p in d.parameters()}
    if len(sides) < len(deltas) or any(p.requires_grad for p in model.base_model.parameters() if id(p) not in mine):
        raise PeftlabError(
            "only a backbone that nothing changes can be remembered; leave lst or attention-fusion alone on it"
        )


class Kept:
    """rows: what a row is -> for each layer its states (t d)."""

    def __init__(self, model, most):
        self.model, self.most, self.bytes, self.rows = model, most, 0, {}
        self.stack = [n for n, (_, blocks, _) in enumerate(stacks(model)) for _ in blocks]  # of each layer
        self.now, self.reading, self.parts = None, None, 0

    def before(self, model, args, kw):
        given = {k: t for k, t in named(model, args, kw).items() if torch.is_tensor(t)}
        if self.reading is not None or "input_ids" not in given:  # a decoder's step in `generate` is not remembered
            return
        if not any(d.on for d in model.modules() if isinstance(d, SideDelta)):  # it may look at its own gradients
            return
        names, ends = rows_of(model, given)
        first = {name: i for i, name in enumerate(names) if name not in self.rows}
        fresh = dict(zip(first, self.read(given, [*first.values()], ends), strict=True)) if first else {}
        self.now = [self.rows[n] if n in self.rows else fresh[n] for n in names]
        for name, states in fresh.items():
            size = sum(h.nbytes for h in states)
            if self.bytes + size <= self.most:
                self.rows[name], self.bytes = states, self.bytes + size

    def after(self, model, args, out):
        if self.reading is None:
            self.now = None

    @torch.no_grad()
    def read(self, given, which, ends):
        """The states of some rows of a batch, read by the backbone alone."""
        sides = [d for d in self.model.modules() if isinstance(d, SideDelta) and d.on]
        was, b, self.reading = self.model.training, len(given["input_ids"]), {}
        try:
            for d in sides:
                d.on = False
            self.model.eval()(**{k: t[which] if t.ndim and len(t) == b else t for k, t in given.items()})
            layers = sorted(self.reading.items())
        finally:
            self.reading = None
            self.model.train(was)
            for d in sides:
                d.on = True
        return [[h[row, : ends[self.stack[i]][at]].clone() for i, h in layers] for row, at in enumerate(which)]

    def through(self, layer, forward, *args, **kw):
        """In place of a layer's own forward."""
        if self.now is None:
            out = forward(*args, **kw)
            if self.reading is not None:
                self.parts = len(out) if isinstance(out, tuple) else 0
                self.reading[layer] = out[0] if self.parts else out
            return out
        x = args[0] if args else kw["hidden_states"]
        h = pad_sequence([states[layer] for states in self.now], batch_first=True)
        h = F.pad(h, (0, 0, 0, x.shape[1] - h.shape[1]))
        return (h, *[None] * (self.parts - 1)) if self.parts else h


def rows_of(model, given):
    """What names each row of a batch, and where the rows end in each stack of layers."""
    ids, target = given["input_ids"], None
    if model.kind == "seq2seq":
        target = given.get("decoder_input_ids", given.get("labels"))
        target = target if target is not None and target.ndim == 2 else None
    ends = [end(given.get("attention_mask", torch.ones_like(ids)) != 0)]
    ends.append(ends[0] if target is None else end(target != -100))
    parts = [(given[k].cpu().numpy(), ends[0]) for k in READ if k in given]
    if target is not None:
        parts.append((target.cpu().numpy(), ends[1]))
    return [tuple(t[i, : e[i]].tobytes() for t, e in parts) for i in range(len(ids))], ends


def end(real):
    """One behind the last real token of each row."""
    return (real * torch.arange(1, real.shape[1] + 1, device=real.device)).amax(1).tolist()
