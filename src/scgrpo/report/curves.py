"""Draws charts with matplotlib: as SVG inside the page, or all in one PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scgrpo.errors import MissingExtraError, RunError
from scgrpo.report.charts import Chart, Line, build_charts, trailing_mean
from scgrpo.report.view import load_views
from scgrpo.runs.files import replace_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]  # [height, width, RGBA]

# Drawn in these colours; in the page each becomes a CSS variable, so that it can follow a dark theme.
INK, FAINT = "#1d2329", "#c9ced4"
COLOURS = ("#1f5fa8", "#b4500a", "#2a7446", "#86398b", "#6f6200", "#9c2b3a")
DASHES = ("solid", "dashed", "dashdot", "dotted")
_RC = {
    "font.family": "sans-serif",
    "font.size": 8.0,
    "text.parse_math": False,  # a run called "$x$" is a name, not a formula
    "svg.fonttype": "none",
    "svg.hashsalt": "scgrpo",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "grid.color": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_SIZE = (4.3, 2.5)  # inches per chart
_DPI = 150
_SMALLEST_D = 1e-6  # nats; the log axis ends here, zeros are drawn on it


def write_png(run: Path, out: Path | None = None, beside: Sequence[Path] = ()) -> Path:
    """Write all curves of a run, with those of the runs beside it, as one PNG.

    Args:
        run: run directory.
        out: where to; default `curves.png` in the run directory.
        beside: further run directories, in the same axes. Those the run's configuration lists are added.

    Returns:
        The file written.

    Raises:
        RunError: not a run, damaged, or without any curve.
        MissingExtraError: matplotlib is not installed.
    """
    main, others, _ = load_views(Path(run), [Path(path) for path in beside])
    charts = build_charts(main, others).drawn
    if not charts:
        raise RunError(f"{run} has neither metrics nor evaluations to draw.", "Log at least one step first.")
    out = main.run.png_path if out is None else Path(out)
    return draw_png([Panel(chart.title, partial(draw_chart, chart=chart), legend="inside") for chart in charts], out)


@dataclass(frozen=True)
class Panel:
    """One of several drawings in a picture: `draw` is given its axes; `size` in inches."""

    title: str
    draw: Callable[[Any], None]
    legend: Literal["none", "inside", "below"] = "none"
    size: tuple[float, float] = (_SIZE[0], 1.25 * _SIZE[1])


def draw_png(panels: Sequence[Panel], out: Path) -> Path:
    """Panels in up to three columns, as one PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    matplotlib = _matplotlib()
    from matplotlib.image import imsave

    columns = min(3, len(panels))
    with matplotlib.rc_context(_RC):
        # Each a figure of its own: the time to lay out one figure grows with the square of its panels.
        images = [_pixels(panel) for panel in panels]
    lines = [_joined(images[i : i + columns], axis=1) for i in range(0, len(images), columns)]
    replace_file(out, lambda file: imsave(file, _joined(lines, axis=0), format="png", dpi=_DPI))
    return out


def _pixels(panel: Panel) -> Pixels:
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=panel.size, layout="constrained", dpi=_DPI)
    axes = figure.add_subplot()
    panel.draw(axes)
    figure.suptitle(panel.title, fontsize=9, x=0.01, ha="left")
    if panel.legend == "inside":
        axes.legend(fontsize=7, frameon=False)
    elif panel.legend == "below":
        figure.legend(fontsize=7, frameon=False, loc="outside lower left")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def _joined(images: Sequence[Pixels], axis: int) -> Pixels:
    """Side by side (axis 1) or one below the other (axis 0), on white."""
    import numpy as np

    across = 1 - axis
    longest = max(image.shape[across] for image in images)
    padded = []
    for image in images:
        widths = [(0, 0), (0, 0), (0, 0)]
        widths[across] = (0, longest - image.shape[across])
        padded.append(np.pad(image, widths, constant_values=255))
    return np.concatenate(padded, axis=axis)


def svg(draw: Callable[[Any], None], prefix: str, size: tuple[float, float] = _SIZE) -> str:
    """A drawing as an `<svg>` element for an HTML page: no script, no address, ids that start with `prefix`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    matplotlib = _matplotlib()
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _embeddable(buffer.getvalue(), prefix)


def chart_figure(chart: Chart, prefix: str) -> dict[str, Any]:
    """A chart as the pages' figures have it: `title`, `note`, `svg`, `legend`."""
    legend = [
        {"name": line.name, "style": line.style, "dashes": line_style(line.style)[1], "ends": line.ends}
        for line in sorted(chart.lines, key=lambda line: line.style)
    ]
    drawing = svg(partial(draw_chart, chart=chart), prefix)
    return {"title": chart.title, "note": chart.note, "svg": drawing, "legend": legend}


def draw_chart(axes: Any, chart: Chart) -> None:
    if chart.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
    for line in chart.lines:
        _draw_line(axes, line, floor=_SMALLEST_D if chart.log else None)
    if chart.from_zero:
        axes.set_ylim(bottom=0)
    if chart.y_range is not None:
        axes.set_ylim(*chart.y_range)
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.unit)
    axes.grid(axis="y", linewidth=0.5)
    axes.tick_params(length=2)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if chart.x != "step":
        few_ticks(axes)
        axes.xaxis.set_major_formatter("{x:,.0f}")


def few_ticks(axes: Any) -> None:
    """An x axis of long numbers, none of which overlap."""
    axes.xaxis.get_major_locator().set_params(nbins=5, prune="upper")


def _draw_line(axes: Any, line: Line, floor: float | None) -> None:
    def shown(values: list[float]) -> list[float]:
        return values if floor is None else [max(v, floor) if v == v else v for v in values]

    colour, dashes = line_style(line.style)
    smoothed = shown(trailing_mean(line.values, line.smooth))
    if line.smooth > 1:
        axes.plot(line.steps, shown(line.values), color=colour, linewidth=0.7, alpha=0.3)
    alone = "o" if line.markers or len(line.steps) == 1 else None
    axes.plot(
        line.steps,
        smoothed,
        color=colour,
        linestyle=dashes,
        linewidth=1.5,
        marker=alone,
        markersize=3.5,
        label=line.name,
    )
    if line.low is not None and line.high is not None:
        low, high = shown(line.low), shown(line.high)
        axes.fill_between(line.steps, low, high, color=colour, alpha=0.15, linewidth=0)
        if line.markers:
            axes.vlines(line.steps, low, high, color=colour, linewidth=1)


def line_style(style: int) -> tuple[str, str]:
    """(colour, dashes) of a line; -1 is the ink of the text, dashed."""
    if style < 0:
        return INK, "dashed"
    return COLOURS[style % len(COLOURS)], DASHES[style % len(DASHES)]


def _embeddable(document: str, prefix: str) -> str:
    """The bare svg element: no XML prologue, name spaces, metadata, comments or page-wide style."""
    element = document[document.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", element, flags=re.DOTALL)
    element = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", element)
    element = re.sub(r'\bid="', f'id="{prefix}-', element)
    element = re.sub(r'(?:xlink:)?href="#', f'href="#{prefix}-', element).replace("url(#", f"url(#{prefix}-")
    for index, colour in enumerate(COLOURS):
        element = element.replace(colour, f"var(--c{index})")
    element = element.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
    head, rest = element.split(">", 1)
    head = re.sub(r'\s(width|height|version)="[^"]*"', "", head)
    return f'{head} class="chart" aria-hidden="true">{rest.strip()}'


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "Curves are drawn with matplotlib, which is not installed.", 'Install it: pip install "scgrpo[report]".'
        ) from error
    return matplotlib
