"""The worked examples in the docstrings of the public functions."""

import doctest
import importlib
from pathlib import Path

import pytest

import otclib

PACKAGE = Path(otclib.__file__).parent
EXAMPLES = (
    "attacks/toxic_text.py",
    "data/emoji/colours.py",
    "data/grammar.py",
    "data/readers/tarpart.py",
    "data/table.py",
    "defenses/copies.py",
    "defenses/dao.py",
    "defenses/otcclip.py",
    "defenses/otcclip_plus.py",
    "evaluation/attack_success.py",
    "losses.py",
    "matching/pool.py",
    "metrics.py",
    "ranks.py",
    "transport/solver.py",
)


@pytest.mark.parametrize("file", EXAMPLES)
def test_examples_print_what_they_say(file):
    module = importlib.import_module(f"otclib.{file.removesuffix('.py').replace('/', '.')}")
    failed, tried = doctest.testmod(module)
    assert tried and not failed, f"{failed} of {tried} examples in otclib/{file} failed"


def test_every_example_is_run():
    files = {str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if ">>> " in file.read_text()}
    assert files == set(EXAMPLES)
