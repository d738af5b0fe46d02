"""Results -> one HTML page that can be sent, printed and kept."""

from backsight.report.page import write_report
from backsight.report.results import DataCard, ModelCard, PictureRow, Results, StageErrors, save_pictures

__all__ = ["DataCard", "ModelCard", "PictureRow", "Results", "StageErrors", "save_pictures", "write_report"]
