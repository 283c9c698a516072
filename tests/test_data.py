import json
import random
import sys

import pytest
import torch
from helpers import refused, tiny_tokenizer

from bilinear_circuits.data.corpora import read_stories
from bilinear_circuits.data.stories import clean_stories, normalise, split_stories, stories_not_in, tokenize_stories

STORIES = ["the cat sat", "a dog", "the big dog ran on the small mat"]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(STORIES) + "\n<|endoftext|>\n\n", encoding="utf-8")
    return path


def test_stories_are_split_at_their_ends(corpus):
    assert read_stories(corpus) == STORIES
    assert read_stories(str(corpus), limit=2) == STORIES[:2]


def test_a_story_keeps_its_lines(tmp_path):
    path = tmp_path / "stories"
    path.write_text("one\n\ntwo é\n<|endoftext|>\nthree", encoding="utf-8")
    assert read_stories(path) == ["one\n\ntwo é", "three"]


def test_a_missing_file_is_no_hub_id(tmp_path):
    with refused(FileNotFoundError, r"corpus must be a text file or a Hub id \(owner/name\), got .*: no such file"):
        read_stories(tmp_path / "missing.txt")
    with refused(FileNotFoundError, "got stories.txt: no such file"):
        read_stories("stories.txt")


def test_a_corpus_without_stories_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("<|endoftext|>\n <|endoftext|>")
    with refused(ValueError, "corpus must hold at least one story, got none in"):
        read_stories(tmp_path / "empty.txt")


def write_records(path, records):
    """The records as JSON lines or parquet, by the name's ending."""
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


def test_the_end_of_a_story_may_stand_in_a_line(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("one<|endoftext|>two\nlines<|endoftext|><|endoftext|>three", encoding="utf-8")
    assert read_stories(path) == ["one", "two\nlines", "three"]


@pytest.mark.parametrize("name", ["stories.jsonl", "stories.json", "stories.parquet"])
@pytest.mark.filterwarnings("ignore::bilinear_circuits.data.text_files.CorpusWarning")
def test_records_hold_stories_in_a_column(tmp_path, name):
    records = [{"text": story, "n": i} for i, story in enumerate([" the cât\nsat ", "", None, "a dog", "ran"])]
    path = write_records(tmp_path / name, records)
    assert read_stories(path) == ["the cât\nsat", "a dog", "ran"]
    assert read_stories(str(path), limit=2) == ["the cât\nsat", "a dog"]


def test_another_column_can_be_read(tmp_path):
    path = write_records(tmp_path / "stories.jsonl", [{"text": "no", "story": "yes"}])
    assert read_stories(path, column="story") == ["yes"]


@pytest.mark.parametrize("name", ["stories.jsonl", "stories.parquet"])
def test_a_missing_column_names_those_found(tmp_path, name):
    path = write_records(tmp_path / name, [{"story": "the cat", "n": 1}])
    with refused(ValueError, r"column must be one of \['n', 'story'\], the columns of .*stories.*, got 'text'\."):
        read_stories(path)
    with refused(ValueError, r"column must hold texts, got int in 'n' of .*stories"):
        read_stories(path, column="n")


def test_a_hub_id_is_read_with_datasets(tmp_path, monkeypatch):
    # A folder called owner/name is read as the Hub's repository of that name is, without the Hub.
    import datasets

    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: load(str(tmp_path / name), split=split))

    (tmp_path / "owner" / "name").mkdir(parents=True)
    write_records(tmp_path / "owner" / "name" / "train.parquet", [{"text": story} for story in STORIES])
    write_records(tmp_path / "owner" / "name" / "validation.parquet", [{"text": "not this"}])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert read_stories("owner/name") == STORIES
    assert read_stories("owner/name", limit=2) == STORIES[:2]
    with refused(ValueError, r"column must be one of \['text'\], the columns of owner/name, got 'story'"):
        read_stories("owner/name", column="story")


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("“Hi”, she said – „no“ «yes»…", '"Hi", she said - "no" "yes"...'),
        ("It’s Tom`s and Ann´s", "It's Tom's and Ann's"),
        ("Zoë’s  café\n\n had\tpiñatas \u00a0", "Zoe's cafe had pinatas"),
        ("e\u0301 \ufb01n \uff21 \ufe58", "e fin A -"),  # combining accent, ligature, wide letter, small em dash
        ("zero\u200bwidth and soft\u00adhyphen", "zerowidth and softhyphen"),
        ("한 CASE stays", "한 CASE stays"),
        ("", ""),
    ],
)
def test_text_is_made_plain(raw, plain):
    assert normalise(raw) == plain


