"""Every exercise: the reference passes, a stub stays open, a wrong answer gets the hint that fits and no more."""

import inspect
import re

import pytest
import torch

import peftlab as pl
from peftlab import solutions, teach
from peftlab.checks import EXERCISES, beyond
from peftlab.errors import PeftlabError

LoRA, rank, OwnLoRA = pl.get("lora").cls, torch.linalg.matrix_rank, solutions.OwnLoRA
NAMES = [n for n, c in vars(solutions).items() if getattr(c, "__module__", "") == solutions.__name__]


@pytest.fixture(autouse=True)
def someone_looks(monkeypatch):
    monkeypatch.delenv("PEFTLAB_HEADLESS", raising=False)


def checked(thing):
    return pl.check(thing, like=LoRA) if isinstance(thing, type) else pl.check(thing)


def named(name, answer):
    """A function of that name, as a learner would write it."""
    mine = lambda *case: answer(*case)
    mine.__name__ = name
    return mine


def own(A=lambda r, m: torch.randn(r, m.in_features), B=lambda r, m: torch.zeros(m.out_features, r), scale=None):
    """OwnLoRA whose matrices start as told."""

    class Mine(OwnLoRA):
        def __init__(self, m, r, alpha):
            pl.OutputDelta.__init__(self)
            self.A, self.B = torch.nn.Parameter(A(r, m)), torch.nn.Parameter(B(r, m))
            self.s = scale(alpha, r) if scale else alpha / r

    return Mine


def test_these_are_the_exercises():
    assert NAMES == ["MyLoRA", "OwnLoRA", *EXERCISES], "each function has a solution, and no helper is offered as one"


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_passes_and_is_shown(name, monkeypatch):
    monkeypatch.setenv("PEFTLAB_HEADLESS", "1")
    thing = getattr(solutions, name)
    verdict, page = checked(thing), repr(pl.solution(name))
    assert verdict.ok is True and verdict.exercise == name
    shown = re.search(r"```python\n(.*)```\n\n(.*)\n\n</details>", page, re.DOTALL)
    assert shown[1] == teach.bare(thing) and shown[2] == inspect.getdoc(thing)
    assert re.match(rf"(class|def) {name}\(", shown[1]) and '"""' not in shown[1]
    here = dict(torch=torch, pl=pl, LoRA=LoRA)
    exec(shown[1], here)
    assert checked(here[name]).ok is True, "it runs in a lab, which has torch, pl and LoRA"


class Unwritten(pl.OutputDelta):
    def __init__(self, m, r, alpha):
        raise NotImplementedError("write A, B and the scale")


class Half(OwnLoRA):
    def forward(self, x, y):
        raise NotImplementedError("write the equation")


def unwritten(*case):
    raise NotImplementedError("write the line")


@pytest.mark.parametrize("stub", [Unwritten, Half, *(named(n, unwritten) for n in EXERCISES)], ids=lambda s: s.__name__)
def test_a_stub_stays_open(stub, monkeypatch):
    monkeypatch.setenv("PEFTLAB_HEADLESS", "1")
    verdict = checked(stub)
    assert verdict.ok is None and verdict.text.startswith("write ")


def reversed_sign(Bs, As, w):
    return -solutions.crossed(Bs, As, w)


def added(Bs, As, w):
    return sum(c * B @ A for B, A, c in zip(Bs, As, w, strict=True))


def pairs(Bs, As, w):
    n = range(len(w))
    return sum((w[i] * w[j] * Bs[i] @ As[j] for i in n for j in n if i != j), torch.zeros(5, 7))


def unweighted(Bs, As, w):
    return sum(Bs) @ sum(As) - sum(B @ A for B, A in zip(Bs, As, strict=True))


