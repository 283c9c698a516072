"""Warnings that name the line of the user's code."""

import subprocess
import sys

SCRIPT = """
from bilinear_circuits.data.corpora import read_stories

read_stories("stories.jsonl")  # the user's line
"""


def test_a_warning_shows_the_line_that_asked(tmp_path):
    (tmp_path / "stories.jsonl").write_text('{"text": "one"}\n{"text": ""}\n')
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "script.py:4: CorpusWarning: 1 of the 2 records" in done.stderr
    assert 'read_stories("stories.jsonl")  # the user\'s line' in done.stderr
