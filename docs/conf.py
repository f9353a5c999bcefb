"""How `make docs` builds the site: Sphinx reads the Markdown pages, and the docstrings of what is installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for the extensions in _site

import hyperconn

project = "hyperconn"
version = release = hyperconn.__version__
copyright = "the authors of hyperconn"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "_site.generated"]
exclude_patterns = ["_site", "plugin-example/[!R]*", "**/__pycache__", "**/.*"]
highlight_language = "none"
smartquotes = False  # x' is a prime, and -- an option

# Headings get the anchors that code hosts give them.
myst_heading_anchors = 4

# Every reference has to resolve. Other libraries' objects cannot: their inventories would come from the network.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|collections|typing|pathlib|types|triton|numpy|abc|hypothesis)\..*"),
    (
        r"py:class",
        r"(.*\.)?(Tensor|Entered|LayerSpec|CoefficientSpec|Write)|Map|dict\[str|tuple\[int",
    ),  # for types alone, or not public
    (r"py:class", r"hyperconn\.manifolds\..*\.[A-Z]"),  # type variables
]

autodoc_default_options = {
    "members": True,
    "undoc-members": True,  # _site.generated says which of them
    "special-members": "__call__",
    "no-value": True,
    "member-order": "bysource",
}
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False  # torch.nn.Module would speak of itself
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Attributes are listed, not declared: one that is a documented property as well would be described twice.
napoleon_custom_sections = [("Attributes", "params_style"), ("Options", "params_style"), "Shapes"]

html_theme = "furo"
html_title = f"hyperconn {version}"
html_copy_source = False
html_show_sourcelink = False
