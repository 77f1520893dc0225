"""Write the pages of results in the book and their pictures from the committed records (``figures/*.json``).

python -m otclib.experiments.pages            # all of them
python -m otclib.experiments.pages ablation   # of one record
python -m otclib.experiments.pages options    # of the options of the defences, which has no record
python -m otclib.experiments.pages readme     # the README's table, from figures/six.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from otclib import figures
from otclib.experiments import comparisons, tables
from otclib.experiments.options import options_table
from otclib.experiments.records import grouped, made_by, order, table
from otclib.runs import write_text

ROOT = Path(__file__).resolve().parents[2]
FIGURES, BOOK = ROOT / "figures", ROOT / "book" / "results"


def seeds(records: list[dict]) -> str:
    """Return the text of the page of two systems on three seeds."""
    return f"{table(records)}\n\nMade by {made_by(records)}, in {', '.join(order(records, 'precision'))}."


# record: its page, the text on it, the picture of its name if there is one
PAGES: dict[str, tuple[str, Callable, Callable | None]] = {
    "seeds": ("seeds", seeds, lambda records: figures.comparison(grouped(records))),
    "results": ("systems", tables.report, figures.attack_grid),
    "ablation": ("ablation", tables.ablation_table, figures.ablation),
    "controls": ("controls", comparisons.controls_table, None),
    "dose": ("dose", tables.dose_table, figures.dose),
    "tuning": ("tuning", tables.tuning_table, None),
    "worlds": ("worlds", comparisons.worlds_table, figures.worlds),
    "six": ("six", comparisons.each_attack, figures.each_attack),
}


def recorded(folder: Path = FIGURES) -> list[str]:
    """Return the records in a folder that have a page."""
    return [record for record in PAGES if (folder / f"{record}.json").exists()]


def publish(record: str, folder: Path = FIGURES, book: Path = BOOK) -> None:
    """Draw a record's picture into ``folder``, beside the record, and write its text into its page.

    Two are no records: ``options``, whose page is made from the defences, and ``readme``, the table of the README.
    """
    if record == "options":
        return into_page("options", options_table(), book)
    if record == "readme":
        return into_page("README", comparisons.headline(json.loads((folder / "six.json").read_text())), ROOT)
    page, text, draw = PAGES[record]
    records = json.loads((folder / f"{record}.json").read_text())
    if draw:
        draw(records).savefig(folder / f"{'comparison' if record == 'seeds' else record}.png", dpi=150)
    into_page(page, text(records), book)
    if record == "six" and book == BOOK:
        publish("readme", folder)


def into_page(name: str, text: str, book: Path = BOOK) -> None:
    """Replace the text of a page between ``<!-- name: generated -->`` and ``<!-- name ends -->``.

    A missing page is created.
    """
    file, begin, end = book / f"{name}.md", f"<!-- {name}: generated -->", f"<!-- {name} ends -->"
    before = file.read_text() if file.exists() else f"# {name.capitalize()}\n\n{begin}\n{end}\n"
    if begin not in before or end not in before.split(begin)[1]:
        raise ValueError(f"{file} has no place for the text: {begin} ... {end}")
    head, rest = before.split(begin)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, f"{head}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    for each in sys.argv[1:] or [*recorded(), "options", "readme"]:
        publish(each)
