"""HTML from templates."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from scgrpo.errors import MissingExtraError
from scgrpo.report.draw import line_style
from scgrpo.report.summary import percent
from scgrpo.report.text import number


def render(template: str, content: Mapping[str, Any]) -> str:
    """A page from one of our templates, with our style inside.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "The report is made with jinja2, which is not installed.", 'Install it: pip install "scgrpo[report]".'
        ) from error
    templates = files("scgrpo.report") / "templates"
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(lambda name: (templates / name).read_text(encoding="utf-8")),
    )
    environment.filters |= {"number": number, "percent": percent, "dashes": lambda style: line_style(style)[1]}
    style = Markup((templates / "report.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(content, style=style)
