"""Settings of the documentation: Sphinx reads Markdown by MyST and the API by autodoc. ``make docs`` builds it.

Pages open from disk without a network: equations become MathML, which browsers draw by themselves, so that no script
has to be fetched.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.inspect import stringify_signature

from adder_zoo import __version__

project = "adder_zoo"
author = "the adder_zoo contributors"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"adder_zoo {version}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
copybutton_exclude = ".linenos, .gp"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Every reference must be found. The documentation of other projects cannot be looked up without a network.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(accelerate|torch|nn|timm|collections|huggingface_hub|pathlib|typing)\..*"),
    (r"py:.*", r"adder_zoo\.models\..*"),  # classes of networks, which timm.create_model builds
    (r"py:.*", r"(.*ConfigT|Tensor|Any|Callable|Iterable|Iterator|Sequence|Path|optional|Module|InferenceSession)"),
]


def visit_math(self: Any, node: nodes.math) -> None:
    self.body.append(_mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def visit_math_block(self: Any, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(_mathml(node.astext(), as_block=True))
    self.body.append("</div>\n")
    raise nodes.SkipNode


def _mathml(tex: str, as_block: bool) -> str:
    return tex2mathml(re.sub(r"\s+", " ", tex).strip(), as_block=as_block)


def examples_as_code(app: Sphinx, context: Any, lines: list[str]) -> None:
    """The examples at the end of a command's help, which sphinx-click makes lines of prose, as code."""
    text = [line.removeprefix("| ").removeprefix("|") for line in lines]
    lines[:] = [".. code-block:: text", "", *(f"   {line}" for line in text), ""] if any(text) else []


def constructor(app: Sphinx, what: str, name: str, obj: Any, *rest: Any) -> tuple[str, None] | None:
    """The arguments of ``__init__`` also where a class has a ``__new__`` that takes whatever comes."""
    if what != "class" or "__new__" not in {key for base in obj.__mro__[:-1] for key in vars(base)}:
        return None
    signature = inspect.signature(obj.__init__)
    arguments = [p.replace(annotation=p.empty) for p in list(signature.parameters.values())[1:]]
    return stringify_signature(inspect.Signature(arguments)), None


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", constructor)
    app.connect("sphinx-click-process-epilog", examples_as_code)
    app.add_html_math_renderer("mathml", inline_renderers=(visit_math, None), block_renderers=(visit_math_block, None))


html_math_renderer = "mathml"