ONES = lambda r, m: torch.ones(m.out_features, r)
WRONG = [
    (own(B=lambda r, m: torch.randn(m.out_features, r)), "look at what B starts as"),
    (own(A=lambda r, m: torch.ones(r, m.in_features), B=ONES), "look at what B starts as"),
    (own(A=lambda r, m: torch.zeros(r, m.in_features)), "all starts as zero"),
    (own(scale=lambda alpha, r: alpha), "8 times as large as it should be"),
    (own(scale=lambda alpha, r: r / alpha), "0.25 times as large as it should be"),
    (own(B=lambda r, m: torch.zeros(r, m.out_features)), "look at names and shapes"),
    (own(A=lambda r, m: [r]), "your code stopped with AttributeError"),
    (named("kron_rank", lambda A, B: rank(A) + rank(B)), "B (3 5) of rank 3 you get 5: do the two ranks add?"),
    (named("kron_rank", lambda A, B: min(rank(A), rank(B))), "you get 2: that bounds the rank of a product A B"),
    (named("kron_rank", lambda A, B: max(rank(A), rank(B))), "you get 3: that is the larger rank"),
    (named("kron_rank", lambda A, B: min(A.shape) * min(B.shape)), "you get 12: that is what the shapes allow"),
    (named("kron_rank", lambda A, B: rank(torch.kron(A, B))), "A ⊗ B was built"),
    (
        named("kron_rank", lambda A, B: rank((A[:, None, :, None] * B[:, None]).reshape(len(A) * len(B), -1))),
        "A ⊗ B was built",
    ),
    (named("kron_rank", lambda A, B: 12), "of rank 3 you get 12."),
    (named("kron_rank", lambda A, B: None), "returned NoneType; it should return one number"),
    (named("kron_rank", lambda A, B: (rank(A), rank(B))), "returned 2 numbers; it should return one number"),
    (named("kron_rank", lambda A, B: rank(A @ B)), "your code stopped with RuntimeError"),
    (
        named("lora_scales", lambda a, r: (a / r**0.5, a / r)),
        "but with α = 16 and r = 4 you get 8 and 4: look at the order",
    ),
    (named("lora_scales", lambda a, r: (a / r, a / r)), "both are LoRA's"),
    (named("lora_scales", lambda a, r: (a / r**0.5, a / r**0.5)), "both are rsLoRA's"),
    (named("lora_scales", lambda a, r: (1 / r, 1 / r**0.5)), "where is α?"),
    (named("lora_scales", lambda a, r: (a / r, (a / r) ** 0.5)), "under the root"),
    (named("lora_scales", lambda a, r: (r / a, r**0.5 / a)), "should a larger rank"),
    (named("lora_scales", lambda a, r: a / r), "returned one number; it should return 2 numbers"),
    (named("lora_scales", lambda a, r: (a / r, a / r**2)), "right with α = 1 and r = 1, but with α = 16"),
    (named("crossed", reversed_sign), "the sign is the other way round"),
    (named("crossed", added), "that is the weighted sum of the changes"),
    (named("crossed", lambda *case: solutions.crossed(*case) + added(*case)), "that is the whole mixture"),
    (named("crossed", pairs), "a B with its own A"),
    (named("crossed", unweighted), "with w = (0.5, 0.5) the result is off by up to"),
    (named("crossed", lambda *case: torch.zeros(5, 7)), "right with w = (1, 0), but with w = (0.5, 0.5) the result"),
    (
        named("crossed", lambda *case: solutions.crossed(*case).T),
        "shape (7, 5); it should return a tensor of shape (5, 7)",
    ),
    (named("crossed", lambda Bs, As, w: As[0] @ As[0]), "your code stopped with RuntimeError"),
    (named("crossed", lambda Bs, As, w: "Σ"), "returned str; it should return a tensor of shape (5, 7)"),
]


@pytest.mark.parametrize("thing, told", WRONG, ids=[f"{t.__name__}-{told[-30:]}" for t, told in WRONG])
def test_a_wrong_answer_gets_its_own_hint(thing, told, monkeypatch):
    verdict = checked(thing)
    assert verdict.ok is False and told in verdict.text, verdict
    monkeypatch.setenv("PEFTLAB_HEADLESS", "1")
    with pytest.raises(PeftlabError, match=re.escape(told)):
        checked(thing)


@torch.no_grad()
def test_no_exercise_wants_what_a_slip_gives():
    """Every slip is told apart from the oracle by a case, and from every other slip."""
    for exercise in EXERCISES.values():
        torch.manual_seed(0)
        cases = exercise.cases().values()
        answers = [
            torch.stack([torch.as_tensor(f(*c), dtype=torch.float64) for c in cases])
            for f in (exercise.oracle, *exercise.slips.values())
        ]
        apart = [float((a - b).abs().max()) for i, a in enumerate(answers) for b in answers[:i]]
        assert min(apart) > 1e-2


def test_what_lorahub_mixes_is_the_equation():
    torch.manual_seed(1)
    Bs, As, w = list(torch.randn(2, 4, 3)), list(torch.randn(2, 3, 6)), (0.7, -0.2)
    by_hand = w[0] * w[1] * (Bs[0] @ As[1] + Bs[1] @ As[0]) + added(Bs, As, [c * c - c for c in w])
    assert torch.allclose(beyond(Bs, As, w), by_hand, atol=1e-5)


def test_a_learner_may_write_into_what_is_given():
    def crossed(Bs, As, w):
        parts = [c * B @ A for B, A, c in zip(Bs, As, w, strict=True)]
        for M, c in zip([*Bs, *As], [*w, *w], strict=True):
            M *= c
        return sum(Bs) @ sum(As) - sum(parts)

    class Inside(OwnLoRA):
        def forward(self, x, y):
            y += self.s * (x @ self.A.T @ self.B.T)
            return y

    assert checked(crossed).ok is True and checked(Inside).ok is True


def test_a_scale_may_be_a_buffer():
    class Mine(OwnLoRA):
        def __init__(self, m, r, alpha):
            super().__init__(m, r, alpha)
            del self.s
            self.register_buffer("s", torch.tensor(alpha / r))

    assert checked(Mine).ok is True


def test_an_unknown_exercise_gets_the_nearest():
    with pytest.raises(PeftlabError, match="unknown exercise 'kron_ranks'; the nearest is kron_rank"):
        pl.check(named("kron_ranks", unwritten))
    with pytest.raises(PeftlabError, match="kron_rank, lora_scales, crossed"):
        pl.check(7)
    with pytest.raises(PeftlabError, match=r"pl.check\(OwnLoRA, like="):
        pl.check(OwnLoRA)
