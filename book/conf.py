"""The book: the executed notebooks and the docstrings, as a static site (``make book``)."""

import re
import shutil
import sys
from pathlib import Path

from sphinx.util import logging

BOOK = Path(__file__).parent
sys.path.insert(0, str(BOOK.parent))

project, author, copyright = "otclib", "the otclib authors", "the otclib authors, MIT licence"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx-mathjax-offline"]
html_theme, html_title = "sphinx_book_theme", "otclib"
html_theme_options = {"home_page_in_toc": True, "show_toc_level": 2, "navbar_persistent": []}
html_static_path, html_css_files = ["static"], ["wide.css"]
exclude_patterns = ["_build", "jupyter_execute"]

nb_execution_mode = "off"  # they carry the outputs of a real run
nb_merge_streams = True
nb_render_markdown_format = "myst"  # with tables
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # as on GitHub
nitpicky = True  # a reference to nothing is a warning

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"  # shapes and units are in the text
autodoc_inherit_docstrings = False


def setup(app) -> None:
    app.connect("autodoc-process-docstring", as_written)
    app.connect("builder-inited", check_links)
    app.connect("source-read", name_the_rest)


def name_the_rest(app, docname: str, source: list[str]) -> None:
    """Give every attack, defence and reader that its page does not name a section there: a new one is one file."""
    folder = {"api/attacks": "attacks", "api/defenses": "defenses", "api/data": "data/readers"}.get(docname)
    for file in sorted((BOOK.parent / "otclib" / folder).glob("[a-z]*.py")) if folder else ():
        name = f"otclib.{folder.replace('/', '.')}.{file.stem}"
        if f"automodule:: {name}\n" not in source[0]:
            source[0] += f"\n## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n"


def check_links(app) -> None:
    """Warn of a relative link to a missing file in the Markdown beside the book, whose own pages Sphinx checks."""
    for file in [*BOOK.parent.glob("*.md"), *BOOK.parent.glob(".github/**/*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)", file.read_text(encoding="utf-8")):
            if not re.match(r"\w+:", link) and not (file.parent / link).exists():
                logging.getLogger("otclib").warning("link to a missing file: %s", link, location=str(file))


def as_written(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings as they are written: underlined sections, and code, tables or equations in indented blocks.

    Before the first section, an indented block after a blank line is shown as it stands. In a section, "names : text"
    is an item, and its text goes on in indented lines.
    """
    out, section = [], None
    for k, line in enumerate(lines):
        if k + 1 < len(lines) and re.fullmatch("-{3,}", lines[k + 1]):
            section = line
            out += [f"**{line}**", ""]
        elif section is not None:
            item = re.match(r"(\S.*?) : (.*)", line)
            if item:
                out += [f"``{item[1]}``", f"    {item[2]}"]
            elif not re.fullmatch("-{3,}", line):
                out.append(line)
        else:
            begins = line.startswith("    ") and k and not lines[k - 1].strip()
            above = next((x for x in reversed(out) if x.strip()), "")
            if begins and not above.startswith("    ") and not above.endswith("::"):
                out += ["::", ""]
            out.append(line)
    lines[:] = out


# Sphinx reads only what lies beside this file
shutil.rmtree(BOOK / "notebooks", ignore_errors=True)
shutil.copytree(BOOK.parent / "notebooks", BOOK / "notebooks", ignore=shutil.ignore_patterns("*.py", ".*"))
