"""Bad input gets one sentence that says what was wrong and what would be right."""

import difflib
import os
import sys


class PeftlabError(ValueError):
    """A mistake in what was asked for, told in one sentence; nothing has been changed when it is raised."""


def choose(name, choices, what, also=""):
    """`name` if it is one of `choices`, else a PeftlabError that offers the nearest of them (and what `also` says)."""
    choices = [str(c) for c in choices]
    if name in choices:
        return name
    near = difflib.get_close_matches(str(name), choices, n=3, cutoff=0.4) or choices[:8]
    raise PeftlabError(
        f"unknown {what} {name!r}; the nearest {'is' if len(near) == 1 else 'are'} {', '.join(near)}{also}"
    )


def exit_code(command):
    """What command() returns, else 0; 2 for bad input (one line on stderr), 130 when stopped by Ctrl-C, 141 when the
    reader of its output, such as `head`, has seen enough.
    """
    try:
        code = command() or 0
        sys.stdout.flush()
        return code
    except PeftlabError as problem:
        print(f"peftlab: {' '.join(str(problem).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("peftlab: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 141
