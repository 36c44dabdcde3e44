"""Widgets: a live curve, a grid of layers and sites, a job behind Run and Stop, and the panel made of them."""

from .curve import Curve
from .grid import MaskGrid
from .panel import Panel, panel
from .runner import Runner

__all__ = ["Curve", "MaskGrid", "Panel", "Runner", "panel"]
