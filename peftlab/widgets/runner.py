"""Run, Stop and progress around one job: in a daemon thread, or at once where a thread could not reach the page."""

import asyncio
import functools
import heapq
import html
import operator
import threading
import time
import traceback

import ipywidgets as W

from .. import labs

HELD = 0.3  # seconds for a value that the page held back: idle to the page, the value to the kernel
_LIVE = {}  # key -> Runner: rerunning a cell stops the job of the panel that it replaces


def retire(key):
    """Stop the job of an older panel with this key, if there is one."""
    if key in _LIVE:
        _LIVE[key].stop()


def soon(act):
    """Call act() when the values have come that the page still holds back; at once where runs are synchronous.

    A slider's last value waits in the page until the kernel has answered the one before. A click does not wait, and
    would run the settings of before.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # no kernel, so no page
        loop = None
    if loop and not labs.synchronous():
        loop.call_later(HELD, act)
    else:
        act()


class Runner:
    """Buttons and a message around `job(specs, feed)`, where feed.each(row) takes a row and true means: stop.

    plan() lists the specs that a click on Run asks for. more: other buttons, as `button` takes them; `buttons` has them
    by their name. show(pairs) gets new rows, each after the number of its run, at most `hz` times a second, and may not
    print.
    An error in the job or a callback is shown in the message, raised again when headless, and leaves Run ready.
    """

    def __init__(self, job, plan, show, key="panel", hz=8, more=(), layout=None):
        self.job, self.plan, self.show, self.hz = job, plan, show, hz
        self._halt, self._lock, self._thread = threading.Event(), threading.Lock(), None
        self.busy, self.error = False, None
        self.look = dict(layout=layout or W.Layout(width="auto"), style=W.ButtonStyle())  # one of each: they are sent
        self.run_button = self.button("Run", "run", "train with these settings", self.start, "success", "play")
        halt = "stop after the current step"
        self.stop_button = self.button("Stop", "stop", halt, self.stop, icon="stop", disabled=True, when=operator.call)
        self.bar = W.IntProgress(layout=self.look["layout"], _dom_classes=("pl-bar",))
        self.message = W.HTML("ready", layout=self.look["layout"], _dom_classes=("pl-msg",))
        self.buttons = {name: self.button(text, name, *rest) for text, name, *rest in more}
        self.view = W.HBox(
            [self.run_button, self.stop_button, *self.buttons.values(), self.bar, self.message],
            layout=self.look["layout"],
            _dom_classes=("pl-row", "pl-actions"),
        )
        retire(key)
        _LIVE[key] = self

    def button(self, text, name, tooltip, act, style="", icon="", disabled=False, when=soon):
        """A button whose errors are shown in the message. when(act) calls act."""
        more = dict(button_style=style, icon=icon, disabled=disabled, _dom_classes=(f"pl-{name}",))
        made = W.Button(description=text, tooltip=tooltip, **more, **self.look)
        guarded = self.guard(act)
        made.on_click(lambda _: when(guarded))
        return made

    def guard(self, callback):
        """A callback whose error is seen: JupyterLab would hide it."""

        @functools.wraps(callback)
        def guarded():
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
    """Carries rows from the training loops to the page, at most `hz` times a second, and says how long is left."""

    def __init__(self, runner):
        self.runner, self.waiting, self.n = runner, [], 0
        self.born, self.sent = time.monotonic(), 0.0
        self.first, self.worked, self.ended = None, 0, 0  # when the first row came, steps since, runs that are finished
        self.expect([runner.bar.max])

    def expect(self, steps, jobs=1):
        """Runs of so many steps each lie ahead, of which `jobs` go on at once."""
        self.steps, self.at, self.jobs = list(steps), [0] * len(steps), jobs
        self.runner.bar.max = max(1, sum(steps))

    def each(self, row, run=0):
        """A row of the run with this number; the answer is whether it should stop."""
        self.waiting.append((run, row))
        self.n += 1
        if time.monotonic() - self.sent > 1 / self.runner.hz:
            self.flush()
        return self.stopped

    def done(self, run):
        """The run with this number is finished; it had no rows when it was known."""
        self.flush()
        self.at[run], self.ended = self.steps[run], self.ended + 1
        self.tell()

    @property
    def stopped(self):
        return self.runner._halt.is_set()

    def flush(self):
        """Show the rows that wait."""
        if not self.waiting:
            return
        rows, self.waiting, self.sent = self.waiting, [], time.monotonic()
        self.runner.show(rows)
        before = sum(self.at)
        for run, row in rows:
            self.at[run] = row["step"]
        self.worked += sum(self.at) - before if self.first else 0
        self.first = self.first or self.sent
        self.tell()

    def tell(self):
        """Bar and message, as things stand."""
        step, total, runs = sum(self.at), self.runner.bar.max, len(self.steps)
        self.runner.bar.value = step
        many = f"{self.ended} of {runs} runs done · " if runs > 1 else ""
        left = f" · about {self.left():.0f} s left" if self.worked > total / 200 else ""  # too few steps tell nothing
        self.runner.message.value = f"{many}step {step} of {total}{left}"

    def left(self):
        """Seconds to the end: each run takes the process that is free first, and each process goes on as until now."""
        free = [0] * self.jobs
        for ahead in (s - a for s, a in zip(self.steps, self.at, strict=True)):
            heapq.heapreplace(free, free[0] + ahead)
        return max(free) * min(self.jobs, len(self.steps)) * (self.sent - self.first) / self.worked

    def summary(self):
        took = time.monotonic() - self.born
        if self.stopped:
            kept = f"; {self.ended} of {len(self.steps)} runs are finished and kept" if len(self.steps) > 1 else ""
            return f"stopped after {self.n} rows{kept} · {took:.1f} s"
        self.runner.bar.value = self.runner.bar.max
        return f"done in {took:.1f} s" if self.n else "done · known from the ledger, nothing had to run"
