"""The widgets without a browser: traits are set as a page would set them, jobs run here or in a thread."""

import threading

import pytest
import small
import tiny

import peftlab as pl
from peftlab.errors import PeftlabError
from peftlab.methods import METHODS, Choice, Knob
from peftlab.recipes import name_of
from peftlab.widgets import MaskGrid, Runner, panel
from peftlab.widgets.controls import Controls, scale
from peftlab.widgets.curve import STATIC
from peftlab.widgets.runner import Feed

home = small.home


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("panel")
    return dict(
        backbone=small.backbone(folder / "bb"), task=small.write(folder / "reviews.jsonl", small.sentences(240))
    )


@pytest.fixture(autouse=True)
def headless(monkeypatch):
    monkeypatch.setenv("PEFTLAB_HEADLESS", "1")


@pytest.fixture
def board(places, home):
    return panel("lora", r=4, steps=20, **places)


def test_every_label_fits_beside_its_slider():
    """112 px hold 14 characters; a longer one is cut off with dots."""
    assert not {n: k.label for m in METHODS.values() for n, k in m.knobs.items() if len(k.label) > 14}


@pytest.mark.parametrize("file", sorted(STATIC.glob("*.js")), ids=lambda p: p.name)
def test_scripts_are_small_and_load_nothing(file):
    text = file.read_text(encoding="utf-8")
    assert len(text) < 20_000 and "http" not in text and "import(" not in text and "import " not in text


