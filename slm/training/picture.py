"""What all pictures have in common. Their colours are Okabe and Ito's (2008), which colour-blind people tell apart."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from slm.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WARM = VERMILION, ORANGE, PURPLE = "#d55e00", "#e69f00", "#cc79a7"
COOL = BLUE, GREEN, SKY = "#0072b2", "#009e73", "#56b4e9"
GREY = "#555555"


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """An empty figure, in inches, which needs no display. A dollar in its title is a dollar."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=12, parse_math=False, wrap=True)
    return figure


def tidy(axes: Axes) -> None:
    """A faint grid, and no frame above and on the right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def save(path: Path, figure: Figure) -> None:
    """Write `figure` as PNG, whole or not at all."""
    with replacing(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters in the title that the font lacks
        figure.savefig(file, format="png", dpi=110)
