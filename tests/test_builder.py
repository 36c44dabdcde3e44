"""The builder without a browser: what it counts, that its budget holds whatever is moved, and that it runs."""

import itertools
import random
import re

import pytest
import tiny
from boards import headless, home, places  # noqa: F401

import peftlab as pl
from peftlab.errors import PeftlabError
from peftlab.widgets import builder
from peftlab.widgets.planning import ALL, GROUPINGS, SINGLE, Plan, State

FOUR = ("adapter", "prefix", "added-bias", "lora")
S4 = dict(grouping="spindle", ticks={"adapter": [1, 2, 3], "prefix": [2, 3, 4], "added-bias": [3, 4], "lora": [1, 4]})


@pytest.fixture
def board(places, home):
    return builder(budget=3000, steps=4, every=2, **places)


def counted(model, rows):
    undo = pl.attach(model, rows)
    try:
        return pl.counts(model)["delta"]
    finally:
        undo()


def shown(board):
    """What the page shows: it has to be the state that counts."""
    blocks, state = board.controls.blocks, board.controls.state
    assert {(g, n) for g, n in blocks.ticks} == state.ticks and len(blocks.ticks) == len(state.ticks)
    assert blocks.sizes == state.sizes
    return sum(blocks.prices[g][n] for g, n in blocks.ticks)


def flip(board, *tick):
    """As a click in the page does."""
    ticks = board.controls.blocks.ticks
    board.controls.blocks.set_state(
        dict(ticks=[t for t in ticks if t != [*tick]] if [*tick] in ticks else [*ticks, [*tick]])
    )


def slide(board, **sizes):
    board.controls.blocks.set_state(dict(sizes=board.controls.blocks.sizes | sizes))


# what it counts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["roberta", "gpt2", "t5", "llama"])
def test_prices_are_what_counts_finds(family):
    model, draw = tiny.model(family), random.Random(0)
    plan = Plan(model, FOUR, 10**6)
    for grouping in GROUPINGS:
        cells = [(g, n) for g in range(len(plan.groups[grouping])) for n in FOUR]
        for ticks in (cells, *(draw.sample(cells, draw.randint(1, len(cells))) for _ in range(3))):
            sizes = {n: draw.choice(plan.scales[n]) if plan.scales[n] else None for n in FOUR}
            state = State(grouping, frozenset(ticks), sizes)
            assert plan.total(state) == counted(model, plan.rows(state))
            again = plan.read(plan.rows(state), grouping)
            assert plan.rows(again) == plan.rows(state) and again.ticks == state.ticks


def test_a_tick_and_a_slider_move_count_and_spec(board):
    assert board.spec["recipe"] == pl.recipe("head") and shown(board) == 0
    flip(board, 0, "lora")
    assert board.spec["recipe"] == pl.recipe("lora", layers=[0]) and shown(board) == 1024  # 2 sites · 8 · (32 + 32)
    assert 'pl-trained">1,024<' in board.text["counts"].value
    slide(board, lora=4)
    assert board.spec["recipe"] == pl.recipe("lora", layers=[0], r=4, alpha=8) and shown(board) == 512
    flip(board, 1, "lora")
    assert board.spec["recipe"] == pl.recipe("lora", r=4, alpha=8) and shown(board) == 1024
    assert 'pl-trained">1,024<' in board.text["counts"].value and board.controls.start.value == "lora everywhere"
    flip(board, 0, "lora")
    assert board.spec["recipe"] == pl.recipe("lora", layers=[1], r=4, alpha=8)


# which rows ---------------------------------------------------------------------------------------


def test_the_ticks_of_s4_are_s4(board):
    board.set(**S4, r=2, n=3)
    assert board.spec["recipe"] == pl.recipe("s4", r=2, n=3) and board.controls.start.value == "s4"
    board.set(start="empty")
    assert board.spec["recipe"] == pl.recipe("head") and board.spec["lr"] == 5e-3
    board.controls.start.value = "s4"  # as the page does
    assert board.spec["recipe"] == pl.recipe("s4", r=6, n=6), "smaller until the budget holds"
    assert counted(board.model, pl.recipe("s4", r=6, n=6)) <= 3000 < counted(board.model, pl.recipe("s4", r=8, n=6))
    flip(board, 0, "lora")
    assert board.controls.start.value == "your own"


def test_known_hybrids_of_other_methods_are_offered(places, home):
    board = builder(("prefix", "scaled-parallel"), start="mam", budget=5000, **places)
    assert board.spec["recipe"] == pl.recipe("mam") and board.spec["lr"] == pl.get("mam").lr
    assert "s4" not in board.controls.start.options
    with pytest.raises(PeftlabError, match="unknown recipe to start from within the budget 's4'"):
        board.set(start="s4")
    assert builder(budget=20, **places).controls.start.options == ("empty", "your own"), "nothing else fits"


