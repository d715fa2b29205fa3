"""One HTML page, or one picture, per run: made from run directories and nothing else."""

from scgrpo.report.curves import write_png
from scgrpo.report.page import write_report

__all__ = ["write_png", "write_report"]
