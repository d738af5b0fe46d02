"""How sphinx builds the documentation: `make docs`."""

from importlib.metadata import version as version_of

project = "backsight"
author = "the backsight authors"
copyright = "2026, the backsight authors"
version = release = version_of("backsight")

extensions = ["myst_parser", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "backsight"
exclude_patterns = ["_build"]
