"""What the browser's tests share: a JupyterLab on a copy of the labs, a Chromium, and ways to look and to wait."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

api_of = pytest.importorskip("playwright.sync_api", reason="needs: pip install playwright")
CHROMIUM = os.environ.get("PEFTLAB_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
if not CHROMIUM:
    pytest.skip("needs Chromium: apt-get install chromium, or PEFTLAB_CHROMIUM=its path", allow_module_level=True)

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOKEN = "peftlab-browser-test"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
READY = """() => { const w = window.jupyterapp && window.jupyterapp.shell.currentWidget;
  const s = w && w.context && w.context.sessionContext && w.context.sessionContext.session;
  return !!(s && s.kernel && s.kernel.connectionStatus === 'connected' && s.kernel.status === 'idle'); }"""
POINTS = """() => { const s = document.querySelector('.pl-panel .pl-live svg');
  return s && s.dataset.n ? s.dataset.n.split(',').map(Number) : []; }"""
ERRORS = """() => [...document.querySelectorAll(
  '.jp-RenderedText[data-mime-type*=stderr], .jp-RenderedText[data-mime-type*=error]')].map(e => e.textContent)"""
CELLS = """() => [...document.querySelectorAll('.pl-panel .pl-mask .pl-cell')]"""
HUNDRED = f"""() => {{ const cells = ({CELLS})(); for (let k = 0; k < 100; k++) cells[k % cells.length].click(); }}"""
WHERE = """() => { const s = window.jupyterapp.shell.currentWidget.context.sessionContext.session;
  return `but the kernel is ${s && s.kernel && s.kernel.status}, and the cells are ` +
    [...document.querySelectorAll('.jp-InputPrompt')].map(e => e.textContent.trim()).filter(t => t).join(' '); }"""
COMMAND = """([name, args]) => { window.done = false;
  window.jupyterapp.commands.execute(name, args).then(() => { window.done = true; }); }"""


def poll(look, timeout=60, step=0.05, otherwise=lambda: ""):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(step)
    raise TimeoutError(f"nothing came of {look} in {timeout} s {otherwise()}")


def wait_for_message(page, words, timeout=120):
    """Until the panel's message says so; else the failure tells what it says instead."""
    poll(lambda: words in text(page, "msg"), timeout, otherwise=lambda: f"but {text(page, 'msg')!r}")


def api(url, path, method="GET", **given):
    head = {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"}
    data = json.dumps(given).encode() if given else None
    request = urllib.request.Request(f"{url}/api/{path}", data, head, method=method)
    body = urllib.request.urlopen(request, timeout=20).read()
    return json.loads(body) if body else None


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Where the pictures go."""
    folder = pathlib.Path(os.environ.get("PEFTLAB_OUT") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A JupyterLab on a copy of the labs: saving must not touch the checkout."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "labs", home / "labs")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={home / 'labs'}",
        f"--IdentityProvider.token={TOKEN}",
        "--LabApp.expose_app_in_browser=True",
    ]
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    settings = home / "settings"
    quiet = settings / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text(json.dumps(dict(fetchNews="false", checkForUpdates=False)))
    env = {k: v for k, v in os.environ.items() if k != "PEFTLAB_HEADLESS"}
    env |= dict(
        JUPYTERLAB_WORKSPACES_DIR=str(home / "ws"),
        JUPYTERLAB_SETTINGS_DIR=str(settings),
        PEFTLAB_HOME=str(home / "home"),
    )
    log = open(home / "log", "w")
    server, address = subprocess.Popen(command, env=env, stdout=log, stderr=log), f"http://127.0.0.1:{port}"

    def up():
        assert server.poll() is None, (home / "log").read_text()[-2000:]
        try:
            return api(address, "status")
        except OSError:
            return None

    try:
        poll(up, 90, 0.2)
        yield address
    finally:
        server.terminate()
        server.wait(20)
        log.close()


@pytest.fixture(scope="module")
def browser():
    with api_of.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def page(url, browser):
    """The tour, opened and run as a whole."""
    page = browser.new_context(viewport=dict(width=1280, height=1500)).new_page()
    show(page, url)
    command(page, "notebook:run-all-cells", 240)
    page.wait_for_selector(".pl-panel .pl-run", timeout=60000)
    return page


def show(page, url, name="00_tour.ipynb"):
    page.goto(f"{url}/lab/tree/{name}?token={TOKEN}&reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=90000)
    poll(lambda: page.evaluate(READY), 90)  # before that, "run all" would be lost


def command(page, name, timeout=90, **args):
    page.evaluate(COMMAND, [name, args])
    poll(lambda: page.evaluate("() => window.done"), timeout, otherwise=lambda: page.evaluate(WHERE))


def text(page, name):
    return page.text_content(f".pl-panel .pl-{name}") or ""


def sight(page, out, name, selector=".pl-panel"):
    page.locator(selector).first.scroll_into_view_if_needed()
    page.wait_for_timeout(400)  # a picture of the page at rest
    page.screenshot(path=str(out / f"{name}.png"))


def slide(page, name, key, times):
    page.locator(f".pl-panel .pl-{name} .noUi-handle").focus()
    for _ in range(times):
        page.keyboard.press(key)
    for _ in range(2):  # a slider's next value waits until the kernel has answered the last one; a click does not
        page.wait_for_timeout(100)
        poll(lambda: page.evaluate(READY), 30)


def press(page, name, key):
    page.locator(f".pl-world {name}").focus()
    page.keyboard.press(key)
