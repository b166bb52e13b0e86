"""A rendered production line: a data set for machines that have none, with defects from obvious to hard.

Drawn by numpy and OpenCV alone, in seconds, and the same for the same seed.
"""

from __future__ import annotations

from trainer.rendered.dataset import STATIONS, RenderedImage, render_line

__all__ = ["STATIONS", "RenderedImage", "render_line"]
