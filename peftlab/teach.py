"""For labs: show the package's own code with its equation, and check an exercise against the package."""

import ast
import copy
import html
import inspect
import os
import re

from .errors import PeftlabError, choose
from .paths import PACKAGE

CHECK = "application/vnd.peftlab.check+json"  # a verdict in a saved notebook

GREEK = {
    c: "\\" + n + " "
    for c, n in zip(
        "αβγδεηθλμσφψωΔΓΛΣΦΩ",
        (
            "alpha beta gamma delta epsilon eta theta lambda mu sigma phi psi omega Delta Gamma Lambda Sigma Phi Omega"
        ).split(),
        strict=True,
    )
}
SIGNS = {
    "·": r"\cdot ",
    "⊙": r"\odot ",
    "‖": r"\Vert ",
    "ᵀ": r"^{\top}",
    "≤": r"\le ",
    "≥": r"\ge ",
    "∈": r"\in ",
    "→": r"\to ",
    "√": r"\sqrt ",
    "×": r"\times ",
    "⊗": r"\otimes ",
    "∘": r"\circ ",
    "≈": r"\approx ",
    "…": r"\dots ",
    "′": "'",
    "∥": r"\Vert ",
    "⊕": r"\oplus ",
    "−": "-",
    "%": r"\%",
    "#": r"\#",
    "&": r"\&",
    "²": "^{2}",
    "⁻": "^{-}",
    "¹": "^{1}",
    "∇": r"\nabla ",
    "∑": r"\sum ",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
}

FUNCTIONS = ("relu", "gelu", "softmax", "head", "backbone", "scatter", "sign", "diag", "tanh")


def headless():
    """No one is looking: errors are raised, runs are synchronous, a wrong exercise fails."""
    return os.environ.get("PEFTLAB_HEADLESS") == "1"


def tex(equation):
    """The Unicode equation of a docstring as LaTeX: "y + (α/r)·B A x" becomes y + (\\alpha /r)\\cdot B A x."""
    parts = re.findall(r"[a-z]{2,}(?: [a-z]{2,})*|[a-zA-Z]_\w+|\s+|[₀-₉]+|.", equation)
    return "".join(_tex(part) for part in parts)


def _tex(part):
    if part[0] in "₀₁₂₃₄₅₆₇₈₉":
        return "_{" + "".join(str(ord(c) - ord("₀")) for c in part) + "}"
    if part[1:2] == "_":
        return part[0] + "_{" + part[2:] + "}"
    if part.isspace():
        return r"\quad " if len(part) > 1 else r"\, "
    if len(part) > 1:
        return r"\text{" + part + "}" if part not in FUNCTIONS else r"\mathrm{" + part + "}"
    return GREEK.get(part) or SIGNS.get(part, part)


class Page:
    """Markdown that a notebook renders and a terminal prints."""

    def __init__(self, markdown):
        self.markdown = markdown

    def _repr_markdown_(self):
        return self.markdown

    def __repr__(self):
        return self.markdown


def solution(name):
    """The reference solution of an exercise, folded: open it after a try of your own."""
    known = answers()
    code, about = known[choose(name, known, "exercise")]
    shown = f"```python\n{code}```\n\n{about}"
    return Page(f"<details><summary>Solution (try first)</summary>\n\n{shown}\n\n</details>")


