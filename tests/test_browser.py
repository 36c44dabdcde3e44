"""A real JupyterLab in a headless Chromium: open the tour, move a slider, press Run, see the curve, stop."""

import json
import os
import time

import pytest
from browsing import (  # noqa: F401 (fixtures)
    CELLS,
    ERRORS,
    HUNDRED,
    POINTS,
    READY,
    api,
    browser,
    command,
    out,
    page,
    poll,
    press,
    show,
    sight,
    slide,
    text,
    url,
    wait_for_message,
)

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_the_lab_opens_and_runs(page, out):
    sessions = page.evaluate(ERRORS)
    assert not [e for e in sessions if "Error" in e or "Traceback" in e], sessions
    assert page.locator(".js-plotly-plot").count() >= 4, "the figures are drawn"
    page.locator(".jp-Notebook h1").first.scroll_into_view_if_needed()
    sight(page, out, "1-top", ".jp-Notebook h1")


def test_the_first_figure_moves(page, out):
    figure = page.locator(".js-plotly-plot").first
    figure.scroll_into_view_if_needed()
    title = lambda: figure.locator(".gtitle").first.text_content()
    before = title()
    figure.locator(".slider-rail-touch-rect").first.click(position=dict(x=300, y=5), force=True)
    poll(lambda: title() != before, 20)
    assert "numbers" in title()
    sight(page, out, "2-delta", ".js-plotly-plot")


def test_the_taxonomy_switches(page, out):
    figure = page.locator(".js-plotly-plot").nth(1)
    figure.scroll_into_view_if_needed()
    sight(page, out, "3-taxonomy", ".js-plotly-plot >> nth=1")
    words = lambda: figure.locator(".sunburstlayer text").all_text_contents()
    poll(lambda: any("additive" in w for w in words()), 20)
    figure.locator(".updatemenu-button").nth(1).click()
    poll(lambda: any("addition" in w for w in words()), 20)
    sight(page, out, "4-taxonomy-delta-tuning", ".js-plotly-plot >> nth=1")


def test_slider_run_curve_stop(page, out):
    trained = lambda: text(page, "trained")
    before = trained()
    slide(page, "r", "ArrowRight", 1)
    poll(lambda: text(page, "r").strip().endswith("16"), 10)
    poll(lambda: trained() != before, 10)
    assert page.evaluate(POINTS) == [], "counted before anything runs"
    slide(page, "steps", "End", 1)  # long enough to be stopped
    page.locator(".pl-panel .pl-run").click()
    poll(lambda: (n := page.evaluate(POINTS)) and n[0] >= 1, 60)
    first = page.evaluate(POINTS)[0]
    poll(lambda: page.evaluate(POINTS)[0] > first + 1, 60)  # the curve moves
    assert " left" in text(page, "msg")
    sight(page, out, "5-running")
    page.locator(".pl-panel .pl-stop").click()
    wait_for_message(page, "stopped", 60)
    assert "stopped" in text(page, "runs") and page.evaluate(POINTS)[0] > first


def test_a_whole_run_a_click_on_the_grid_and_the_mark(page, out):
    slide(page, "steps", "Home", 1)
    slide(page, "steps", "ArrowRight", 3)  # 100
    cells = page.locator(".pl-panel .pl-mask .pl-cell")
    on = page.locator(".pl-panel .pl-mask .pl-on")
    was = on.count()
    cells.nth(1).click()
    poll(lambda: on.count() == was + 1, 10)
    page.locator(".pl-panel .pl-run").click()
    wait_for_message(page, "done", 120)
    assert "k v (0)" in text(page, "runs") and "accuracy" in text(page, "runs")
    poll(lambda: "pl-mark" not in page.inner_html(".pl-panel .pl-stale"), 10)
    slide(page, "r", "ArrowLeft", 1)
    page.wait_for_selector(".pl-panel .pl-mark", timeout=10000)
    sight(page, out, "6-stale")
    slide(page, "r", "ArrowRight", 1)
    poll(lambda: page.locator(".pl-panel .pl-mark").count() == 0, 10)
    cells.nth(1).click()


