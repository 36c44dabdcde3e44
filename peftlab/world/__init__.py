"""The micro-world: a grammar whose documents have a meaning, its corpus and task, and backbones pretrained on it."""

VERSION = 3  # of the tasks' bytes: another one when any of them changes, so that results of before are not found again
