"""Control sequences of tokens, files and errors reach a terminal as text."""

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from features_world import LAYER, write_world
from planted import WORDS, random_stories, word_tokenizer
from tokenizers import pre_tokenizers

from bilinear_circuits.cli import main
from bilinear_circuits.command_line.terminal import ShownStream, note, safe_terminal
from bilinear_circuits.data.text_files import CorpusWarning

ROOT = Path(__file__).parents[1]
HOSTILE = "\x1b]0;owned\x07\x9b2J"


def test_every_control_character_is_shown_but_line_ends_and_tabs():
    stream = io.StringIO()
    everything = "".join(map(chr, range(0x100)))
    ShownStream(stream).write(everything)
    shown = stream.getvalue()
    assert [c for c in shown if ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0] == ["\t", "\n"]
    assert "\\x1b" in shown
    assert "\\x9b" in shown
    assert "é" in shown


def test_progress_bars_may_move_and_tokens_in_them_may_not():
    stream = io.StringIO()
    bars = ShownStream(stream, bars=True)
    bars.write("\rtokens: 50 %")
    bars.write("\x1b[A")
    bars.write("a\rb\x1b[A")
    assert stream.getvalue() == "\rtokens: 50 %\x1b[Aa\\x0db\\x1b[A"


def test_what_a_terminal_cannot_encode_is_a_number():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    ShownStream(stream).write("dög \ud800\n")
    stream.flush()
    assert raw.getvalue() == b"d\\xf6g \\ud800\n"


def test_streams_come_back(capsys):
    before = sys.stdout, sys.stderr
    with safe_terminal():
        sys.stdout.write("a\x1b[2Jb\n")
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "a\\x1b[2Jb\n"


def test_a_stream_that_the_shell_closed_takes_what_is_said_and_keeps_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with safe_terminal():
        sys.stdout.write("a")
        note("b")
    assert sys.stdout is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this machine has no full device")
def test_a_verb_whose_output_cannot_be_written_says_so_in_one_line():
    command = f"{sys.executable} -m bilinear_circuits.cli --help > /dev/full"
    done = subprocess.run(command, shell=True, capture_output=True, cwd=ROOT, text=True)
    assert done.returncode == 2
    said = "stdout must be a place that can be written, got an error: No space left on device."
    assert done.stderr == f"bilinear-circuits: error: {said}\n"


@pytest.mark.parametrize("verb", ["--help", "--version", "circuits --help"])
def test_a_reader_that_has_gone_is_no_failure(verb):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "bilinear_circuits.cli", *verb.split()], stdout=write, stderr=subprocess.PIPE, cwd=ROOT
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_a_corpus_leaves_out_is_a_note_and_other_warnings_stay_their_own(capsys, recwarn):
    with safe_terminal():
        warnings.warn("1 of 2 records", CorpusWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert capsys.readouterr().err.startswith("1 of 2 records\n")


def raw_output(capfd, *arguments):
    """What the command line writes to the two streams of the process, as it is."""
    try:
        code = main([*map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    return code, *capfd.readouterr()


def test_names_and_errors_are_shown(capfd):
    for arguments in ((HOSTILE,), ("lowrank", "--corpus", HOSTILE), ("lowrank", f"--{HOSTILE}"), ("circuits", HOSTILE)):
        code, out, err = raw_output(capfd, *arguments)
        assert code == 2
        assert "\x1b" not in out + err
        assert "\x9b" not in out + err
        assert "\\x1b]0;owned\\x07\\x9b2J" in err


def test_tokens_are_shown(tmp_path, capfd):
    words = [*WORDS[:8], *(f"{word}{HOSTILE}" for word in WORDS[8:])]
    world = write_world(tmp_path)
    made = word_tokenizer(words)
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save_pretrained(world["model"])
    text = "\n<|endoftext|>\n".join(" ".join(words[WORDS.index(w)] for w in s.split()) for s in random_stories(60))
    (tmp_path / "stories.txt").write_text(text, encoding="utf-8")
    named = [part for key, value in world.items() for part in (f"--{key}", value)]
    code, out, err = raw_output(capfd, "inspect", *named, "--layer", LAYER, "--feature", 3, "--n-stories", 60)
    assert code == 0, err
    assert "\\x1b]0;owned\\x07\\x9b2J" in out
    assert not {"\x1b", "\x07", "\x9b"} & set(out + err.replace("\x1b[A", ""))
