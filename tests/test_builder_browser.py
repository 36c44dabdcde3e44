"""The builder in a real JupyterLab: ticks move the bar, what is too much is taken back, a run is drawn."""

import nbformat
import pytest
from browsing import (  # noqa: F401 (fixtures)
    ERRORS,
    POINTS,
    api,
    browser,
    command,
    out,
    poll,
    show,
    sight,
    text,
    url,
    wait_for_message,
)

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CELL = "import peftlab as pl\nbuilder = pl.builder(budget=16_384, steps=20)\nbuilder"


@pytest.fixture(scope="module")
def page(url, browser):
    python = dict(kernelspec=dict(name="python3", display_name="Python 3"))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)], metadata=python)
    api(url, "contents/builder.ipynb", "PUT", type="notebook", format="json", content=book)
    page = browser.new_context(viewport=dict(width=1280, height=1500)).new_page()
    show(page, url, "builder.ipynb")
    command(page, "notebook:run-all-cells", 240)
    page.wait_for_selector(".pl-panel .pl-blocks .pl-block", timeout=60000)
    return page


def block(page, name, label):
    return page.locator(f'.pl-blocks .pl-block[aria-label^="{name}, {label}"]')


def pressed(page):
    return page.locator('.pl-blocks .pl-block[aria-pressed="true"]').count()


def number(page, name):
    return int(text(page, name).replace(",", ""))


def test_a_tick_moves_bar_and_count_and_one_too_many_is_taken_back(page, out):
    assert number(page, "total") == 0 and not page.evaluate(ERRORS)
    sight(page, out, "b-1-empty")
    block(page, "lora", "layer 0").click()
    poll(lambda: number(page, "trained") == number(page, "total") == 4096, 20)
    wide = "() => document.querySelector('.pl-purse').children[3].getBoundingClientRect().width"
    whole = "() => document.querySelector('.pl-purse').getBoundingClientRect().width"
    assert page.evaluate(wide) == pytest.approx(page.evaluate(whole) / 4, rel=0.05)
    assert page.locator(".pl-purse").get_attribute("aria-valuenow") == "4096"
    for i in (1, 2, 3):
        block(page, "lora", f"layer {i}").click()
    poll(lambda: number(page, "total") == 16384 and pressed(page) == 4, 20)
    block(page, "prefix", "layer 2").click()
    poll(lambda: "2,048 numbers above the budget" in text(page, "refused"), 20)
    poll(lambda: number(page, "total") == 16384 and pressed(page) == 4, 20)
    sight(page, out, "b-2-refused")
    block(page, "lora", "layer 1").click()
    poll(lambda: number(page, "total") == 12288 and not text(page, "refused"), 20)


def test_a_slider_sticks_where_the_budget_ends(page, out):
    slider = page.locator(".pl-blocks .pl-size-lora")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    poll(lambda: slider.get_attribute("aria-valuetext") == "rank 6" and number(page, "total") == 9216, 20)
    page.keyboard.press("End")
    poll(lambda: "with rank 8 it fits" in text(page, "refused"), 20)
    poll(lambda: slider.get_attribute("aria-valuetext") == "rank 6" and number(page, "total") == 9216, 20)


def test_a_known_recipe_is_run_and_drawn(page, out):
    page.locator(".pl-panel .pl-start select").select_option("s4")
    poll(lambda: number(page, "total") == 15640 and pressed(page) == 10, 20)
    poll(lambda: number(page, "trained") == 15640, 20)
    sight(page, out, "b-3-s4")
    page.locator(".pl-panel .pl-run").click()
    wait_for_message(page, "done", 120)
    poll(lambda: "s4: " in text(page, "runs") and "15,640" in text(page, "runs"), 20)
    assert page.evaluate(POINTS)[0] >= 1 and page.locator(".pl-panel .pl-sketch").count() == 1
    sight(page, out, "b-4-run")


def test_cells_by_keyboard(page):
    page.locator(".pl-blocks .pl-block[tabindex='0']").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    label = lambda: page.evaluate("() => document.activeElement.getAttribute('aria-label')")
    assert label().startswith("prefix, group 2")
    page.keyboard.press("Space")
    poll(lambda: pressed(page) == 9, 20)
    assert label().startswith("prefix, group 2"), "the focus stays where it was"
    page.locator(".pl-panel .pl-grouping select").select_option("all layers")
    poll(lambda: pressed(page) == 0 and page.locator(".pl-blocks .pl-block").count() == 4, 20)


def test_it_is_narrow_when_it_has_to_be_and_a_reload_shows_the_state(page, url, out):
    page.locator(".pl-panel .pl-start select").select_option("s4")
    poll(lambda: number(page, "total") == 15640 and pressed(page) == 10, 20)
    page.set_viewport_size(dict(width=760, height=1500))
    sight(page, out, "b-5-narrow")
    wide = page.evaluate(
        "() => [...document.querySelectorAll('.pl-panel, .pl-scroll')].map(p => [p.scrollWidth, p.clientWidth])"
    )
    assert wide and all(need <= have + 1 for need, have in wide)
    page.set_viewport_size(dict(width=1280, height=1500))
    command(page, "docmanager:save")
    show(page, url, "builder.ipynb")
    page.wait_for_selector(".pl-panel .pl-blocks .pl-block", timeout=60000)
    poll(lambda: number(page, "total") == 15640 and pressed(page) == 10 and "s4: " in text(page, "runs"), 20)
    block(page, "lora", "group 1").click()
    poll(lambda: number(page, "trained") == 15640 - 2048, 20)
