"""A committed loss curve: 40 steps of a defence are what they were, so a change of structure changed nothing.

Where a change of the method is meant, ``python tests/curves/make.py`` writes the curves anew, and the commit says so.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CURVES = Path(__file__).parent / "curves"


@pytest.mark.parametrize("defense", ["clip", "otcclip", "otcclip-plus"])
def test_forty_steps_are_what_they_were(defense):
    command = [sys.executable, str(CURVES / "make.py"), defense]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CURVES.parent.parent, env={**os.environ})
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    expected = json.loads((CURVES / f"{defense}.json").read_text())
    assert len(found) == 40 and found == pytest.approx(expected, rel=0, abs=1e-4)
