"""Figures of results, for print and for the page. Nothing here knows a model.

A figure is a list of pages of at most 7 x 9 inches, with no letters under 7 points and none on a picture, in colours
that colour-blind people tell apart. Matplotlib is imported where it is used, so that importing the package stays quick,
and pyplot is left alone.
"""

from backsight.figures.error_panels import Panel, panel_part
from backsight.figures.heat_maps import heat_map_part
from backsight.figures.house_style import DARK_PALETTE, PALETTE, style, to_pdf, to_png, to_svg
from backsight.figures.lines import ErrorPoint, curves, error_bars
from backsight.figures.outlines import cut_out, draw_detections, draw_frames, outline
from backsight.figures.page import Block, Pages, Part, grid, pages, picture_part, picture_parts, text_part
from backsight.figures.pictures import colour_map, difference, image_png, spread, to_array
from backsight.figures.scatter import ScatterPoint, scatter_part

__all__ = [
    "DARK_PALETTE",
    "PALETTE",
    "Block",
    "ErrorPoint",
    "Pages",
    "Panel",
    "Part",
    "ScatterPoint",
    "colour_map",
    "curves",
    "cut_out",
    "difference",
    "draw_detections",
    "draw_frames",
    "error_bars",
    "grid",
    "heat_map_part",
    "image_png",
    "outline",
    "pages",
    "panel_part",
    "picture_part",
    "picture_parts",
    "scatter_part",
    "spread",
    "style",
    "text_part",
    "to_array",
    "to_pdf",
    "to_png",
    "to_svg",
]