def answers():
    """name -> (code, docstring) of every solution. They are read and not imported, so that no torch is needed."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(PACKAGE.glob("solutions*.py"))]
    trees = [(text.splitlines(keepends=True), ast.parse(text).body) for text in texts]
    own = ast.ClassDef | ast.FunctionDef
    return {node.name: apart(lines, node) for lines, tree in trees for node in tree if isinstance(node, own)}


def apart(lines, node):
    """(code, docstring) of a class or function."""
    told, after = node.body[:2]
    code = lines[node.lineno - 1 : told.lineno - 1] + lines[after.lineno - 1 : node.end_lineno]
    return "".join(code), ast.get_docstring(node)


def show(thing):
    """The package's own source of a class or function (or of a method named by a string), under its equation.

    A lab prints the package with this, so that what a learner reads is what runs.
    """
    from .methods import METHODS, get

    method = get(thing) if isinstance(thing, str) else next((m for m in METHODS.values() if m.cls is thing), None)
    thing = method.cls if method and isinstance(thing, str) else thing
    code = f"```python\n{inspect.getsource(thing)}```"
    if not method:
        return Page(code)
    paper = re.sub(r"(\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", method.paper)
    return Page(f"**{thing.__name__}**  {paper}\n\n$$ {tex(method.equation)} $$\n\n{code}")


class Verdict:
    """What `check` returns: ok is True, False, or None when nothing was written yet."""

    def __init__(self, ok, text, exercise=""):
        self.ok, self.text, self.exercise = ok, text, exercise

    def __repr__(self):
        return {True: "✓ ", False: "✘ ", None: "… "}[self.ok] + self.text

    def _repr_mimebundle_(self, **kwargs):
        """Text, a coloured box, and the verdict itself, which `peftlab labs report` finds in the saved notebook."""
        record = dict(exercise=self.exercise, ok=self.ok, text=self.text)
        return {"text/plain": repr(self), "text/html": self._repr_html_(), CHECK: record}

    def _repr_html_(self):
        kind = {True: "success", False: "error", None: "warn"}[self.ok]
        return (
            '<div class="pl-check" role="status" '
            f'style="border-left:4px solid var(--jp-{kind}-color1,#888);padding:6px 12px">'
            f"{html.escape(repr(self))}</div>"
        )


def check(mine, like=None, features=(12, 10), **settings):
    """Whether `mine` is right; says what differs and where to look. In a headless run a wrong answer raises.

    A class is compared with the package's class `like`: at the start, then with the same parameters and the same input,
    x (5 in) and y (5 out). A function is an exercise by its name, with cases of its own.
    """
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        verdict = _class(mine, like, features, settings) if isinstance(mine, type) else _function(mine)
    verdict.exercise = mine.__name__
    if verdict.ok is False and headless():
        raise PeftlabError(verdict.text)
    return verdict


def _class(mine, like, features, settings):
    import torch

    from .delta import WeightDelta
    from .methods import METHODS

    if like is None:
        raise PeftlabError(f"{mine.__name__} is a class, so say what it should be: pl.check({mine.__name__}, like=...)")
    settings = next((m.defaults for m in METHODS.values() if m.cls is like), {}) | settings
    plain, x = torch.nn.Linear(*features), torch.randn(5, features[0])
    theirs = _placed(like, plain, settings)
    given = (plain.weight,) if isinstance(theirs, WeightDelta) else (x, plain(x))
    return _tried(lambda: _compare(_placed(mine, plain, settings), theirs, given))


def _placed(cls, plain, settings):
    """A delta on a copy of the layer; a delta of the weight is attached there, as a mask is made only then."""
    import torch

    from .delta import WeightDelta

    m = copy.deepcopy(plain)
    torch.manual_seed(0)  # the same draws for both sides
    delta = cls(m, **settings)
    if isinstance(delta, WeightDelta):
        delta.attach(m, m)
        delta.joined()
    return delta


def _function(mine):
    from .checks import EXERCISES, judge_answers

    exercise = EXERCISES[choose(getattr(mine, "__name__", mine), EXERCISES, "exercise")]
    return _tried(lambda: judge_answers(mine, exercise))


def _tried(verdict):
    """verdict(), or the Verdict on code that stopped before there was one."""
    try:
        return verdict()
    except NotImplementedError as e:
        return Verdict(None, str(e) or "write the missing line, then run this cell again.")
    except Exception as e:
        return Verdict(False, f"your code stopped with {type(e).__name__}: {e}")


def _compare(ours, theirs, given):
    """Two deltas, first as they start, then with the same parameters."""
    import torch

    mine, its = (dict(d.named_parameters()) for d in (ours, theirs))
    shapes = [{n: tuple(p.shape) for n, p in d.items()} for d in (mine, its)]
    if shapes[0] != shapes[1]:
        return Verdict(False, f"your parameters are {shapes[0]}, expected were {shapes[1]}: look at names and shapes.")

    def run(d):
        torch.manual_seed(0)  # what a method draws in each step is the same for both
        return d(*(t.clone() for t in given))  # a copy: `y += …` must not change what the other one gets

    starts = run(ours), run(theirs)
    moved = [n for n in its if mine[n].any() and not its[n].any()]
    stuck = any(p.any() for p in its.values()) and not any(p.any() for p in mine.values())
    for p in its.values():
        p.normal_()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    verdict, identity = judge(run(ours), run(theirs), given[-1]), lambda y: torch.allclose(y, given[-1], atol=1e-5)
    if verdict.ok and identity(starts[1]) and not identity(starts[0]):
        told = f"at the start it should change nothing: look at what {' or '.join(moved or its)} starts as."
        return Verdict(False, f"the equation is right, but {told}")
    if verdict.ok and stuck:
        return Verdict(False, "the equation is right, but all starts as zero: which parameter would get a gradient?")
    return verdict


def judge(got, want, base):
    """Compare two outputs. Hints name the place to look, never the line to write."""
    import torch

    if not isinstance(got, torch.Tensor):
        return Verdict(False, f"forward returned {type(got).__name__}; it should return a tensor.")
    if got.shape != want.shape:
        return Verdict(
            False,
            f"the result has the shape {tuple(got.shape)}, expected was {tuple(want.shape)}: look at the transposes.",
        )
    if torch.allclose(got, want, atol=1e-5):
        return Verdict(True, "the same parameters give the same function as the package's own class.")
    if torch.allclose(got, base, atol=1e-5):
        return Verdict(False, "nothing is added yet: the result is what came in.")
    if torch.allclose(got, want - base, atol=1e-4):
        return Verdict(
            False, "the change is right, but the frozen layer's own output is lost. What is the change added to?"
        )
    mine, theirs = got - base, want - base
    scale = (mine * theirs).sum() / (theirs * theirs).sum()
    if torch.allclose(mine, scale * theirs, atol=1e-4 * float(theirs.abs().max())):
        return Verdict(
            False,
            f"the change points the right way, but is {scale:.3g} times as large as it should be: look at the scale.",
        )
    return Verdict(
        False,
        f"another function (off by up to {float((got - want).abs().max()):.2g}): follow x through the equation.",
    )
