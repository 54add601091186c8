"""Sphinx reads the pages where they stand: docs, configs, README, CONTRIBUTING and CHANGELOG.

The repository is the source folder, so that a link in a page is the same on GitHub and in the
site, and no page has a second copy. See CONTRIBUTING.md for the command.
"""

from crossformer_mm import __version__

project, release = "crossformer_mm", __version__
html_theme, html_title = "furo", f"crossformer_mm {release}"
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "docs/*.ipynb", "configs/**/README.md"]
exclude_patterns = [".*", "data", "work_dirs", "configs/own", "docs/_build"]
html_show_copyright = False
html_static_path, html_css_files = ["_static"], ["wide.css"]
html_additional_pages = {"index": "to_the_index.html"}  # the site's address has no docs/ in it
templates_path = ["_templates"]

# myst_nb is myst_parser that reads notebooks too, with the outputs that they were saved with.
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
nb_execution_mode = "off"
suppress_warnings = ["misc.highlighting_failure"]  # a notebook's lines for the shell are no Python
myst_heading_anchors = 3  # as GitHub has them
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_ivar = True  # attributes as one list
autodoc_member_order = "bysource"
nitpicky = True  # of the names in docstrings, but for classes of other libraries
nitpick_ignore_regex = [("py:(class|exc|obj)", "(?!crossformer_mm).*")]
