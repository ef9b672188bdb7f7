"""The site: Markdown pages, and the reference of the API from docstrings.

    sphinx-build -W --keep-going docs build/site
    sphinx-build -b linkcheck docs build/links

The first is strict: a dead link within the site ends it. The second tries the links to
elsewhere. Pages need no network: formulas are MathML, and the search is in the page.
"""

import json
import os
import re
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.util import logging

from ddpm_jax.version import VERSION

project = "ddpm_jax"
version = release = VERSION
html_title = f"ddpm_jax {VERSION}"
html_theme = "furo"
html_show_copyright = False
html_math_renderer = "mathml"
exclude_patterns = ["**/.*"]
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
source_suffix = {".md": "markdown", ".ipynb": "markdown"}

# As GitHub reads Markdown: $…$, ```math, notes, <img>, and an anchor for each heading.
myst_enable_extensions = ["alert", "dollarmath", "html_image", "tasklist"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 6

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_attr_annotations = False
highlight_language = "none"  # formulas of docstrings
default_role = "py:obj"  # `name` of a docstring: a link where it is one of ours

DOCS = Path(__file__).parent.resolve()
# Files beside docs/, and the pages of the site that include them.
INCLUDED = {
    "README.md": "index.md",
    "README.zh-CN.md": "zh/index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
logger = logging.getLogger(__name__)


def read_page(app, name, source):
    """Makes Markdown of a notebook, and of links those of the site."""
    path = Path(app.env.doc2path(name))
    if path.suffix == ".ipynb":
        source[0] = of_notebook(json.loads(source[0]))
    source[0] = relinked(source[0], path.parent, path.parent)


def read_included(app, path, parent, source):
    """Makes of the links of a file that a page includes those of the page."""
    page = DOCS / INCLUDED[path.name]  # of `parent`, MyST gives the name alone
    source[0] = relinked(source[0], (DOCS / path).resolve().parent, page.parent)


def relinked(text, written, read):
    """Returns a text whose links to files are those of the site.

    Args:
      text: Markdown.
      written: the folder that its links start from.
      read: that of the page on the site.
    """

    def link(match):
        file = (written / match[1]).resolve()
        if not file.is_file():
            return match[0]
        if file.parent == DOCS.parent and file.name in INCLUDED:
            file = DOCS / INCLUDED[file.name]
        path = Path(os.path.relpath(file, read)).as_posix()
        if file.suffix == ".md" and not file.is_relative_to(DOCS):
            path = f"path:{path}"  # no page: the file itself
        return f"]({path}{match[2] or ''})"

    return re.sub(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)", link, text)


def of_notebook(notebook):
    """Returns the Markdown of a notebook, with the outputs that are stored in it."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            text = f"````python\n{text}\n````"
        parts.append(text)
        printed = ""  # lines come in many parts
        for output in [*cell.get("outputs", []), {}]:
            if output.get("output_type") == "stream":
                printed += "".join(output["text"])
                continue
            if printed:
                parts.append(f"````text\n{printed.rstrip()}\n````")
            printed = ""
            data = output.get("data", {})
            images = {"image/png", "image/jpeg", "image/gif"} & {*data}
            for kind in images:
                encoded = "".join("".join(data[kind]).split())
                parts.append(f"![](data:{kind};base64,{encoded})")
            if "text/html" in data and not images:
                parts.append("".join(data["text/html"]))
            elif "text/plain" in data and not images:
                parts.append(f"````text\n{''.join(data['text/plain'])}\n````")
    return "\n\n".join(parts)


def as_rst(app, what, name, obj, options, lines):
    """Makes reStructuredText of a docstring that is written to be read as it stands.

    Blocks that are indented after an empty line stay as they are, tables of Markdown
    become tables, and signs of formulas lose the meaning that they would have.
    """
    given, lines[:] = lines[:], []
    section = block = table = False
    for before, line in zip(["", *given], given, strict=False):
        section = section or bool(re.fullmatch(r"[A-Z]\w+:", line))
        indented = line.startswith("    ") and not section
        if indented and not block and not before:
            lines += ["::", ""]
            block = True
        elif line and not indented:
            block = False
        if block:
            lines.append(line)
        elif line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not table:
                lines += [".. list-table::", "   :header-rows: 1", ""]
            if set(line) - set("|-: "):
                marks = ["   * - "] + ["     - "] * len(cells)
                pairs = zip(marks, cells, strict=False)
                lines += [mark + escaped(cell) for mark, cell in pairs]
        else:
            lines.append(escaped(line))
        table = line.startswith("|")


def escaped(line):
    """Escapes what has a meaning in reStructuredText, but in `names`."""
    parts = re.split(r"(`[^`]*`)", line)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", parts[i])
    return "".join(parts)


def shorten(app, what, name, obj, options, signature, returns):
    """Makes signatures readable: an array's type and axes once, functions by name."""

    def short(text):
        for pattern, plain in (
            (r"<[a-z-]+ function ([\w.]*)>|<function (\w+)>", r"\1\2"),
            (r"<function [^,]*<lambda>>", "..."),
            (r"[~\w.]*_jax\.Array", "~jax.Array"),
            (r"~jaxtyping\.(\w+)\[[~\w.]*?(\w+), ", r"\1[\2, "),
            (r"(\w+\[)\w+, ('[^']*'\])( \| \1\w+, \2)+", r"\1Array, \2"),
        ):
            text = re.sub(pattern, plain, text)
        return text

    return tuple(text and short(text) for text in (signature, returns))


def skips(app, what, name, obj, skip, options):
    """Leaves out fields of named tuples: the docstring of their class lists them."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def write_math(self, node):
    """Writes a formula as MathML, which browsers draw without a script."""
    tex = node.astext()
    for pattern, plain in (
        (r"\\([dt]?frac)(\d)(\d)", r"\\\1{\2}{\3}"),
        (r"\\dots\b", r"\\ldots"),
        # Else the index of x with a hat would stand below both, not beside.
        (r"(\\(bar|hat|tilde|vec|dot)\s*(\\[a-zA-Z]+|\w|\{[^{}]*\}))", r"{\1{}}"),
        (r"\\enspace\b", r"\\ "),
        (r"\\middle\b", ""),
    ):
        tex = re.sub(pattern, plain, tex)
    display = node.tagname == "math_block"
    try:
        self.body.append(latex2mathml.tex2mathml(tex, as_block=display))
    except MathError as error:
        logger.warning("%s: %s", error, tex, location=node)
    raise nodes.SkipNode


def setup(app):
    """Is called by Sphinx."""
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
    app.connect("autodoc-process-docstring", as_rst, priority=100)
    app.connect("autodoc-process-signature", shorten)
    app.connect("autodoc-skip-member", skips)
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
