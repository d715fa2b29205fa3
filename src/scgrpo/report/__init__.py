"""One HTML page, or pictures, per run, and the paper's tables: made from run directories and nothing else."""

from scgrpo.report.curves import write_png, write_pngs
from scgrpo.report.page import write_report, write_tables

__all__ = ["write_png", "write_pngs", "write_report", "write_tables"]
