"""Steps of training in turns: their seconds, and the FLOPs of one."""

import contextlib
import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..delta import Delta
from ..kernels import unfused
from .peers import STEPS

RATE = 1e-4
HALVES = dict(fp32=None, bf16=torch.bfloat16, fp16=torch.float16)


class Stepper:
    """One side: its model, its optimizer and the seconds of its steps.

    after(model, step) is what its library does after each update. Every side has the same optimizer.
    """

    def __init__(self, model, batch, after=None, precision="fp32", compiled=False):
        self.model, self.batch, self.after, self.seconds = model, batch, after, []
        self.deltas = [m for m in model.modules() if isinstance(m, Delta)]
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], RATE, fused=True)
        self.device, self.half = next(model.parameters()).device.type, HALVES[precision]
        self.call = torch.compile(model) if compiled else model
        self.at = STEPS // 4  # in the midst of a training, where methods that prune do so

    def forward(self):
        """The loss, with what the method adds to it."""
        with torch.autocast(self.device, self.half) if self.half else contextlib.nullcontext():
            loss = self.call(**self.batch).loss
        return sum((d.penalty() for d in self.deltas if hasattr(d, "penalty")), loss)

    def step(self):
        """A whole step, timed."""
        self.wait()
        start, self.at = time.perf_counter(), self.at + 1
        self.forward().backward()
        self.optimizer.step()
        for d in self.deltas:
            if hasattr(d, "after_step"):
                d.after_step(self.at, STEPS)
        if self.after:
            self.after(self.model, self.at)
        self.optimizer.zero_grad()
        self.wait()
        self.seconds.append(time.perf_counter() - start)

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def flops(self):
        """FLOPs of the products of one forward and backward pass; attention and LSTMs are written out, as those of a
        fused one are not counted."""
        inner, self.call = self.call, self.model
        with unfused(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.forward().backward()
        self.call = inner
        self.optimizer.zero_grad()
        return counter.get_total_flops()


def in_turns(steppers, repeats, warmup=3):
    """Seconds of each side's steps, taken in turns: the order alternates, and a slow moment falls on all of them."""
    steppers = dict(steppers)
    for i in range(warmup + repeats):
        for stepper in list(steppers.values())[:: 1 if i % 2 else -1]:
            stepper.step()
    return {name: s.seconds[-repeats:] for name, s in steppers.items()}


def ratio(a, b):
    """Median of the ratios of neighbouring steps, and its quartiles: [low, median, high]."""
    each = [x / y for x, y in zip(a, b, strict=True)]
    if len(each) < 2:
        return each * 3
    return statistics.quantiles(each, n=4, method="inclusive")
