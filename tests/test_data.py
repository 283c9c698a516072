import pytest
import torch
from helpers import refused, tiny_tokenizer

from bilinear_circuits.data import read_stories, tokenize_stories

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


def test_a_hub_id_is_read_with_datasets(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return {"text": iter(STORIES)}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_stories("owner/name", limit=5) == STORIES
    assert read_stories("owner/name") == STORIES
    assert asked == [("owner/name", "train[:5]"), ("owner/name", "train")]


def test_rows_start_with_bos_and_are_padded_on_the_right():
    tokenizer = tiny_tokenizer()
    tokens = tokenize_stories(STORIES[:2], tokenizer, context=16)
    assert [tokenizer.convert_ids_to_tokens(row) for row in tokens.ids] == [
        ["[BOS]", "the", "cat", "sat"],
        ["[BOS]", "a", "dog", "[PAD]"],
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
