"""Bad input gets one sentence that says what was wrong and what would be right."""

import difflib


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
