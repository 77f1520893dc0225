"""The book: the executed notebooks and the docstrings, as a static site (``make book``)."""

import shutil
import sys
from pathlib import Path

BOOK = Path(__file__).parent
sys.path.insert(0, str(BOOK.parent))

project, author, copyright = "otclib", "the otclib authors", "the otclib authors, MIT licence"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme, html_title = "sphinx_book_theme", "otclib"
html_theme_options = {"home_page_in_toc": True, "show_toc_level": 2}
exclude_patterns = ["_build"]

nb_execution_mode = "off"  # they carry the outputs of a real run
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"  # shapes and units are in the text
napoleon_google_docstring = False


def setup(app) -> None:
    app.connect("autodoc-process-docstring", as_written, priority=400)


def as_written(app, what, name, obj, options, lines: list[str]) -> None:
    """An indented block after a blank line is code, a table or an equation: it is shown as it stands."""
    out = []
    for k, line in enumerate(lines):
        begins = line.startswith("    ") and k and not lines[k - 1].strip()
        above = next((x for x in reversed(out) if x.strip()), "")
        if begins and not above.startswith("    ") and not above.endswith("::"):
            out += ["::", ""]
        out.append(line)
    lines[:] = out


# Sphinx reads only what lies beside this file
shutil.rmtree(BOOK / "notebooks", ignore_errors=True)
shutil.copytree(BOOK.parent / "notebooks", BOOK / "notebooks", ignore=shutil.ignore_patterns("*.py", ".*"))
