"""Results -> one HTML page that can be sent, printed and kept."""

from backsight.report.experiments import rewrite_report
from backsight.report.render import write_report

__all__ = ["rewrite_report", "write_report"]