def test_plain_text_is_left_alone():
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    once = normalise(everything)
    assert normalise(once) == once
    shuffled = "".join(random.Random(0).sample(everything, 20_000))
    assert normalise(normalise(shuffled)) == normalise(shuffled)


LONG = "Once there was a big red dog who ran all day"


def test_cleaning_counts_what_it_leaves_out():
    stories = [
        LONG,
        "one two",  # too short
        LONG.replace("dog", "cat") + ".",
        f"  {LONG.upper()}\n",  # the first again
        f"{LONG} and saidâ€™ so",  # UTF-8 read as Windows-1252
        f"{LONG} cafÃ© dog",
        f"{LONG} \ufffd dog",
        f"{LONG} \ud83d dog",
        f"{LONG} \x93hi\x94 dog",
        "1 2 3 4 5 6 7 8 9 10 11 12 dogs",  # hardly a letter
        LONG.replace("dog", "dóg"),  # the first again
    ]
    cleaned = clean_stories(stories)
    assert cleaned.stories == [LONG, LONG.replace("dog", "cat") + "."]
    assert (cleaned.n_read, cleaned.n_corrupt, cleaned.n_duplicates, cleaned.n_kept) == (11, 7, 2, 2)


@pytest.mark.parametrize("end", ["", ",", ' "', " —", " SÃO Âme", " it’s 5 o’clock", "\n\ncafé\x85 naïve 😀"])
def test_odd_but_sound_stories_are_kept(end):
    assert clean_stories([LONG + end]).stories == [normalise(LONG + end)]


def test_half_of_a_story_must_be_letters():
    assert clean_stories(["abc 12", "abc 123", "abc"], min_words=1).stories == ["abc 12", "abc"]


def test_the_shortest_story_can_be_chosen():
    assert clean_stories(STORIES, min_words=3).stories == ["the cat sat", "the big dog ran on the small mat"]
    assert clean_stories(STORIES, min_words=2).n_kept == 3
    assert clean_stories([]).n_read == 0
    with refused(ValueError, r"min_words must be at least 1, got 0\."):
        clean_stories(STORIES, min_words=0)


def test_cleaning_reports_its_progress():
    reported = []

    def progress(items, description):
        reported.append((description, len(items)))
        return items

    assert clean_stories([LONG] * 3, progress=progress).n_kept == 1
    assert reported == [("clean", 3)]


def test_stories_of_another_corpus_are_left_out_whatever_their_signs_and_case():
    held_out = ["“Zoë” ran", "a cat"]
    stories = ["the dog", ' "zoe"  RAN\n', "a  Cat", "a cat sat", "The Dog"]
    assert stories_not_in(held_out, stories) == ["the dog", "a cat sat", "The Dog"]
    assert stories_not_in([], stories) == stories


def many(n):
    return [f"Story {i} of the “dóg”" for i in range(n)]


def test_a_split_keeps_every_story_and_its_order():
    train, valid = split_stories(many(2000), valid_share=0.1)
    assert sorted(train + valid) == sorted(many(2000))
    assert train == [story for story in many(2000) if story in set(train)]
    assert 140 < len(valid) < 260  # 200 expected, standard deviation 13.4


def test_no_duplicate_crosses_the_split():
    stories = many(300) + [f"  {normalise(story).upper()}" for story in many(300)]
    for arguments in ({"valid_share": 0.3}, {"n_valid": 100}):
        train, valid = split_stories(stories, **arguments)
        assert len(train) + len(valid) == 600
        assert {normalise(story).lower() for story in train}.isdisjoint(normalise(story).lower() for story in valid)


def test_adding_stories_moves_no_other():
    train, valid = map(set, split_stories(many(500), valid_share=0.2))
    more_train, more_valid = map(set, split_stories(many(1500)[::-1], valid_share=0.2))
    assert train < more_train
    assert valid < more_valid


def test_a_number_of_stories_can_be_held_out():
    stories = many(500)
    train, valid = split_stories(stories, n_valid=50)
    assert (len(train), len(valid)) == (450, 50)
    assert set(split_stories(stories, n_valid=20)[1]) < set(valid)
    assert set(train) < set(split_stories(many(520), n_valid=50)[0])  # none of them is held out now
    assert len(split_stories(stories + stories, n_valid=50)[1]) == 100  # different stories count once


