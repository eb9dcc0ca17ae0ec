"""A trained run as one HTML file that opens from disk: its text, its units, its training and its dynamics.

`collect_run` measures, `page` writes the file. The command line is ``rnnjax report``.
"""

from rnnjax.report.collect import STEPS, ReportOptions, ReportText, collect_run
from rnnjax.report.page import page, page_size

__all__ = ["STEPS", "ReportOptions", "ReportText", "collect_run", "page", "page_size"]
