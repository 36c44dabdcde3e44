"""The two ends of the scale: everything learns, or only the head does."""

from torch import nn

from ..backbones import head_parameters
from ..delta import Delta, register
from ..families import SITES
from . import method


@method(
    "full",
    title="full fine-tuning",
    aliases=("ft", "full-fine-tuning"),
    review="baseline",
    delta_tuning="baseline",
    sparse_view="baseline",
    paper="–",
    where="model",
    lr=5e-4,
)
class Full(Delta):
    """W' = W + ΔW, every entry free

    Trains copies that stand in for the frozen tensors: the speed of ordinary fine-tuning, and still an undo.
    """

    sites = ("model", *(s for s in SITES if s != "block"))

    @classmethod
    def fits(cls, m):
        return any(True for _ in m.parameters())

    @classmethod
    def merges(cls, settings):
        return True

    def attach(self, m, model):
        head = {id(p) for p in head_parameters(model).values()}
        copies = {}  # one copy for a tied tensor, put in all its places
        self.places = [
            (name, owner, key, p, copies.setdefault(id(p), nn.Parameter(p.detach().clone())))
            for name, owner in m.named_modules()
            if not isinstance(owner, Delta)
            for key, p in owner._parameters.items()
            if p is not None and id(p) not in head
        ]
        name = register(m, self)
        self.put(4)
        return lambda: (self.put(3), delattr(m, name))

    def put(self, column):
        for place in self.places:
            place[1]._parameters[place[2]] = place[column]

    def own(self):
        first = {
            id(copy): f"{name}.{key}" for name, _, key, _, copy in reversed(self.places)
        }  # a tied tensor counts once
        return {first[id(copy)]: copy for *_, copy in self.places}

    @property
    def on(self):
        return all(owner._parameters[key] is copy for _, owner, key, _, copy in self.places)

    @on.setter
    def on(self, on):
        self.put(4 if on else 3)


@method(
    "head",
    title="head only",
    aliases=("linear-probe", "head-only"),
    review="baseline",
    delta_tuning="baseline",
    sparse_view="baseline",
    paper="–",
    where="",
    lr=2e-2,
)
class HeadOnly(Delta):
    """y = head(backbone(x)), only the head learns"""

    sites = ()

    @classmethod
    def merges(cls, settings):
        return True