def test_grid_rows_group_layers_with_the_same_sites():
    grid = MaskGrid()
    grid.shape(["layer 0", "layer 1", "layer 2"], ["q", "k", "v"], on=("q", "v"))
    assert grid.rows() == [("q v", None)]
    grid.mask = [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert grid.rows() == [("q v", [0, 2]), ("k", [1])]
    grid.paint("k q", [1])
    assert grid.mask == [[0, 0, 0], [1, 1, 0], [0, 0, 0]] and grid.rows() == [("q k", [1])]
    grid.paint("v")
    assert grid.rows() == [("v", None)]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_sliders_offer_only_values_that_the_method_takes(method):
    for name, knob in method.knobs.items():
        if not isinstance(knob, Choice | Knob):
            assert [knob.checked(name, v) for v in (knob.default, f" {knob.example}")] == [knob.default, knob.example]
            continue
        values = list(knob.options) if isinstance(knob, Choice) else scale(knob)
        ordered = len(set(values)) == len(values) if isinstance(knob, Choice) else values == sorted(set(values))
        assert knob.default in values and ordered and 2 <= len(values) <= 40
        assert [knob.checked(name, v) for v in values] == values


@pytest.mark.parametrize("name", METHODS)
def test_counts_before_anything_runs(board, name):
    board.set(method=name)
    model = pl.backbone(board.fixed["backbone"])
    undo = pl.attach(model, name)
    n = pl.counts(model)
    undo()
    assert f'pl-trained">{n["delta"]:,}<' in board.text["counts"].value
    assert f"{n['head']:,} in the head" in board.text["counts"].value
    assert board.results == [] and board.spec["recipe"] == pl.recipe(name)


def test_moving_a_slider_moves_count_and_spec(board):
    seen = []
    for r in (1, 2, 8):
        board.controls.knobs["r"].value = r
        seen.append(board.text["counts"].value)
        assert board.spec["recipe"][0]["settings"]["r"] == r
    assert len(set(seen)) == 3
    board.controls.grid.mask = [[1, 0, 0, 0, 0, 0], [0] * 6]
    assert board.spec["recipe"] == [dict(method="lora", where="q", layers=[0], settings=dict(r=8, alpha=16))]
    assert 'pl-trained">512<' in board.text["counts"].value  # 8 · (32 + 32)


def test_a_panel_run_is_the_run_of_its_spec(board):
    done = board.run()
    again = pl.run(board.spec, fresh=True)
    assert [r["loss"] for r in done.rows] == [r["loss"] for r in again.rows] and done.score == again.score
    assert board.loss.series[0]["points"] == [[r["step"], r["loss"]] for r in done.rows]
    assert len(board.score.series[0]["points"]) == sum("validation" in r for r in done.rows) >= 1
    assert board.runner.bar.value == board.runner.bar.max == 20 and "done" in board.runner.message.value
    assert f"{done.score:.3f}" in board.text["runs"].value and not board.runner.run_button.disabled


def test_the_mark_of_a_stale_picture(board):
    assert "pl-mark" not in board.text["stale"].value
    board.run()
    assert "pl-mark" not in board.text["stale"].value and "pl-current" in board.text["runs"].value
    board.controls.knobs["r"].value = 16
    assert "pl-mark" in board.text["stale"].value and "pl-current" not in board.text["runs"].value
    board.controls.knobs["r"].value = 4
    assert "pl-mark" not in board.text["stale"].value and "pl-current" in board.text["runs"].value


def test_a_known_run_comes_from_the_ledger_and_is_drawn_whole(board, places):
    done = board.run()
    assert board.run() is done and len(board.results) == len(board.loss.series) == 1
    other = panel("lora", r=4, steps=20, **places)
    assert other.run().cached and other.loss.series[0]["points"] == board.loss.series[0]["points"]
    assert "ledger" in other.runner.message.value


def test_sliders_moved_while_training_do_not_change_the_run(board):
    alone = pl.run(board.spec, fresh=True)
    board.results = []
    show, moves = board.runner.show, iter((32, 16, 8))

    def meddle(rows):
        board.controls.knobs["r"].value = next(moves, 8)
        show(rows)

    board.runner.show, board.fixed["size"], spec = meddle, None, board.spec
    pl.ledger.own().unlink()
    board.runner.start([spec])
    assert [r["loss"] for r in board.results[0].rows] == [r["loss"] for r in alone.rows]
    assert 'pl-trained">' in board.text["counts"].value and "pl-mark" in board.text["stale"].value


def test_a_rank_for_each_layer(board):
    board.controls.each.value = True
    assert board.controls.bars.values == [4, 4] and board.spec["recipe"] == pl.recipe("lora", r=4)
    board.controls.bars.values = [8, 2]
    rows = [dict(method="lora", where="q v", layers=[i], settings=dict(r=r, alpha=16)) for i, r in ((0, 8), (1, 2))]
    assert board.spec["recipe"] == rows
    assert 'pl-trained">1,280<' in board.text["counts"].value  # 2 · (8 + 2) · (32 + 32)
    assert board.run().spec["recipe"] == rows and "r=8/2" in board.text["runs"].value
    board.set(r=[2, 8])
    assert board.controls.bars.values == [2, 8] and board.spec["recipe"][0]["settings"]["r"] == 2
    board.controls.knobs["r"].value = 16  # the slider takes all bars along
    assert board.controls.bars.values == [16, 16] and board.spec["recipe"] == pl.recipe("lora", r=16)
    board.set(method="random-mask")
    assert board.controls.each.value is False and "per layer" in board.controls.each.description
    board.set(p=[0.5, 0.001])
    assert [row["settings"]["p"] for row in board.spec["recipe"]] == [0.5, 0.001]
    board.set(method="prompt")
    assert not {board.controls.each, board.controls.bars, board.controls.grid} & {*board.controls.right.children}


def test_what_a_layer_cannot_have_is_refused(board):
    before = board.spec
    for values, words in (([4], "needs 2 values, one for each layer, not 1"), ([4, -1], "must be at least 1")):
        with pytest.raises(PeftlabError, match=words):
            board.set(r=values)
    with pytest.raises(PeftlabError, match="unknown setting of lora per layer 'alpha'; the nearest is r"):
        board.set(alpha=[1, 2])
    assert board.spec == before


def test_several_seeds_draw_one_band(board):
    board.run()
    board.run_seeds()
    assert [r.spec["seed"] for r in board.results] == [0, 1, 2, 3, 4]
    for chart, key in ((board.loss, "loss"), (board.score, "validation")):
        single, several = chart.series
        assert several["name"] == "lora r=4 alpha=16 · 5 seeds"
        values = [[row[key] for row in r.rows if key in row] for r in board.results]
        for (_, mean, low, high), *of in zip(several["points"], *values, strict=True):
            assert (mean, low, high) == (pytest.approx(sum(of) / 5), min(of), max(of))
    assert "(5 seeds)" in board.text["runs"].value
    board.run_seeds()
    assert len(board.results) == 5


def test_all_sizes_are_a_curve_and_a_row_each(board):
    board.set(steps=2, lr=1e-2)
    button = board.runner.buttons["sizes"]
    assert button.description == "All ranks" and "rank 1, 2, 4, 8, 16, 32, 64" in button.tooltip
    board.run_sizes()
    ranks = [r.spec["recipe"][0]["settings"]["r"] for r in board.results]
    assert ranks == [1, 2, 4, 8, 16, 32], "the tiny backbone is 32 wide"
    assert {(r.spec["lr"], r.spec["recipe"][0]["settings"]["alpha"]) for r in board.results} == {(1e-2, 16)}
    assert [s["name"] for s in board.loss.series] == [f"{i}: lora r={r} alpha=16" for i, r in enumerate(ranks, 1)]
    assert all(len(s["points"]) == 2 for s in board.loss.series)
    assert board.runner.bar.value == board.runner.bar.max == 12
    assert board.text["runs"].value.count("<tr") == 7 and "pl-current" in board.text["runs"].value
    board.run_sizes()
    assert len(board.results) == 6 and "nothing had to run" in board.runner.message.value


def test_only_a_method_with_a_size_offers_them_all(board):
    button = board.runner.buttons["sizes"]
    for name, off in (("adapter", False), ("bitfit", True), ("sam", True)):
        board.set(method=name)
        assert (button.description, button.disabled) == ("All sizes", off)
    with pytest.raises(PeftlabError, match="no size of its own"):
        board.run_sizes()
    board.set(method="lora", r=[8, 2])
    assert board.controls.recipe(r=4) == pl.recipe("lora", r=4), "the bars give way"
    assert all(len(button.description) <= 14 for button in board.runner.buttons.values())


def test_a_stopped_sweep_keeps_what_is_finished_and_says_so(board):
    board.set(steps=2)
    show, board.runner.hz = board.runner.show, 1e9  # every row at once
    board.runner.show = lambda pairs: (show(pairs), pairs[-1][0] == 1 and board.runner.stop())
    board.run_seeds()
    assert [r.stopped for r in board.results] == [False, True] and len(board.loss.series) == 2
    assert "1 of 5 runs are finished and kept" in board.runner.message.value
    board.runner.show = show
    board.run_seeds()
    assert [s["name"] for s in board.loss.series][2:] == ["lora r=4 alpha=16 · 5 seeds"]


def test_what_diverges_is_an_error_alone_and_a_row_in_a_sweep(board):
    board.set(lr=1e30, steps=4)
    with pytest.raises(PeftlabError, match="not finite"):
        board.run()
    board.run_seeds()
    assert [r.score for r in board.results] == [0.0] * 5 and board.text["runs"].value.count("diverged") == 5


def test_what_is_left_goes_to_the_process_that_is_free_first(monkeypatch):
    runner, now = Runner(None, None, lambda pairs: None, key="left"), [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    runner.bar.max = 500
    feed = Feed(runner)
    feed.expect([100] * 5, jobs=2)
    for now[0], step in ((30, 0), (40, 50)):
        feed.waiting = [(run, dict(step=step)) for run in (0, 1)]
        feed.flush()
    assert feed.left() == pytest.approx(50), "10 s for 50 steps of a process; one of them has 50 + 100 + 100 before it"
    assert runner.message.value == "0 of 5 runs done · step 100 of 500 · about 50 s left"


def test_memory_says_how_many_go_on_at_once(board, monkeypatch):
    monkeypatch.delenv("PEFTLAB_HEADLESS")
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    due = [board.spec | dict(seed=seed) for seed in range(5)]
    for gib, jobs in ((64, 5), (2, 2), (0.5, 1)):
        monkeypatch.setattr("peftlab.memory.free", lambda device="cpu", gib=gib: int(gib * 2**30))
        assert board._jobs(due) == jobs
    assert board._jobs(due[:2]) == 1


def test_batch_and_precision_are_settings_and_move_the_memory(board):
    said = [board.text["memory"].value]
    for change in (dict(batch=8), dict(precision="bf16"), dict(method="full")):
        board.set(**change)
        said.append(board.text["memory"].value)
    assert len(set(said)) == 4 and board.spec["batch"] == 8 and board.spec["precision"] == "bf16"
    assert "free on cpu" in said[0]
    with pytest.raises(PeftlabError, match="unknown precision 'fp8'"):
        board.set(precision="fp8")


def test_what_will_not_fit_is_refused_before_it_runs(board, monkeypatch):
    monkeypatch.setattr("peftlab.memory.free", lambda device="cpu": 2**10)
    with pytest.raises(PeftlabError, match="free on cpu; take"):
        board.run()
    assert "free on cpu; take" in board.runner.message.value and not board.results
    assert not board.runner.run_button.disabled and not board.runner.busy


def test_a_gpu_is_named_with_its_free_memory_and_refuses_what_is_too_large_for_it(board, monkeypatch):
    """A pretended one; test_gpu has the same on a real one."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (3 * 2**30, 4 * 2**30))
    board.set(batch=8)
    assert "of 3.0 GiB free on cuda" in board.text["memory"].value
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (2**10, 4 * 2**30))
    with pytest.raises(PeftlabError, match="free on cuda; take"):
        board.run()
    assert "free on cuda; take" in board.runner.message.value and not board.results and not board.runner.busy


def test_baselines_become_lines_with_the_number_of_seeds(board):
    assert [line["name"] for line in board.score.lines] == ["majority"]
    board.run_baselines()
    board.set(seed=1)
    board.run_baselines()
    lines = {line["name"]: line for line in board.score.lines}
    assert set(lines) == {"majority", "head only (2)", "full (2)"}
    full = [r.score for r in board.results if r.spec["recipe"][0]["method"] == "full"]
    assert lines["full (2)"]["value"] == pytest.approx(sum(full) / 2)
    board.set(steps=10)
    assert [line["name"] for line in board.score.lines] == ["majority"], (
        "baselines of other steps are not these baselines"
    )


def test_an_empty_grid_is_told_in_the_panel_and_raised_by_run(board):
    board.controls.grid.mask = [[0] * 6] * 2
    assert "pl-error" in board.text["counts"].value and "at least one site" in board.text["counts"].value
    with pytest.raises(PeftlabError, match="at least one site"):
        board.runner.guard(board.runner.start)()
    assert "pl-error" in board.runner.message.value and not board.runner.busy
    board.set(where="q")
    assert board.run().score is not None


def test_a_rank_above_the_width_is_told(board):
    board.set(r=33)
    assert "rank r = 33" in board.text["counts"].value
    with pytest.raises(PeftlabError, match="rank r = 33"):
        board.run()
    assert not board.runner.busy and not board.runner.run_button.disabled


def test_set_refuses_before_it_moves(board):
    before = board.spec
    for bad in (dict(method="lorra"), dict(r=0), dict(rank=4), dict(where="head")):
        with pytest.raises(PeftlabError):
            board.set(**bad)
        assert board.spec == before and not board.controls.quiet


def test_clear_forgets_the_picture_not_the_ledger(board):
    board.run()
    board.clear()
    assert board.results == board.loss.series == board.score.series == []
    assert board.runner.message.value == "ready"
    assert board.run().cached


def test_the_code_line_repeats_the_run(board, monkeypatch):
    import html
    import re

    board.set(r=2, where="q", layers=[1], seed=3)
    line = html.unescape(re.search(r"<pre>(.*?)</pre>", board.text["code"].value).group(1))
    called = []
    monkeypatch.setattr(pl, "run", called.append, raising=False)
    eval(line, dict(pl=pl))
    assert called == [board.spec]


def test_in_a_thread_stop_keeps_the_rows(board, monkeypatch):
    monkeypatch.delenv("PEFTLAB_HEADLESS")
    board.set(steps=1600)
    show = board.runner.show
    board.runner.show = lambda rows: (show(rows), board.runner.stop_button.click())
    assert board.run() is None
    board.runner.wait(120)
    assert board.result.stopped and 1 <= len(board.result.rows) < 160 and "stopped" in board.runner.message.value
    assert board.loss.series[0]["points"] == [[r["step"], r["loss"]] for r in board.result.rows]
    assert "stopped" in board.text["runs"].value and not board.runner.run_button.disabled
    board.set(steps=20)
    board.runner.show = show
    board.run()
    board.runner.wait(120)
    assert board.result.score is not None


def test_a_new_panel_on_the_same_task_stops_the_older_job(board, places, monkeypatch):
    monkeypatch.delenv("PEFTLAB_HEADLESS")
    began = threading.Event()
    show = board.runner.show
    board.runner.show = lambda rows: (show(rows), began.set())
    board.set(steps=1600)
    board.run()
    assert began.wait(120)
    panel("lora", **places)
    board.runner.wait(120)
    assert board.result.stopped


def job_fails(specs, feed):
    feed.each(dict(step=1))
    raise RuntimeError("<broken>")


def test_an_error_in_a_thread_is_shown_and_not_lost(monkeypatch):
    monkeypatch.delenv("PEFTLAB_HEADLESS")
    runner = Runner(job_fails, lambda: [dict(steps=3)], lambda rows: None, key="fails")
    runner.run_button.click()
    with pytest.raises(RuntimeError, match="broken"):
        runner.wait(60)
    assert "&lt;broken&gt;" in runner.message.value and "pl-error" in runner.message.value
    assert not runner.busy and not runner.run_button.disabled and runner.stop_button.disabled


def test_an_error_is_raised_when_headless():
    runner = Runner(job_fails, lambda: [dict(steps=3)], lambda rows: None, key="fails")
    with pytest.raises(
        RuntimeError, match="broken"
    ):  # a click would do the same in a kernel; outside it is only logged
        runner.start()
    assert not runner.busy


def test_an_interrupt_is_a_stop_where_runs_are_synchronous():
    def job(specs, feed):
        feed.each(dict(step=1))
        raise KeyboardInterrupt

    runner = Runner(job, lambda: [dict(steps=3)], lambda rows: None, key="interrupted")
    runner.run_button.click()
    assert "interrupted after 1 row" in runner.message.value and not runner.busy


@pytest.mark.parametrize("family", [f for f in tiny.CONFIGS if f != "t5"])
def test_controls_fit_every_family(family):
    model, told = tiny.model(family), []
    controls = Controls(model, lambda: told.append(1))
    for name, method in METHODS.items():
        controls.set(method=name)
        here = pl.site_names(model)
        assert name_of(controls.recipe()) == name
        if controls.placed:
            assert controls.grid.sites == [s for s in here if s in method.sites]
            assert len(controls.grid.mask) == pl.n_layers(model)
    assert len(told) >= len(METHODS)
