"""Figures of results, for print and for the page. Nothing here knows a model.

A figure is 7 inches wide, has no letters under 7 points, and colours that colour-blind people tell apart.
Matplotlib is imported where it is used, so that importing the package stays quick, and pyplot is left alone.
"""

from backsight.figures.error_panels import Panel, panel_part
from backsight.figures.heat_maps import heat_map_part
from backsight.figures.house_style import DARK_PALETTE, PALETTE, style, to_pdf, to_png, to_svg
from backsight.figures.lines import ErrorPoint, curves, error_bars
from backsight.figures.page import Block, Part, page, picture_part, picture_parts
from backsight.figures.pictures import draw_detections, image_png, to_array
from backsight.figures.scatter import ScatterPoint, scatter_part
from backsight.figures.side_by_side import grid

__all__ = [
    "DARK_PALETTE",
    "PALETTE",
    "Block",
    "ErrorPoint",
    "Panel",
    "Part",
    "ScatterPoint",
    "curves",
    "draw_detections",
    "error_bars",
    "grid",
    "heat_map_part",
    "image_png",
    "page",
    "panel_part",
    "picture_part",
    "picture_parts",
    "scatter_part",
    "style",
    "to_array",
    "to_pdf",
    "to_png",
    "to_svg",
]
