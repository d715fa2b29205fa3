"""Charts as pictures: SVG inside the page, all in one PNG, or a PNG each."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scgrpo.errors import MissingExtraError, RunError
from scgrpo.report.charts import Shape
from scgrpo.report.draw import COLOURS, FAINT, INK, RC, draw, size
from scgrpo.report.figures import build_figures
from scgrpo.report.recorded import read_recorded
from scgrpo.report.view import RunView, load_views
from scgrpo.runs.files import replace_file


def write_png(run: Path, out: Path | None = None, beside: Sequence[Path] = ()) -> Path:
    """Write all charts of a run, with those of the runs beside it, as one PNG.

    Args:
        run: run directory.
        out: where to; default `curves.png` in the run directory.
        beside: further run directories, in the same axes. Those the run's configuration lists are added.

    Returns:
        The file written.

    Raises:
        RunError: not a run, damaged, or without any chart.
        MissingExtraError: matplotlib is not installed.
    """
    main, charts = _charts(run, beside)
    matplotlib = _matplotlib()
    from matplotlib.figure import Figure

    columns = min(3, len(charts))
    lines = -(-len(charts) // columns)
    width, height = 4.3, 2.5
    out = main.run.png_path if out is None else Path(out)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width * columns, height * lines * 1.25), layout="constrained")
        for index, chart in enumerate(charts):
            _titled(figure.add_subplot(lines, columns, index + 1), chart)
        replace_file(out, lambda file: figure.savefig(file, format="png", dpi=150))
    return out


def write_pngs(run: Path, folder: Path, beside: Sequence[Path] = ()) -> list[Path]:
    """Write each chart of a run as a PNG of its own into a folder, which is made; otherwise as `write_png`.

    Names have the chart's place on the page, the paper's figure if there is one, and the chart: `02-fig6-reward.png`.

    Returns:
        The files written.
    """
    _, charts = _charts(run, beside)
    matplotlib = _matplotlib()
    from matplotlib.figure import Figure

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for place, chart in enumerate(charts, start=1):
        name = re.sub(r"[^\w@-]+", "-", f"{chart.paper.replace('Fig. ', 'fig')} {chart.key}".strip())[:80]
        with matplotlib.rc_context(RC):
            width, height = size(chart)
            figure = Figure(figsize=(width, height + 0.3 + 0.15 * len(chart.legend)), layout="constrained")
            _titled(figure.add_subplot(), chart)
            written.append(folder / f"{place:02d}-{name}.png")
            replace_file(written[-1], partial(figure.savefig, format="png", dpi=200))
    return written


def svg(chart: Shape, prefix: str) -> str:
    """A chart as an `<svg>` element for an HTML page: no script, no address, ids that start with `prefix`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    matplotlib = _matplotlib()
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=size(chart), layout="constrained")
        draw(figure.add_subplot(), chart)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _embeddable(buffer.getvalue(), prefix)


def _charts(run: Path, beside: Sequence[Path]) -> tuple[RunView, list[Shape]]:
    main, others, _ = load_views(Path(run), [Path(path) for path in beside])
    charts = [chart for part in build_figures(main, others, read_recorded(main)) for chart in part.charts]
    if not charts:
        raise RunError(f"{run} has neither metrics nor evaluations to draw.", "Log at least one step first.")
    return main, charts


def _titled(axes: Any, chart: Shape) -> None:
    draw(axes, chart)
    axes.set_title(f"{chart.title}{f' ({chart.paper})' if chart.paper else ''}", fontsize=9, loc="left")
    handles, names = axes.get_legend_handles_labels()
    for twin in axes.get_shared_x_axes().get_siblings(axes):
        if twin is not axes:
            more, further = twin.get_legend_handles_labels()
            handles, names = handles + more, names + further
    axes.legend(handles, names, fontsize=7, frameon=False)


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