def test_rows_of_a_method_that_is_everywhere_stay_in_the_order_of_the_columns():
    plan = Plan(tiny.model("roberta"), FOUR, 10**6)
    ticks = {(0, "adapter"), (0, "lora"), *((g, "added-bias") for g in range(4))}
    rows = plan.rows(State("uniform", frozenset(ticks), plan.sizes))
    bias = pl.recipe("added-bias")
    assert rows == pl.recipe("adapter", layers="uniform 1") + bias + pl.recipe("lora", layers="uniform 1")


def test_other_groups_keep_what_was_ticked_in_all_of_their_layers(board):
    board.set(ticks={"lora": [0, 1], "prefix": [1]}, r=1, n=1)
    board.controls.grouping.value = "uniform"  # groups of one layer, and two of none
    assert board.controls.state.ticks == {(0, "lora"), (1, "lora"), (1, "prefix")}
    assert [n for _, n in itertools.groupby(board.controls.blocks.groups, lambda g: "no layer" in g)]
    board.controls.grouping.value = ALL
    assert board.spec["recipe"] == pl.recipe("lora", r=1, alpha=2)
    board.controls.grouping.value = SINGLE
    assert board.controls.state.ticks == {(0, "lora"), (1, "lora")}


# the budget ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_no_tick_and_no_slider_exceeds_the_budget(places, home, seed):
    board = builder(budget=1500, **places)
    draw, refusals = random.Random(seed), 0
    plan, model = board.controls.plan, board.model
    board.changed = board.controls.changed = lambda: None  # the texts of the panel are another test's
    for _ in range(120):
        before = board.controls.state
        name, kind = draw.choice(FOUR), draw.random()
        if kind < 0.1:
            board.controls.grouping.value = draw.choice([g for g in GROUPINGS if g != before.grouping])
        elif kind < 0.6 or name not in plan.knobs:
            tick = draw.randrange(len(plan.groups[before.grouping])), name
            wanted = before._replace(ticks=before.ticks ^ {tick})
            flip(board, *tick)
        else:
            size = draw.choice(plan.scales[name])
            wanted = before.sized(**{name: size})
            slide(board, **{name: size})
        after, said = board.controls.state, board.controls.blocks.refused
        assert shown(board) == counted(model, plan.rows(after)) <= 1500
        if kind < 0.1:
            assert not said
            continue
        over = counted(model, plan.rows(wanted)) - 1500
        assert bool(said) == (over > 0) and after == (before if said else wanted)
        if said:
            refusals += 1
            assert said.startswith(name) and f"{over:,} numbers above the budget of 1,500" in said
            truthful(plan, wanted, name, said)
    assert refusals > 10, "or nothing was tried"


def truthful(plan, wanted, name, said):
    """What a refusal says would fit does, and the next size would not."""
    smaller = [v for v in plan.scales[name] if v < wanted.sizes[name]] if name in plan.knobs else []
    fits = [v for v in smaller if plan.total(wanted.sized(**{name: v})) <= plan.budget]
    told = re.search(r"with [a-z ]+ (\d+) it fits$", said)
    assert [int(told[1])] == fits[-1:] if told else (not fits and said.endswith("untick or shrink something first"))


def test_of_several_moves_at_once_only_what_is_too_much_is_taken_back(board):
    board.controls.blocks.set_state(dict(ticks=[[1, "lora"], [0, "lora"], [1, "adapter"], [1, "prefix"]]))
    assert board.controls.state.ticks == {(1, "lora"), (0, "lora"), (1, "prefix")}, "in the order of the clicks"
    assert board.controls.blocks.ticks == [[1, "lora"], [0, "lora"], [1, "prefix"]]
    assert "adapter in layer 1 would go 152 numbers above the budget of 3,000" in board.controls.blocks.refused
    board.controls.blocks.set_state(dict(ticks=[[1, "lora"], [1, "prefix"], [1, "adapter"]]))  # one goes, another comes
    assert not board.controls.blocks.refused and shown(board) == 2640


def test_a_refusal_goes_back_to_the_page(board, monkeypatch):
    sent = []
    monkeypatch.setattr(type(board.controls.blocks), "_send", lambda self, msg, buffers=None: sent.append(msg))
    slide(board, lora=32)
    assert "sizes" not in [m for m in sent if m["method"] == "update"][-1]["state"], "nothing is ticked: it is free"
    sent.clear()
    flip(board, 0, "lora")
    update = [m["state"] for m in sent if m["method"] == "update"]
    assert update[-1]["ticks"] == [] and "with rank 16 it fits" in update[-1]["refused"]


