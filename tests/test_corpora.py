"""Corpora in every form that users bring: each read as the same stories, or refused in a line that names the file."""

import gzip
import json

import pytest
from helpers import refused

from bilinear_circuits.data.corpora import Corpus, read_stories

STORIES = ["the cat sat", "a dög, and\na cat", "the big dog ran"]
FLAT = [story.replace("\n", " ") for story in STORIES]


def csv_text(stories, comma=","):
    return f"n{comma}text\n" + "".join(f'{i}{comma}"{story}"\n' for i, story in enumerate(stories))


FORMS = {
    "marks.txt": ("\n<|endoftext|>\n".join(STORIES), {}, STORIES),
    "lines.txt": ("\n".join(FLAT) + "\n", {"separator": "line"}, FLAT),
    "newline.txt": ("\n".join(FLAT), {"separator": "\n"}, FLAT),
    "shell.txt": ("\n".join(FLAT), {"separator": "\\n"}, FLAT),
    "windows.txt": ("\r\n".join(FLAT), {"separator": "line"}, FLAT),
    "blank.txt": ("\n \n\n".join(STORIES), {"separator": "blank-line"}, STORIES),
    "hashes.txt": ("\n###\n".join(STORIES), {"separator": "###"}, STORIES),
    "one.txt": (FLAT[0], {}, FLAT[:1]),
    "rows.csv": (csv_text(STORIES), {}, STORIES),
    "semicolons.csv": (csv_text(STORIES, ";"), {}, STORIES),
    "tabs.tsv": (csv_text(STORIES, "\t"), {"column": "text"}, STORIES),
    "lines.jsonl": ("\n".join(json.dumps({"text": story}) for story in STORIES), {}, STORIES),
    "list.json": (json.dumps([{"story": story} for story in STORIES], indent=1), {"column": "story"}, STORIES),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_encoding_and_packing_gives_the_stories(name, encoding, packed, tmp_path):
    text, settings, expected = FORMS[name]
    path = tmp_path / (f"{name}.gz" if packed else name)
    content = text.encode(encoding)
    path.write_bytes(gzip.compress(content) if packed else content)
    assert read_stories(path, **settings) == expected
    assert read_stories(Corpus(str(path), **settings), limit=1) == expected[:1]


REFUSED = {
    "no marks": ("a.txt", b"one\ntwo\n\nthree\n", {}, r"a\.txt are separated: it has 3 lines of text and no <\|end"),
    "no blank": ("a.txt", b"one\ntwo", {"separator": "blank-line"}, "2 lines of text and no blank line. Give line"),
    "no hashes": ("a.txt", b"one\ntwo", {"separator": "###"}, "2 lines of text and no ###"),
    "two marks": ("a.txt", b"one\n<|endoftext|>\n", {"separator": "line"}, "separator must be left out for a corpus"),
    "a column of text": ("a.txt", b"one", {"column": "text"}, "column must be left out for a text, got 'text' for"),
    "a separator of rows": ("a.csv", b"text\none", {"separator": "line"}, "separator must be left out for records"),
    "latin": ("a.txt", "café".encode("latin-1"), {}, r"a\.txt with the byte 0xe9, which is not utf-8"),
    "late latin": ("a.csv", b"text\n" + b"one\n" * 9999 + b"caf\xe9\n", {}, r"a\.csv with the byte 0xe9"),
    "utf-16 unmarked": ("a.txt", "one".encode("utf-16-le"), {}, r"a\.txt, which holds zero bytes"),
    "zip": ("a.txt", b"PK\x03\x04rest", {}, r"a\.txt, packed with zip"),
    "zstd": ("a.jsonl", b"\x28\xb5\x2f\xfdrest", {}, r"a\.jsonl, packed with zstd"),
    "half gzip": ("a.txt.gz", gzip.compress(bytes(range(256)) * 99)[:-20], {}, r"a\.txt\.gz"),
    "empty jsonl": ("a.jsonl", b"", {}, "corpus must hold at least one story, got none in"),
    "empty csv": ("a.csv", b"", {}, "corpus must hold at least one story, got none in"),
    "bare commas": ("a.csv", b"text\none, two\n", {}, r"rows of .*a\.csv must have as many .* 1, got 2 in line 2"),
    "open quote": ("a.csv", b'text\n"one\n', {}, r"a\.csv, line 2: unexpected end of data"),
    "other columns": (
        "a.csv",
        b"story,n\none,1\n",
        {},
        "column must be one of .*story.*, got .text.",
    ),
    "no json": ("a.jsonl", b'{"text": "one"}\noops\n', {}, r"a\.jsonl, line 2: Expecting value"),
    "json texts": ("a.jsonl", b'"one"\n', {}, r"JSON objects with a column of texts, got 'one' in .*a\.jsonl, line 1"),
    "no parquet": ("a.parquet", b"one\n", {}, r"corpus must be a parquet file, got .*a\.parquet"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_with_its_name(case, tmp_path):
    name, content, settings, message = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    with refused(ValueError, message):
        read_stories(tmp_path / name, **settings)


def test_a_folder_of_two_parts_is_no_hub_id(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with refused(ValueError, "corpus must be a file, got a/b, which is a folder"):
        read_stories("a/b")


def test_a_name_of_nothing_and_settings_of_nothing_are_refused():
    with refused(ValueError, r"corpus must be a file or a Hub id \(owner/name\), got ''"):
        read_stories("")
    with refused(ValueError, "separator must be a text of one character or more, got ''"):
        Corpus("stories.txt", separator="")


def test_a_file_is_read_only_as_far_as_the_limit(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one<|endoftext|>" * 200_000 + b"\xff")
    assert read_stories(path, limit=2) == ["one", "one"]
    with refused(ValueError, "byte 0xff"):
        read_stories(path)


def test_marks_that_lie_across_chunks_are_found(tmp_path, monkeypatch):
    from bilinear_circuits.data import text_files

    monkeypatch.setattr(text_files, "_CHUNK", 7)
    path = tmp_path / "a.txt"
    path.write_text("<|endoftext|>".join(FLAT), encoding="utf-8")
    assert read_stories(path) == FLAT


def test_one_mark_at_the_end_of_many_lines_says_nothing_of_the_stories(tmp_path):
    lines = "\n".join(f"story {index} of a cat ." for index in range(60))
    (tmp_path / "many.txt").write_text(f"{lines}\n<|endoftext|>\n")
    with refused(ValueError, "it has 60 lines of text and only one .*, at its end. Give line"):
        read_stories(tmp_path / "many.txt")
    assert len(read_stories(tmp_path / "many.txt", separator="<|endoftext|>")) == 1
    (tmp_path / "one.txt").write_text("a story\nof three\nlines\n<|endoftext|>\n")
    assert read_stories(tmp_path / "one.txt") == ["a story\nof three\nlines"]


def test_empty_rows_of_a_csv_are_none(tmp_path):
    (tmp_path / "a.csv").write_text("text\n\nfirst\n\n\n")
    assert read_stories(tmp_path / "a.csv") == ["first"]
    (tmp_path / "b.csv").write_text("text\n\n\n")
    with refused(ValueError, "corpus must hold at least one story, got none in"):
        read_stories(tmp_path / "b.csv")


def test_a_pipe_is_no_file(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    with refused(ValueError, "corpus must be a file, got .*pipe, a pipe or a device. Save the text in a file."):
        read_stories(tmp_path / "pipe")
