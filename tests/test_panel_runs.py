"""What a panel runs, without a browser: one run, or seeds and sizes side by side; stopped, failed, or in a thread."""

import asyncio
import threading
import time

import pytest
from boards import headless, home, places  # noqa: F401

import peftlab as pl
from peftlab.errors import PeftlabError
from peftlab.widgets import Runner, panel
from peftlab.widgets.runner import Feed


@pytest.fixture
def board(places, home):
    return panel("lora", r=4, steps=20, **places)


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


def test_clear_forgets_the_picture_not_the_ledger(board):
    board.run()
    board.clear()
    assert board.results == board.loss.series == board.score.series == []
    assert board.runner.message.value == "ready"
    assert board.run().cached


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


def test_a_click_on_run_waits_for_the_last_value_of_a_slider_and_one_on_stop_does_not(monkeypatch):
    monkeypatch.delenv("PEFTLAB_HEADLESS")
    slider, made = dict(steps=1), []

    def job(specs, feed):
        made.extend(specs)
        while not feed.stopped:
            time.sleep(0.01)

    runner = Runner(job, lambda: [dict(slider)], lambda rows: None, key="overtaken")

    async def kernel():
        runner.run_button.click()
        slider.update(steps=2)  # held back by the page until now
        while not made:
            await asyncio.sleep(0.01)
        runner.stop_button.click()
        assert runner._halt.is_set()

    asyncio.run(asyncio.wait_for(kernel(), 60))
    runner.wait(60)
    assert made == [dict(steps=2)]


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