BAD = [
    (dict(ticks={"adapter": [7]}), r"adapter has ticks at numbers from 0 to 1, such as \[0\], not \[7\]"),
    (dict(ticks={"adapter": 1}), "not 1"),
    (dict(ticks=[1]), "ticks are written like"),
    (dict(ticks={"adaptor": [1]}), "unknown method here 'adaptor'; the nearest is adapter"),
    (dict(grouping="spindel"), "unknown grouping of layers 'spindel'; the nearest are spindle"),
    (dict(where="q"), "unknown setting of the builder 'where'"),
    (dict(rank=2), "unknown setting of the builder 'rank'"),
    (dict(r=0), "must be at least 1"),
    (dict(r=2.5), "must be a whole number"),
    (dict(r=33), "above the width 32"),
    (dict(sizes={"added-bias": 1}), "unknown method with a size 'added-bias'"),
    (
        dict(S4, r=16, n=16),
        "would go 3,544 numbers above the budget of 3,000; it fits with adapter 6, prefix 6, lora 6",
    ),
    (dict(steps=0), "steps must be a whole number from 1"),
    (dict(lr=-1.0), "lr must be a number above 0"),
    (dict(precision="fp8"), "unknown precision 'fp8'"),
    (dict(start="s5"), "recipe to start from within the budget 's5'"),
]


def test_set_refuses_before_it_moves(board):
    board.set(ticks={"lora": [1]}, r=4)
    before = board.spec
    for values, words in BAD:
        with pytest.raises(PeftlabError, match=words):
            board.set(**values)
        assert board.spec == before and shown(board) == 512 and not board.controls.quiet


@pytest.mark.parametrize(
    ("methods", "budget", "words"),
    [
        (FOUR, 0, "budget must be a whole number from 1, not 0"),
        ((), 99, "methods must be names"),
        (("lora", "lora"), 99, "each once"),
        (("prompt",), 99, "prompt trains nothing that belongs to one layer"),
        (("compacter",), 99, "what compacter trains in one layer depends on the others"),
        (("loras",), 99, "unknown method 'loras'"),
    ],
)
def test_what_it_cannot_build_is_refused(methods, budget, words):
    with pytest.raises(PeftlabError, match=words):
        Plan(tiny.model("roberta"), methods, budget)


# runs ---------------------------------------------------------------------------------------------


def test_a_run_is_the_run_of_its_spec(board, places):
    board.set(**S4, r=2, n=2)
    done = board.run()
    assert board.result is done and done.spec == board.spec and done.counts["delta"] == shown(board)
    assert pl.run(pl.spec("s4", r=2, n=2, steps=4, every=2, **places)).cached, "it is a run like any other"
    assert board.loss.series[0]["points"] == [[r["step"], r["loss"]] for r in done.rows]
    table = board.text["runs"].value
    assert "s4: adapter r=2" in table and f"{shown(board):,}" in table and f"{done.score:.3f}" in table
    assert table.count("pl-sketch") == 1 and "pl-current" in table
    flip(board, 0, "added-bias")
    assert "pl-mark" in board.text["stale"].value and "pl-current" not in board.text["runs"].value
    board.run_baselines()
    assert {line["name"] for line in board.score.lines} >= {"head only (1)", "full (1)"}
    assert board.text["runs"].value.count("pl-sketch") == 1, "a baseline has no blocks"
    page = board._repr_mimebundle_()["text/html"]
    assert "of 3,000 numbers" in page and "group 2 (layer 0)" in page and "bottleneck 2" in page


def test_what_is_moved_while_it_trains_does_not_change_the_run(board, monkeypatch):
    board.set(ticks={"lora": [0, 1]}, r=2)
    alone = pl.run(board.spec, fresh=True)
    pl.ledger.own().unlink()
    show, moves = board.runner.show, itertools.cycle(["prefix", "adapter"])

    def meddle(rows):
        flip(board, 0, next(moves))
        slide(board, lora=24)
        show(rows)

    board.runner.show = meddle
    done = board.run() or board.result
    assert [r["loss"] for r in done.rows] == [r["loss"] for r in alone.rows] and not done.cached
    assert "above the budget" in board.controls.blocks.refused and shown(board) <= 3000


def test_a_lab_can_press_it_where_nobody_is(board):
    pl.labs.Lab("ci").press(board)
    assert board.result.spec["recipe"] == pl.recipe("head")
