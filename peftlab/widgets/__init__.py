"""Widgets: a live curve, a grid of layers and sites, a job behind Run and Stop, the panel made of them, the builder of
hybrids, and the explorer of the micro-world."""

from .builder import Builder, builder
from .curve import Curve
from .entries import Entries
from .grid import LayerBars, MaskGrid
from .panel import Panel, panel
from .runner import Runner
from .world import Explorer, explore

__all__ = [
    "Builder",
    "Curve",
    "Entries",
    "Explorer",
    "LayerBars",
    "MaskGrid",
    "Panel",
    "Runner",
    "builder",
    "explore",
    "panel",
]
