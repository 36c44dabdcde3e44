"""What a delta may see before training: the model, the data, and trainings that it undoes again."""

import contextlib

import torch

from .training import measure, stored


class View:
    """`begin(view)` gets one of these. batches: an iterator of training batches, as tensors on the model's device.

    fit(**settings) trains on the same data. report receives the bytes that looking takes. parts: in how many parts a
    batch is worked off, as in the training that follows.
    """

    def __init__(self, model, batches, fit=None, report=None, parts=1):
        self.model, self.batches, self.fit, self.parts = model, batches, fit, parts
        self.report = {} if report is None else report

    def gradients(self, tensors, n, single=False, dropout=False, clip=None):
        """Yield the gradients of the loss by these tensors for each of the next n batches, or for each `single` row.

        dropout: as in training. clip: the largest norm that the gradients of a batch may have together.
        """
        self.model.train(dropout)
        for _ in range(n):
            for batch in rows(next(self.batches)) if single else [next(self.batches)]:
                yield clipped(self.gradient(batch, tensors), clip)

    def gradient(self, batch, tensors):
        """The gradient of the mean loss of a batch, worked off in as many parts as the training's batches are."""
        size, total = len(batch["labels"]), None
        parts = self.parts if size % self.parts == 0 else 1
        for part in cut(batch, size // parts):
            with learning(tensors):
                with measure(self.model, self.report):
                    loss = self.model(**part).loss / parts
                total = add(total, torch.autograd.grad(loss, tensors))
        self.holds(2 * stored(total))  # these, and the sum that a score makes of them
        return total

    def curvature(self, tensors, n, probes=4, seed=0):
        """The diagonal h of the Hessian over the next n batches, by Hutchinson: the mean of z ⊙ H z, z random signs."""
        self.model.eval()
        draw, total = torch.Generator().manual_seed(seed), None
        with learning(tensors), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            for _ in range(n):
                with measure(self.model, graph := {}):  # the gradient's own graph is kept as well
                    loss = self.model(**next(self.batches)).loss
                    first = torch.autograd.grad(loss, tensors, create_graph=True)
                self.report["saved_bytes"] = max(graph["saved_bytes"], self.report.get("saved_bytes", 0))
                for _ in range(probes):
                    signs = [(torch.randint(2, t.shape, generator=draw) * 2 - 1).to(t) for t in tensors]
                    second = torch.autograd.grad(first, tensors, signs, retain_graph=True)
                    total = add(total, [z * hz / (n * probes) for z, hz in zip(signs, second, strict=True)])
        self.holds(4 * stored(total))
        return total

    def learn(self, steps, lr, deltas=()):
        """Train all that requires a gradient; returns the rows."""
        return list(self.fit(deltas=deltas, lr=lr, steps=steps, report=self.report))

    def holds(self, n):
        """Note n bytes of dense tensors beside those of a training step."""
        self.report["dense_bytes"] = max(n, self.report.get("dense_bytes", 0))


def rows(batch):
    return cut(batch, 1)


def cut(batch, size):
    """A batch in parts of so many rows."""
    return ({k: v[i : i + size] for k, v in batch.items()} for i in range(0, len(batch["labels"]), size))


def add(total, tensors):
    """A sum of lists, begun with None."""
    return [a + b for a, b in zip(total, tensors, strict=True)] if total else list(tensors)


def clipped(tensors, most):
    """Scaled down together, so that their norm is at most this."""
    if most is None:
        return tensors
    scale = most / max(most, float(torch.stack([t.norm() for t in tensors]).norm()))
    return [t * scale for t in tensors]


@contextlib.contextmanager
def learning(tensors):
    """Frozen tensors require a gradient for a while."""
    was = [t.requires_grad for t in tensors]
    for t in tensors:
        t.requires_grad_(True)
    try:
        yield
    finally:
        for t, needs in zip(tensors, was, strict=True):
            t.requires_grad_(needs)


@contextlib.contextmanager
def trial(view, tensors, silent, others=()):
    """Let tensors learn, all of them, while `silent` ones do not; they and the `others` are rewound in the end.

    Gives a function that tells by how much each has moved.
    """
    rewound = [*tensors, *others]
    before = [p.detach().clone() for p in rewound]
    view.holds(stored(before))
    for p in silent:
        p.requires_grad_(False)
    try:
        with learning(tensors):
            yield lambda: [(t - b).detach() for t, b in zip(tensors, before, strict=False)]
    finally:
        for p in silent:
            p.requires_grad_(True)
        with torch.no_grad():
            for p, b in zip(rewound, before, strict=True):
                p.copy_(b)
