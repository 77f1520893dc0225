"""Every committed record says which code made it, and records of different code are not mixed without a word."""

import json
from pathlib import Path

import pytest

from otclib import runs
from otclib.experiments import pages
from otclib.experiments.records import made_by

ROOT = Path(__file__).parent.parent
RECORDS = sorted((ROOT / "figures").glob("*.json")) + sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.mark.parametrize("file", RECORDS, ids=lambda f: f.stem)
def test_every_record_has_a_version_and_a_commit(file):
    content = json.loads(file.read_text())
    for record in content if isinstance(content, list) else [content]:
        assert record["code"]["version"] and record["code"]["commit"] and record["machine"]


def test_one_code_is_named_and_several_are_counted():
    one = [{"code": {"version": "0.1.0", "commit": "abc"}}] * 3
    assert made_by(one) == "otclib 0.1.0, commit abc"
    mixed = made_by([*one, {"code": {"version": "0.2.0", "commit": "def"}}, {}])
    assert "3 by otclib 0.1.0, commit abc" in mixed and "1 by otclib 0.2.0, commit def" in mixed
    assert "1 by otclib an unknown version, commit unknown" in mixed


def test_the_tables_say_who_made_them():
    for name in pages.recorded():
        records = json.loads((ROOT / "figures" / f"{name}.json").read_text())
        assert made_by(records) in pages.PAGES[name][1](records)


def test_the_code_is_this_checkout():
    found = runs.code()
    assert found["version"] and (found["commit"] is None or len(found["commit"].removesuffix("-modified")) == 12)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "a.json"
    runs.write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        runs.write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1}
