"""Attaching deltas to a backbone and taking them off again, bit for bit; counting and watching what is attached."""

import contextlib

import torch
from torch import nn

from .backbones import head_parameters, sites
from .delta import Delta
from .errors import PeftlabError
from .quantized import Packed


class Attachment:
    """What `attach` returns. Call it to restore the backbone bit for bit; `toggle(False)` silences its deltas."""

    def __init__(self, model, recipe, seed):
        self.model, self.recipe, self.seed, self.placed, self._undo = model, recipe, seed, [], []
        self.head = None  # name -> tensor, when it carries a head of its own

    @property
    def deltas(self):
        return [d for d, _ in self.placed]

    def add(self, delta, m):
        self._undo.append(delta.attach(m, self.model))
        self.placed.append((delta, m))

    def toggle(self, on):
        for d in self.deltas:
            d.on = on

    def __call__(self):
        while self._undo:
            self._undo.pop()()
        self.placed.clear()


def attach(model, recipe, seed=0):
    """Build every row's delta at each of its sites; returns an Attachment, whose call is the undo.

    recipe: a method name, a row, or a list of rows (see `peftlab.recipe`). Attach twice to stack. New parameters are
    drawn from `seed` alone. Raises PeftlabError, with the model as it was, when a row does not fit this backbone.
    """
    from .methods import get
    from .recipes import recipe as complete

    done = Attachment(model, complete(recipe), seed)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for i, row in enumerate(done.recipe):
                for m, delta in build(model, get(row["method"]), row):
                    delta.row = i
                    done.add(delta, m)
            for delta in done.deltas:
                delta.group = tuple(d for d in done.deltas if (d.kin or type(d)) == (delta.kin or type(delta)))
                delta.joined()
    except BaseException:
        done()
        raise
    return done


def build(model, method, row):
    """Yield (module, delta) for one row. A model that offers no module for the method is refused with the reason."""
    if not row["where"]:
        return
    places = sites(model, row["where"], row["layers"])
    fitting = method.cls.among(places, model, **row["settings"])
    if not fitting and (places or not isinstance(row["layers"], str)):  # a group of layers may be empty
        raise PeftlabError(
            f"{method.name} {method.cls.needs} and {model.backbone_name} ({model.config.model_type}) has none "
            f"at {row['where']}; try lora or adapter instead"
        )
    for m in fitting:
        yield m, method.cls(m, **row["settings"])


def counts(model):
    """Numbers of parameters: delta (trained, no head), head, total; percent = delta/backbone; stored_bits."""
    deltas = [d for d in model.modules() if isinstance(d, Delta)]
    added = sum(p.numel() for d in deltas for p in d.parameters())
    tuned = {id(t): t for d in deltas for t in d.own().values() if isinstance(t, nn.Parameter) and t.requires_grad}
    head = sum(p.numel() for p in head_parameters(model).values())
    total = sum(p.numel() for p in model.parameters()) + sum(m.hidden for m in model.modules() if isinstance(m, Packed))
    delta = sum(p.numel() for p in tuned.values())
    bits = 8 * sum(t.numel() * t.element_size() for d in deltas for t in d.stored().values())
    return dict(delta=delta, head=head, total=total, percent=100 * delta / (total - head - added), stored_bits=bits)


def trainable(model):
    """The parameters that an optimizer should see: deltas, and the head where its policy is `trained`."""
    return [p for p in model.parameters() if p.requires_grad]


@contextlib.contextmanager
def taps(model, layers=None):
    """Read-only hidden states: `with taps(model) as h: model(...)` fills h[layer] (b t d), cut from the graph."""
    seen, handles = {}, []
    for m in model.modules():
        if hasattr(m, "block_index") and (layers is None or m.block_index in layers):

            def keep(block, args, out):
                seen[block.block_index] = (out[0] if isinstance(out, tuple) else out).detach()

            handles.append(m.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for h in handles:
            h.remove()
