"""What one AdaMix has in it: many single routes, their ensemble, and the mean of the copies that is kept in the end."""

import math

import torch
from torch import nn

from .errors import PeftlabError
from .scoring import evaluate


def routes(model, attached, task, split="validation", n=16, seed=0):
    """{"routes": the scores of n random routes, "averaged": of the mean of the copies, "ensemble": of the n together}.

    A route is one copy of what reads and one of what writes, in each place; it stays the same for all rows. The mean of
    the copies is what the model is outside of training, one pass. The ensemble answers with the mean of the routes'
    probabilities (in a regression, of their numbers), n passes. PeftlabError where nothing of `attached` has routes.
    """
    mixed = [d for d in attached.deltas if hasattr(d, "route")]
    if not mixed:
        raise PeftlabError("none of these deltas has routes; attach adamix or adamix-lora, and train first")
    draw = torch.Generator().manual_seed(seed)
    ways = [[torch.randint(d.copies, (2, 1), generator=draw) for d in mixed] for _ in range(n)]
    score = lambda *some: evaluate(Routed(model, mixed, some), task, split)
    return dict(routes=[score(way) for way in ways], averaged=evaluate(model, task, split), ensemble=score(*ways))


class Routed(nn.Module):
    """A model that answers with the mean of what it says on these ways, each a route for each delta."""

    def __init__(self, model, deltas, ways):
        super().__init__()
        self.model, self.deltas, self.ways = model, deltas, ways
        self.config, self.tokenizer = model.config, model.tokenizer

    def forward(self, **batch):
        said = []
        try:
            for way in self.ways:
                for d, route in zip(self.deltas, way, strict=True):
                    d.route = route
                said.append(self.model(**batch))
        finally:
            for d in self.deltas:
                d.route = None
        said[0].logits = together(torch.stack([one.logits.float() for one in said]))
        return said[0]


def together(z):
    """The logits (b … C) of the mean of these routes' probabilities, z (n b … C); the mean itself of single numbers."""
    return z.mean(0) if z.shape[-1] == 1 else z.log_softmax(-1).logsumexp(0) - math.log(len(z))
