"""The common pass: a model, laid out for one of K runs, in which each has its own numbers."""

import contextlib

import torch
from torch.func import vmap
from torch.nn import functional as F

from ..runs import batches
from ..scoring import evaluate
from .apart import Apart, stacked
from .start import own, owners

SAME = dict(fp32=1e-4, bf16=0.1)  # how far loss and gradient of a step may be from those of the run alone


class Pass:
    """`theta` (K N) is what the runs learn, a row for each; `rates` (K N) how fast, 0 for what only fills up."""

    def __init__(self, model, undo, specs, starts, accelerator):
        self.model, self.specs, self.starts, self.accelerator = model, specs, starts, accelerator
        self.rows, self.deltas, (first, *_) = Apart(len(specs)), undo.deltas, starts
        weights = first.learns if first.sparse else ()
        self.own, self.owners = own(model, undo, weights), owners(model, undo, weights)
        self.modules = [m for m in self.owners.values() if m not in self.deltas]
        every = {n: stacked([s.tensors[n] for s in starts]) for n in first.tensors}
        self.shapes = {n: every[n].shape for n in first.learns}
        self.theta = self.flat(every).requires_grad_()
        self.fixed = {n: t for n, t in every.items() if n not in first.learns and (t != t[:1]).any()}
        self.learns = self.flat({n: stacked([s.learns[n] for s in starts]) for n in self.shapes})
        speeds = {n: torch.full(s, first.speeds.get(n, 1.0), device=self.theta.device) for n, s in self.shapes.items()}
        self.rates = torch.tensor([[s["lr"]] for s in specs]).to(self.theta) * self.flat(speeds) * self.learns
        self.settings = {key: [s.settings[key] for s in starts] for key in first.settings}
        self.rows.settings = {m: {} for m in self.owners.values()}
        for (name, attribute), values in self.settings.items():
            key = model.get_submodule(name), attribute
            self.rows.settings[self.home(f"{name}.")[0]][key] = torch.tensor(values, device=self.theta.device)

    def flat(self, tensors):
        """Tensors (K …) of all that learns, as one (K N)."""
        return torch.cat([tensors[n].reshape(len(self.specs), -1) for n in self.shapes], 1)

    def numbers(self):
        """Name -> tensor (K …) of all in which the runs differ."""
        parts = self.theta.split([shape[1:].numel() for shape in self.shapes.values()], 1)
        return self.fixed | {n: part.view(s) for (n, s), part in zip(self.shapes.items(), parts, strict=True)}

    def home(self, name):
        """The innermost owner of what has this name, and its name in there."""
        owner = max((n for n in self.owners if name.startswith(f"{n}.")), key=len)
        return self.owners[owner], name.removeprefix(f"{owner}.")

    def lend(self):
        """Give each owner what the runs have there."""
        self.rows.lent = {m: {} for m in self.owners.values()}
        for name, t in self.numbers().items():
            owner, inside = self.home(name)
            self.rows.lent[owner][inside] = t

    def feeds(self):
        return [batches(one, s.task, self.model) for one, s in zip(self.specs, self.starts, strict=True)]

    def gradient(self, feeds):
        """The loss of each run on its next batch (K), the gradient of what it learns (K N), and that one's norm (K)."""
        self.lend()
        batch = joined([next(feed) for feed in feeds], self.model.tokenizer.pad_token_id, self.accelerator.device)
        with self.rows.over(self.deltas, self.modules), self.accelerator.autocast():
            logits = self.model(**batch).logits
        losses = vmap(LOSS[self.starts[0].task.kind])(self.rows.apart(logits), self.rows.apart(batch["labels"]))
        gradient = torch.autograd.grad(losses.sum(), self.theta)[0] * self.learns
        return losses.detach(), gradient, gradient.norm(dim=1)

    def step(self, feeds, optimizer, share):
        """One step of AdamW for every run, at this share of its rate; returns the losses (K)."""
        losses, gradient, norms = self.gradient(feeds)
        self.theta.grad, before = gradient * (1 / (norms + 1e-6)).clamp(max=1)[:, None], self.theta.detach().clone()
        optimizer.step()  # at rate 1: a rate only scales what it does
        with torch.no_grad():
            self.theta.copy_(before.lerp_(self.theta, self.rates * share))
        return losses

    def agrees(self):
        """Whether a step of each run is the one that it takes alone."""
        nothing = {n: torch.zeros(()) for n in self.shapes}
        nudge = {n: stacked([(nothing | s.nudge)[n].expand(s.tensors[n].shape) for s in self.starts]) for n in nothing}
        start, self.theta.data = self.theta.data, self.theta.data + self.flat(nudge).to(self.theta)
        try:
            losses, _, norms = self.gradient(self.feeds())
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError):  # vmap cannot follow what a delta does
            return False
        finally:
            self.theta.data = start
        near = lambda t, alone: torch.allclose(t.cpu(), torch.tensor(alone), SAME[self.specs[0]["precision"]])
        return near(losses, [s.loss for s in self.starts]) and near(norms, [s.norm for s in self.starts])

    @contextlib.contextmanager
    def alone(self, i):
        """The model as run i has it."""
        kept = {n: t.data for n, t in self.own.items()}
        for name, t in self.numbers().items():
            self.own[name].data = t[i].detach()
        for (name, attribute), values in self.settings.items():
            setattr(self.model.get_submodule(name), attribute, values[i])
        yield self.model
        for name, t in kept.items():
            self.own[name].data = t

    def score(self, i, split, rows=None):
        """The metric of run i on a split."""
        task, batch = self.starts[i].task, self.specs[i]["batch"]
        part = batch * (4 if task.kind in ("classification", "regression") else 1)
        with self.alone(i) as model:
            found = evaluate(model, task, split, part, rows, self.accelerator)
        model.train()
        return found


LOSS = dict(
    classification=F.cross_entropy,
    regression=lambda y, right: F.mse_loss(y[:, 0], right),
    seq2seq=lambda y, right: F.cross_entropy(y.float().flatten(0, 1), right.flatten()),
    lm=lambda y, right: F.cross_entropy(y[:, -right.shape[1] : -1].float().flatten(0, 1), right[:, 1:].flatten()),
)


def joined(parts, pad, device):
    """The batches of several runs as one, as wide as the widest."""
    fill = dict(input_ids=pad, labels=-100)

    def join(name):
        tensors = [part[name] for part in parts]
        if tensors[0].ndim == 1:
            return torch.cat(tensors)
        wide = max(t.shape[1] for t in tensors)
        return torch.cat([F.pad(t, (0, wide - t.shape[1]), value=fill.get(name, 0)) for t in tensors])

    return {name: join(name).to(device) for name in parts[0]}