def test_the_seed_chooses_the_split():
    first, again, other = (split_stories(many(500), n_valid=50, seed=seed)[1] for seed in (0, 0, 1))
    assert first == again
    assert len(set(first) & set(other)) < 20  # 5 expected


def test_a_split_without_two_sides_is_refused():
    with refused(ValueError, "valid_share must leave stories on both sides, got 1e-09 of 3 stories"):
        split_stories(STORIES, valid_share=1e-9)
    with refused(ValueError, r"valid_share must leave stories on both sides, got 1.5 of 3 stories"):
        split_stories(STORIES, valid_share=1.5)
    for n_valid in (0, 3):
        with refused(ValueError, rf"n_valid must be between 1 and 2, to leave a story, got {n_valid}\."):
            split_stories(STORIES, n_valid=n_valid)
    for arguments in ({}, {"valid_share": 0.1, "n_valid": 5}):
        with refused(ValueError, "valid_share or n_valid must be given, and one alone, got"):
            split_stories(STORIES, **arguments)


def test_rows_start_with_bos_and_are_filled_up_on_the_right():
    tokenizer = tiny_tokenizer()
    tokens = tokenize_stories(STORIES[:2], tokenizer, context=16)
    assert [tokenizer.convert_ids_to_tokens(row) for row in tokens.ids] == [
        ["[BOS]", "the", "cat", "sat"],
        ["[BOS]", "a", "dog", "[BOS]"],
    ]
    assert tokens.mask.tolist() == [[False, True, True, True], [False, True, True, False]]


def test_rows_are_cut_at_the_context_length():
    tokens = tokenize_stories(STORIES, tiny_tokenizer(), context=5)
    assert tokens.ids.shape == (3, 5)
    assert tokens.mask.sum(1).tolist() == [3, 2, 4]


def test_rows_can_be_selected():
    tokens = tokenize_stories(STORIES, tiny_tokenizer(), context=16)
    assert len(tokens) == 3
    assert len(tokens[1:]) == 2
    torch.testing.assert_close(tokens[torch.tensor([2])].ids, tokens.ids[2:])
    torch.testing.assert_close(tokens[torch.tensor([2])].mask, tokens.mask[2:])


def test_eos_stands_in_for_bos_and_bos_for_padding():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.pad_token = None
    tokens = tokenize_stories(STORIES[:2], tokenizer, context=16)
    assert tokens.ids[:, 0].tolist() == [tokenizer.eos_token_id] * 2
    assert tokens.ids[1, -1] == tokenizer.eos_token_id
    assert tokens.mask[:, 0].tolist() == [False, False]


def test_a_tokenizer_without_either_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with refused(ValueError, "tokenizer must have a bos_token or an eos_token"):
        tokenize_stories(STORIES, tokenizer, context=16)


def test_records_without_a_text_are_counted(tmp_path):
    from bilinear_circuits.data.text_files import CorpusWarning

    path = tmp_path / "stories.jsonl"
    path.write_text('{"text": "one"}\n{"text": null}\n{"text": "two"}\n{"other": "x", "text": "  "}\n')
    with pytest.warns(
        CorpusWarning, match="2 of the 4 records read of .*stories.jsonl have no text in 'text': left out"
    ):
        assert read_stories(path) == ["one", "two"]
    with pytest.warns(CorpusWarning):
        assert read_stories(path, limit=1) == ["one"]


def test_records_of_the_hub_without_a_text_are_counted_too(monkeypatch):
    import datasets

    from bilinear_circuits.data.text_files import CorpusWarning

    records = datasets.Dataset.from_dict({"other": [1, 2, 3], "text": ["one", None, "two"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: records)
    with pytest.warns(CorpusWarning, match="1 of the 3 records read of owner/name have no text in 'text': left out"):
        assert read_stories("owner/name") == ["one", "two"]


def test_records_that_all_have_a_text_are_read_in_silence(tmp_path, recwarn):
    path = tmp_path / "stories.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert read_stories(path) == ["one", "two"]
    assert not recwarn.list


@pytest.mark.parametrize("separator", ["|", "end", "<", "line"])
def test_a_separator_that_would_cut_the_usual_mark_apart_is_refused(tmp_path, separator, monkeypatch):
    from bilinear_circuits.data import text_files

    monkeypatch.setattr(text_files, "_CHUNK", 7)  # the mark lies across chunks
    path = tmp_path / "stories.txt"
    path.write_text("one\n<|endoftext|>\ntwo\n<|endoftext|>\n")
    with refused(ValueError, r"separator must be left out for a corpus with <\|endoftext\|>, got "):
        read_stories(path, separator=separator)
