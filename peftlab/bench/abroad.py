"""The peers in `adapters`: their steps are taken by a process of another environment, in turns with ours."""

import json
import os
import pathlib
import subprocess
import tempfile

from ..errors import PeftlabError
from .peers import N, Peer, R, chosen
from .stepping import RATE

HOW = "python -m venv env && env/bin/pip install torch==2.13.0 adapters==1.3.0"
SCRIPT = pathlib.Path(__file__).with_name("elsewhere.py")


def adapter(shape, **more):
    """Houlsby's, after both parts of a layer."""
    return dict(reduction_factor=shape.width / R, non_linearity="relu", cross_adapter=True) | more


def union(shape):
    """All three where each token may see all others: in T5 not in the decoder, whose layers come second."""
    out = dict(leave_out=list(range(shape.layers, 2 * shape.layers)) if shape.family == "t5" else [])
    config = lambda kind, settings: dict(kind=kind, settings=settings | out)
    return dict(
        prefix_tuning=config("PrefixTuningConfig", dict(flat=True, prefix_length=N)),
        adapter=config("SeqBnConfig", dict(reduction_factor=shape.width / R)),
        lora=config("LoRAConfig", dict(r=R)),
    )


CONFIGS = {  # ours -> class of their configuration, shape -> its settings
    "adapter": ("DoubleSeqBnConfig", adapter),
    "parallel-adapter": ("ParBnConfig", lambda shape: dict(reduction_factor=shape.width / R, scaling=1.0)),
    "compacter": ("CompacterConfig", adapter),
    "unipelt": ("UniPELTConfig", union),
}
WITHOUT = dict(unipelt=dict(gpt2="ours refuses GPT-2"))
PEERS = {
    name: Peer(
        name,
        f"adapters' {name}",
        make=None,
        settings=lambda shape, name=name: dict(r=R) | (dict(n=N) if name == "unipelt" else {}),
        placed=False,
        without=WITHOUT.get(name, {}),
    )
    for name in CONFIGS
}


def missing(one, form, options):
    """Why a peer of `adapters` is not measured, or None when it is."""
    return one.without.get(form.family) or (None if options.adapters else f"needs --adapters PYTHON, from: {HOW}")


def measured(form, options):
    """(peer, its Process, None) for each that is asked for; without a Process the third says why it has none."""
    for one in chosen(options, PEERS):
        if note := missing(one, form, options):
            yield one, None, note
            continue
        with Process(options.adapters, form, one, options) as theirs:
            yield one, theirs, None


class Process:
    """Their side: `step` has it take one and notes its seconds, as a Stepper does. A context manager.

    PeftlabError, with what it said last, when the other Python fails.
    """

    def __init__(self, python, form, one, options):
        kind, settings = CONFIGS[one.name]
        batch = form.batch(options.batch, options.tokens)
        keys = dict(device=options.device, precision=options.precision, lr=RATE)
        question = keys | dict(classes=form.classes(), method=dict(kind=kind, settings=settings(form)))
        question |= dict(batch={k: t.tolist() for k, t in batch.items()})
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        self.said = tempfile.TemporaryFile("w+")
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said)
        try:
            self.job = subprocess.Popen([python, str(SCRIPT)], text=True, errors="replace", env=env, **pipes)
        except OSError as problem:
            raise PeftlabError(f"--adapters {python} cannot be run ({problem}); make an environment: {HOW}") from None
        self.seconds, self.facts = [], self.ask(question)

    def ask(self, question):
        try:
            self.job.stdin.write(json.dumps(question) + "\n")
            self.job.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and says why below
        line = self.job.stdout.readline()
        if not line:
            self.said.seek(0)
            last = (self.said.read().strip().splitlines() or ["no word of why"])[-1]
            raise PeftlabError(f"the Python given by --adapters failed: {last}; an environment is made by: {HOW}")
        return json.loads(line)

    def step(self):
        self.seconds.append(self.ask("step")["seconds"])

    def flops(self):
        return self.facts["flops"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.job.stdin.close()
        self.job.wait()
        self.job.stdout.close(), self.said.close()
