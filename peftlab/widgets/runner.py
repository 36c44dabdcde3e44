"""Run, Stop and progress around one job: in a daemon thread, or at once where a thread could not reach the page."""

import functools
import html
import threading
import time
import traceback

import ipywidgets as W

from .. import labs

_LIVE = {}  # key -> Runner: rerunning a cell stops the job of the panel that it replaces


def retire(key):
    """Stop the job of an older panel with this key, if there is one."""
    if key in _LIVE:
        _LIVE[key].stop()


class Runner:
    """Buttons and a message around `job(specs, feed)`, where feed.each(row) takes a row and true means: stop.

    plan() lists the specs that a click on Run asks for. more: other buttons, as `button` takes them. show(rows) gets
    new rows at most `hz` times a second, and may not print.
    An error in the job or a callback is shown in the message, raised again when headless, and leaves Run ready.
    """

    def __init__(self, job, plan, show, key="panel", hz=8, more=(), layout=None):
        self.job, self.plan, self.show, self.hz = job, plan, show, hz
        self._halt, self._lock, self._thread = threading.Event(), threading.Lock(), None
        self.busy, self.error = False, None
        self.look = dict(layout=layout or W.Layout(width="auto"), style=W.ButtonStyle())  # one of each: they are sent
        self.run_button = self.button("Run", "run", "train with these settings", self.start, "success", "play")
        halt = "stop after the current step"
        self.stop_button = self.button("Stop", "stop", halt, self.stop, icon="stop", disabled=True)
        self.bar = W.IntProgress(layout=self.look["layout"], _dom_classes=("pl-bar",))
        self.message = W.HTML("ready", layout=self.look["layout"], _dom_classes=("pl-msg",))
        self.view = W.HBox(
            [self.run_button, self.stop_button, *(self.button(*b) for b in more), self.bar, self.message],
            layout=self.look["layout"],
            _dom_classes=("pl-row", "pl-actions"),
        )
        retire(key)
        _LIVE[key] = self

    def button(self, text, name, tooltip, act, style="", icon="", disabled=False):
        """A button whose errors are shown in the message."""
        more = dict(button_style=style, icon=icon, disabled=disabled, _dom_classes=(f"pl-{name}",))
        made = W.Button(description=text, tooltip=tooltip, **more, **self.look)
        made.on_click(self.guard(act))
        return made

    def guard(self, callback):
        """A callback whose error is seen: JupyterLab would hide it."""

        @functools.wraps(callback)
        def guarded(_=None):
            try:
                callback()
            except Exception as e:
                self.fail(e)

        return guarded

    def fail(self, e):
        """Show the error in the panel; an unforeseen one with its last lines. Raised again when headless."""
        self.error, self.bar.value = e, 0
        known = isinstance(e, ValueError)
        text = str(e) if known else f"{type(e).__name__}: {e}"
        trace = "" if known else f"<details><summary>where</summary><pre>{html.escape(_last_lines(e))}</pre></details>"
        self.message.value = f'<span class="pl-error" role="alert">{html.escape(text)}</span>{trace}'
        if labs.headless():
            raise e

    def start(self, specs=None):
        """Start the job, unless one is running: in a thread, or right here when headless or on Colab."""
        specs = specs or self.plan()
        with self._lock:  # callbacks may come from more than one thread
            if self.busy:
                return
            self.busy = True
        self._halt.clear()
        self.error = None
        self.run_button.disabled, self.stop_button.disabled = True, False
        self.bar.value, self.bar.max, self.message.value = 0, sum(s["steps"] for s in specs), "starting"
        if labs.synchronous():
            return self._work(specs)
        self._thread = threading.Thread(target=self._work, args=(specs,), name="peftlab-job", daemon=True)
        self._thread.start()

    def stop(self):
        """Ask the job to stop after its current step."""
        self._halt.set()

    def wait(self, timeout=None):
        """Wait for the thread to end; raises the job's error."""
        if self._thread:
            self._thread.join(timeout)
        if self.error:
            raise self.error

    def _work(self, specs):
        feed = Feed(self)
        try:
            self.job(specs, feed)
            feed.flush()
            self.message.value = feed.summary()
        except KeyboardInterrupt:  # the kernel's interrupt is Stop in the synchronous mode
            feed.flush()
            self.message.value = f"interrupted after {feed.n} rows"
        except Exception as e:
            feed.flush()
            self.fail(e)
        finally:
            self.busy = False
            self.stop_button.disabled, self.run_button.disabled = True, False  # last: a new run may start now


def _last_lines(e):
    return "".join(traceback.format_exception(e)[-4:])


class Feed:
    """Carries rows from the training loop to the page, at most `hz` times a second, and says how long is left."""

    def __init__(self, runner):
        self.runner, self.waiting, self.n, self.before = runner, [], 0, 0  # before: steps of runs that are done
        self.born, self.sent = time.monotonic(), 0.0

    def each(self, row):
        self.waiting.append(row)
        self.n += 1
        if time.monotonic() - self.sent > 1 / self.runner.hz:
            self.flush()
        return self.stopped

    def next(self, steps):
        """One run of `steps` is over; the next rows belong to another."""
        self.flush()
        self.before += steps

    @property
    def stopped(self):
        return self.runner._halt.is_set()

    def flush(self):
        if self.waiting:
            rows, self.waiting, self.sent = self.waiting, [], time.monotonic()
            self.runner.show(rows)
            step, total = self.before + rows[-1]["step"], self.runner.bar.max
            self.runner.bar.value = step
            left = (self.sent - self.born) * (total - step) / max(step, 1)
            self.runner.message.value = f"step {step} of {total} · about {left:.0f} s left"

    def summary(self):
        took = time.monotonic() - self.born
        if self.stopped:
            return f"stopped after {self.n} rows · {took:.1f} s"
        self.runner.bar.value = self.runner.bar.max
        return f"done in {took:.1f} s" if self.n else "done · known from the ledger, nothing had to run"
