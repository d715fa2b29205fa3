"""Charts as pictures: SVG inside a page, all in one PNG, or a PNG each."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scgrpo.errors import MissingExtraError, RunError
from scgrpo.report.charts import Shape
from scgrpo.report.draw import COLOURS, FAINT, INK, RC, draw, size
from scgrpo.report.figures import build_figures
from scgrpo.report.recorded import read_recorded
from scgrpo.report.view import RunView, load_views
from scgrpo.runs.files import replace_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]  # [height, width, RGBA]

_DPI = 150


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
    return draw_png(charts, main.run.png_path if out is None else Path(out))


def write_pngs(run: Path, folder: Path, beside: Sequence[Path] = ()) -> list[Path]:
    """Write each chart of a run as a PNG of its own into a folder, which is made; otherwise as `write_png`.

    Names have the chart's place on the page, the paper's figure if there is one, and the chart: `02-fig6-reward.png`.

    Returns:
        The files written.
    """
    _, charts = _charts(run, beside)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for place, chart in enumerate(charts, start=1):
        name = re.sub(r"[^\w@-]+", "-", f"{chart.paper.replace('Fig. ', 'fig')} {chart.key}".strip())[:80]
        written.append(draw_png([chart], folder / f"{place:02d}-{name}.png"))
    return written


def draw_png(charts: Sequence[Shape], out: Path) -> Path:
    """Charts with titles and legends, in up to three columns, as one PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    matplotlib = _matplotlib()
    from matplotlib.image import imsave

    columns = min(3, len(charts))
    with matplotlib.rc_context(RC):
        # Each a figure of its own: the time to lay out one figure grows with the square of its panels.
        images = [_pixels(chart) for chart in charts]
    lines = [_joined(images[i : i + columns], axis=1) for i in range(0, len(images), columns)]
    replace_file(out, lambda file: imsave(file, _joined(lines, axis=0), format="png", dpi=_DPI))
    return out


def pictures(charts: Sequence[Shape], prefix: str) -> list[tuple[Shape, str]]:
    """Charts, each with its `<svg>` element for an HTML page: no script, no address, ids that start with `prefix`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return [(chart, _svg(chart, f"{prefix}{index}")) for index, chart in enumerate(charts)]


def _svg(chart: Shape, prefix: str) -> str:
    matplotlib = _matplotlib()
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=size(chart), layout="constrained")
        draw(figure.add_subplot(), chart)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _embeddable(buffer.getvalue(), prefix)


def _pixels(chart: Shape) -> Pixels:
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = size(chart)
    lines = len(chart.legend)
    figure = Figure(figsize=(width, height + 0.3 + 0.15 * lines), layout="constrained", dpi=_DPI)
    draw(figure.add_subplot(), chart)
    figure.suptitle(f"{chart.title}{f' ({chart.paper})' if chart.paper else ''}", fontsize=9, x=0.01, ha="left")
    if lines:
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


def _charts(run: Path, beside: Sequence[Path]) -> tuple[RunView, list[Shape]]:
    main, others, _ = load_views(Path(run), [Path(path) for path in beside])
    charts = [chart for part in build_figures(main, others, read_recorded(main)) for chart in part.charts]
    if not charts:
        raise RunError(f"{run} has neither metrics nor evaluations to draw.", "Log at least one step first.")
    return main, charts


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
