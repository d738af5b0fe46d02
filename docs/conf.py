"""How sphinx builds the documentation: `make docs`."""

import os
import shutil
from importlib.metadata import version as version_of
from pathlib import Path

# The notebooks lie beside the documentation, and sphinx reads what is inside it.
shutil.copytree(Path(__file__).parents[1] / "notebooks", Path(__file__).with_name("notebooks"), dirs_exist_ok=True)

project = "backsight"
author = "the backsight authors"
copyright = "2026, the backsight authors"
version = release = version_of("backsight")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
nb_execution_mode = os.environ.get("NOTEBOOKS", "off")
nb_execution_timeout = 1200
nb_execution_raise_on_error = True
myst_heading_anchors = 3

html_theme = "furo"
html_title = "backsight"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
exclude_patterns = ["_build", "notebooks/README.md"]
