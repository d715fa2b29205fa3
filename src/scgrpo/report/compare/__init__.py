"""Methods compared over the runs of a sweep: one page, two tables, two pictures."""

from scgrpo.report.compare.page import Written, write_comparison
from scgrpo.report.compare.study import Options

__all__ = ["Options", "Written", "write_comparison"]
