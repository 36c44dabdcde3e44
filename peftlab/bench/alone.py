"""One side in a process of its own, because only a process has a peak memory.

python -m peftlab.bench.alone '{"shape": …, "method": …, "side": "ours" or "theirs", …}' prints one JSON object.
"""

import json
import pathlib
import subprocess
import sys

import torch

from ..errors import PeftlabError
from ..training import weigh
from . import sides
from .abroad import PEERS as ABROAD
from .elsewhere import saved_by
from .peers import PEERS
from .shapes import shape
from .stepping import Stepper


def ask(**question):
    """What `main` answers in a process of its own. PeftlabError with its last line when it fails."""
    command = [sys.executable, "-m", "peftlab.bench.alone", json.dumps(question)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
        raise PeftlabError(f"{question['method']} ({question['side']}) at {question['shape']} failed: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(side, method, steps=2, **question):
    """Bytes: saved, weights, gradients, optimizer, and of the process its peak and how far that is above what stood
    when the backbone did (`rise`); on a GPU also the peaks of what was allocated and reserved there."""
    form, one, device = shape(question["shape"]), (PEERS | ABROAD)[method], question["device"]
    base = form.model().to(device)
    batch = form.batch(question["batch"], question["tokens"], device)
    import peft  # noqa: F401  # for both sides, so that its import is in neither's rise

    before = resident("VmRSS")
    if side == "ours":
        model, batch, after = sides.ours(base, form, one).model, batch | one.inputs(form, batch), None
    else:
        model, after = sides.theirs(base, form, one), one.after
    del base
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    stepper = Stepper(model, batch, after, question["precision"])
    saved, loss = saved_by(stepper.forward, model)
    loss.backward()
    stepper.optimizer.step()
    report = dict(saved_bytes=saved) | weigh(model, stepper.optimizer)
    stepper.optimizer.zero_grad()
    for _ in range(steps):
        stepper.step()
    peak = resident("VmHWM")
    report |= dict(peak_rss=peak, rise=None if peak is None or before is None else peak - before)
    if device == "cuda":
        report |= dict(allocated=torch.cuda.max_memory_allocated(), reserved=torch.cuda.max_memory_reserved())
    print(json.dumps(report))


def resident(which):
    """Bytes of memory that this process holds (VmRSS) or has held at most (VmHWM). None where the system cannot tell.

    Not `ru_maxrss`: a child inherits that of its parent.
    """
    status = pathlib.Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{which}:")), None)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
