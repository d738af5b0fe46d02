"""How sphinx builds the documentation: `make docs`."""

from importlib.metadata import version as version_of

project = "backsight"
author = "the backsight authors"
copyright = "2026, the backsight authors"
version = release = version_of("backsight")

extensions = ["myst_parser"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "backsight"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
exclude_patterns = ["_build"]
