"""The micro-world: a grammar whose documents have a meaning, its corpus and task, and backbones pretrained on it."""
