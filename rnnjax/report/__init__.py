"""A trained run as one HTML file that opens from disk: its text, its units, its training and its dynamics.

`collect_run` measures, `page` writes the file. The command line is ``rnnjax report``.
"""

from rnnjax.report.collect import ReportOptions, collect_run
from rnnjax.report.page import page

__all__ = ["ReportOptions", "collect_run", "page"]