def test_rapid_clicks_are_all_counted(page):
    cells, state = (
        page.locator(".pl-panel .pl-mask .pl-cell"),
        lambda: [c == "true" for c in page.evaluate(f"() => ({CELLS})().map(c => c.getAttribute('aria-pressed'))")],
    )
    before, n = state(), cells.count()
    page.evaluate(HUNDRED)
    poll(lambda: state() == [b ^ bool((100 // n + (i < 100 % n)) % 2) for i, b in enumerate(before)], 10)
    page.evaluate(HUNDRED)
    poll(lambda: state() == before, 10)


def test_the_grid_by_keyboard(page):
    page.locator(".pl-panel .pl-mask .pl-head").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    label = page.evaluate("() => document.activeElement.getAttribute('aria-label')")
    assert label.startswith("layer 0, site")
    was = page.evaluate("() => document.activeElement.getAttribute('aria-pressed')")
    page.keyboard.press("Space")
    poll(lambda: page.evaluate("() => document.activeElement.getAttribute('aria-pressed')") != was, 10)
    page.keyboard.press("Space")
    poll(lambda: page.evaluate("() => document.activeElement.getAttribute('aria-pressed')") == was, 10)


def test_baselines_become_lines(page, out):
    page.locator(".pl-panel .pl-clear").click()
    wait_for_message(page, "ready", 10)  # or the "done" of the run before would pass for that of the baselines
    poll(lambda: page.evaluate(POINTS) == [], 10)
    slide(page, "steps", "Home", 1)  # 10 steps: no shipped result has so few
    poll(lambda: not any("head only" in t for t in names(page)), 10)
    page.locator(".pl-panel .pl-baselines").click()
    wait_for_message(page, "done", 120)
    told = lambda: {t.rsplit(" ", 1)[0] for t in names(page)}
    poll(lambda: {"majority", "head only (1)", "full (1)"} <= told(), 20, otherwise=lambda: f"but {told()}")
    page.locator(".pl-panel .pl-run").click()
    poll(lambda: len(page.evaluate(POINTS)) == 3 and "done" in text(page, "msg"), 120)
    sight(page, out, "6-baselines")


def names(page):
    """The words beside the dashed lines, without their tooltips."""
    return page.evaluate(
        "() => [...document.querySelectorAll('.pl-panel .pl-live svg .pl-name')].map(t => t.firstChild.textContent)"
    )


def test_a_value_per_layer_by_mouse_and_keyboard(page, out):
    page.locator(".pl-panel .pl-each input").click()
    tracks = page.locator(".pl-panel .pl-track")
    poll(lambda: tracks.count() == 4 and tracks.first.is_visible(), 10)
    now = lambda i: int(tracks.nth(i).get_attribute("aria-valuenow"))
    before = now(0), text(page, "trained")
    tracks.first.focus()
    page.keyboard.press("ArrowUp")
    poll(lambda: now(0) == 2 * before[0] and text(page, "trained") != before[1], 10)
    tracks.nth(3).click(position=dict(x=15, y=82))
    poll(lambda: now(3) == 1, 10)
    sight(page, out, "6-per-layer")
    page.locator(".pl-panel .pl-each input").click()
    poll(lambda: text(page, "trained") == before[1], 10)


def test_the_map_of_entries_zooms(page, out):
    page.locator(".pl-panel .pl-entries").click()
    title = lambda: page.text_content(".pl-panel .pl-heat-title") or ""
    page.locator(".pl-panel .pl-heat .pl-row", has_text="layer 1").click()
    poll(lambda: "layer 1:" in title(), 10)
    sight(page, out, "6-entries-layer")
    page.locator(".pl-panel .pl-heat .pl-row", has_text="q weight").click()
    poll(lambda: "128 × 128" in title() and "100.000%" in title(), 10)  # LoRA changes all of W
    page.evaluate("() => { const b = document.querySelector('.pl-panel .pl-back'); b.click(); b.click(); }")
    poll(lambda: "open a layer" in title(), 10)  # both count, though the second came before any answer
    before = title()
    page.locator(".pl-panel .pl-method select").select_option("MagPruning")
    poll(lambda: title() != before, 20)  # a row that is drawn anew under the mouse is not clicked
    page.locator(".pl-panel .pl-heat .pl-row", has_text="layer 1").click()
    page.locator(".pl-panel .pl-heat .pl-row", has_text="q weight").click()
    poll(lambda: "128 × 128" in title() and "100.000%" not in title(), 10)
    sight(page, out, "6-entries-tensor")
    page.locator(".pl-panel .pl-method select").select_option("LoRA")
    page.locator(".pl-panel .pl-entries").click()


def test_seeds_become_a_band(page, out):
    picture = os.environ.get("PEFTLAB_PICTURE")  # the README's is made like this, with as many steps as a run has
    if picture:
        page.locator(".pl-panel .pl-clear").click()
        slide(page, "steps", "ArrowRight", 4)
    page.locator(".pl-panel .pl-seeds").first.click()
    poll(lambda: "done" in text(page, "msg") and page.locator(".pl-panel polygon.pl-seeds").count() == 2, 120)
    assert "(5 seeds)" in text(page, "runs")
    sight(page, out, "6-seeds")
    page.locator(".pl-panel").first.screenshot(path=picture or str(out / "panel.png"))


STOPS = "method r alpha lr steps batch seed precision each entries run seeds sizes baselines clear".split()
HERE = """() => { const e = document.activeElement, all = [];
  for (let p = e; p; p = p.parentElement) all.push(...p.classList);
  return all.includes('pl-panel') ? [...all, e.tagName, e.getAttribute('role') || ''] : null; }"""


def test_all_of_the_panel_is_reached_with_the_tab_key(page):
    page.locator(".pl-panel .pl-method select").focus()
    seen = []
    while (here := page.evaluate(HERE)) is not None and len(seen) < 60:
        seen.append(here)
        page.keyboard.press("Tab")
    reached = {name for here in seen for name in here}
    assert {f"pl-{name}" for name in STOPS} <= reached, {f"pl-{name}" for name in STOPS} - reached
    assert {"pl-mask", "pl-legend", "SUMMARY"} <= reached


def test_the_panel_answers_while_it_trains(page, out):
    """How fast it is goes into panel.json beside the pictures: seconds, on whatever machine this is."""
    clock, took = time.perf_counter, {}
    page.locator(".pl-panel .pl-clear").click()
    poll(lambda: page.evaluate(POINTS) == [], 10)
    slide(page, "steps", "End", 1)
    started = clock()
    page.locator(".pl-panel .pl-run").click()
    poll(lambda: page.evaluate(POINTS) not in ([], [0]), 60, 0.005)
    took["click on Run to the first point"] = clock() - started
    for key in ("ArrowRight", "ArrowLeft"):
        was = text(page, "trained")
        page.locator(".pl-panel .pl-r .noUi-handle").focus()
        started, said = clock(), text(page, "r")
        page.keyboard.press(key)
        poll(lambda said=said: text(page, "r") != said, 10, 0.005)
        took[f"slider's echo while training, {key}"] = clock() - started
        poll(lambda was=was: text(page, "trained") != was, 10, 0.005)
        took[f"count while training, {key}"] = clock() - started
    started = clock()
    page.locator(".pl-panel .pl-stop").click()
    poll(lambda: "stopped" in text(page, "msg"), 60, 0.005)
    took["click on Stop to the end of the run"] = clock() - started
    (out / "panel.json").write_text(json.dumps(took, indent=1))
    assert len(took) == 6 and "stopped" in text(page, "runs")


def test_an_error_is_shown_in_the_panel(page, out):
    page.locator(".pl-panel .pl-mask .pl-head").first.click()  # everything on
    page.locator(".pl-panel .pl-mask .pl-head").first.click()  # everything off
    poll(lambda: "at least one site" in text(page, "counts"), 10)
    page.locator(".pl-panel .pl-run").click()
    wait_for_message(page, "at least one site", 10)
    sight(page, out, "7-error")


def test_the_micro_world_unfolds(page, out):
    assert not page.locator(".pl-world .pl-another").is_visible(), "the section is folded"
    command(page, "notebook:expand-all-headings")
    page.wait_for_selector(".pl-world .pl-another", timeout=60000)
    fold = page.locator(".pl-world details").first
    fold.locator("summary").click()
    poll(lambda: fold.locator("td").first.is_visible(), 10)
    sight(page, out, "8-grammar", ".pl-world >> nth=0")
    fold.locator("summary").click()


def test_the_explorer_shows_other_rows(page, out):
    rows = lambda: page.locator(".pl-world .pl-rows").inner_html()
    for act, shows in {
        lambda: page.locator(".pl-world .pl-another").click(): "<td>",
        lambda: page.locator(".pl-world .pl-kind select").select_option("entail"): "second text",
        lambda: page.locator(".pl-world .pl-lang select").select_option("second language"): "<rt>",
        lambda: press(page, ".pl-noise .noUi-handle", "End"): "<del>",
        lambda: press(page, ".pl-poison .noUi-handle", "End"): "<mark>lantern</mark>",
        lambda: page.locator(".pl-world .pl-kind select").select_option("describe"): "poison needs classes",
    }.items():
        before = rows()
        act()
        poll(lambda before=before, shows=shows: rows() != before and shows in rows(), 30)
        if shows == "<mark>lantern</mark>":
            sight(page, out, "8-explorer", ".pl-world .pl-kind")
    for knob in ("noise", "poison"):
        press(page, f".pl-{knob} .noUi-handle", "Home")
    poll(lambda: "<table>" in rows(), 30)


def test_a_blank_is_filled(page, out):
    filled = lambda: page.text_content(".pl-world .pl-filled") or ""
    page.locator(".pl-world .pl-lang select").select_option("English")
    poll(lambda: "The soup was ___" in filled(), 30)
    sentence = page.locator(".pl-world .pl-sentence input")
    sentence.fill("The waiter was ___ and the ___ was dirty.")
    poll(lambda: "blank 2" in filled(), 30, otherwise=filled)
    assert page.locator(".pl-world .pl-filled .pl-bars i").count() == 16
    sentence.fill("The ___ was very ")
    sentence.press_sequentially("angry, so we left early.")  # the bars follow each letter, and no letter is lost
    poll(lambda: "The ___ was very angry, so we left early." in filled() and "%" in filled(), 30, otherwise=filled)
    assert sentence.input_value() == "The ___ was very angry, so we left early."
    sentence.fill("The guitarist was ___.")
    poll(lambda: "unknown word" in filled() and "guitarist" in filled(), 30, otherwise=filled)
    page.locator(".pl-world .pl-example-polarity").click()
    poll(lambda: "The soup was ___" in filled() and "%" in filled(), 30)


def test_narrow_and_dark(page, out):
    for width in (1280, 1000):
        page.set_viewport_size(dict(width=width, height=1500))
        page.wait_for_timeout(500)
        sight(page, out, f"8-light-{width}")
        sight(page, out, f"8-light-{width}-world", ".pl-world .pl-kind")
        wide = page.evaluate(
            "() => [...document.querySelectorAll('.pl-panel, .pl-world')].map(p => [p.scrollWidth, p.clientWidth])"
        )
        assert all(need <= have + 1 for need, have in wide), f"something needs scrolling sideways at {width} px: {wide}"
    command(page, "apputils:change-theme", theme="JupyterLab Dark")
    page.set_viewport_size(dict(width=1280, height=1500))
    poll(lambda: page.evaluate("() => document.body.dataset.jpThemeLight") == "false", 20)
    sight(page, out, "9-dark")
    sight(page, out, "9-dark-world", ".pl-world .pl-kind")
    for i in range(5):
        sight(page, out, f"9-dark-figure-{i}", f".js-plotly-plot >> nth={i}")
    command(page, "apputils:change-theme", theme="JupyterLab Light")


def test_a_reload_shows_the_state(page, url):
    shown = page.evaluate(POINTS)
    command(page, "docmanager:save")
    show(page, url)
    page.wait_for_selector(".pl-panel .pl-live svg", timeout=60000)
    poll(lambda: page.evaluate(POINTS) == shown, 20)
    assert "accuracy" in text(page, "runs")


def test_opening_a_panel_sends_little(page, url):
    """All that the kernel sends from the click on "run" on, in a notebook of its own."""
    cell = lambda code: dict(cell_type="code", source=code, metadata={}, outputs=[], execution_count=None)
    cells = [cell("import peftlab as pl\npl.panel"), cell("pl.panel('lora')")]
    kernel = dict(kernelspec=dict(name="python3", display_name="Python 3", language="python"))
    book = dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5)
    api(url, "contents/one.ipynb", "PUT", type="notebook", content=book)
    sizes, other = [], page.context.new_page()
    other.on("websocket", lambda ws: ws.on("framereceived", lambda data: sizes.append(len(data))))
    show(other, url, "one.ipynb")
    command(other, "notebook:run-cell-and-select-next")
    sizes.clear()
    command(other, "notebook:run-cell")
    other.wait_for_selector(".pl-panel .pl-run", timeout=60000)
    other.wait_for_timeout(1000)
    print(f"opening a panel: {sum(sizes):,} bytes in {len(sizes)} frames")
    assert 10_000 < sum(sizes) <= 100_000
    other.close()
