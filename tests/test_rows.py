"""Rows of tokens for training, and the folder in which they wait."""

import numpy as np
import pytest
import torch
from helpers import refused, tiny_tokenizer

from bilinear_circuits.data.rows import TrainingData, data_key, tokenize_rows

STORIES = ["the cat sat", "a dog", "the big dog ran on the small mat"]


def ids_of(rows):
    return [item["input_ids"].tolist() for item in (rows[i] for i in range(len(rows)))]


def test_rows_start_at_stories_and_run_on():
    # [BOS] 1, [EOS] 2, the 4, a 5, cat 6, dog 7, sat 8: the stream is 1 4 6 8 2, 1 5 7 2.
    rows = tokenize_rows(STORIES[:2], tiny_tokenizer(), context=6)
    assert ids_of(rows) == [[1, 4, 6, 8, 2, 1], [1, 5, 7, 2, 1, 4]]
    assert rows.stream.tolist() == [1, 4, 6, 8, 2, 1, 5, 7, 2]
    assert rows.starts.tolist() == [0, 5]
    assert rows[-1]["input_ids"].tolist() == [1, 5, 7, 2, 1, 4]


def test_rows_longer_than_all_stories_wrap_around_again():
    rows = tokenize_rows(["a dog"], tiny_tokenizer(), context=10)
    assert ids_of(rows) == [[1, 5, 7, 2, 1, 5, 7, 2, 1, 5]]


def test_labels_are_the_tokens_and_a_copy():
    item = tokenize_rows(STORIES, tiny_tokenizer(), context=6)[0]
    assert item["input_ids"].dtype == item["labels"].dtype == torch.long
    assert item["labels"].tolist() == item["input_ids"].tolist()
    item["labels"][0] = -100
    assert item["input_ids"][0] == 1


def test_rows_past_the_last_are_refused():
    rows = tokenize_rows(STORIES, tiny_tokenizer(), context=6)
    assert len(rows) == len(list(rows)) == 3
    with pytest.raises(IndexError):
        rows[3]


def test_stories_are_tokenized_in_batches_and_progress_is_reported():
    reported = []

    def progress(items, description):
        reported.append((description, len(items)))
        return items

    rows = tokenize_rows([STORIES[i % 3] for i in range(2500)], tiny_tokenizer(), 4, progress)
    assert reported == [("tokenize", 3)]
    assert len(rows) == 2500
    assert ids_of(rows)[2495:2498] == [ids_of(rows)[i] for i in (2, 0, 1)]


def test_a_token_takes_two_bytes_unless_the_vocabulary_is_large():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def rows(n):
        words = {"[BOS]": 0, "[EOS]": 1} | {f"w{i}": i for i in range(2, n)}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="[BOS]", eos_token="[EOS]")
        return tokenize_rows([f"w2 w{n - 1}"], fast, context=4)

    assert rows(2**16).stream.dtype == np.uint16
    assert ids_of(rows(2**16)) == [[0, 2, 2**16 - 1, 1]]
    assert rows(2**16 + 1).stream.dtype == np.int32
    assert ids_of(rows(2**16 + 1)) == [[0, 2, 2**16, 1]]


def test_the_hash_is_of_tokens_and_context():
    def hashed(stories, context=6):
        return tokenize_rows(stories, tiny_tokenizer(), context).data_hash

    # sha256 of 1 4 6 8 2 as little-endian 16-bit numbers, then "6"
    assert hashed(STORIES[:1]) == "b7bbad1e03c82e29d53cec3f6902ac575a74a6b01d36840297e9eabc4da9fbe2"
    assert len({hashed(STORIES), hashed(STORIES[::-1]), hashed(STORIES[:2]), hashed(STORIES, 7)}) == 4


def test_a_model_trains_on_rows():
    from helpers import tiny_llama
    from torch.utils.data import DataLoader

    rows = tokenize_rows(STORIES, tiny_tokenizer(), context=8)
    (batch,) = DataLoader(rows, batch_size=3)
    assert batch["input_ids"].shape == batch["labels"].shape == (3, 8)
    assert tiny_llama()(**batch).loss.isfinite()


def test_rows_refuse_what_they_cannot_use():
    tokenizer = tiny_tokenizer()
    with refused(ValueError, r"stories must hold at least one text, got none\."):
        tokenize_rows([], tokenizer, context=6)
    with refused(ValueError, r"context must be at least 2, got 1\."):
        tokenize_rows(STORIES, tokenizer, context=1)
    tokenizer.eos_token = None
    with refused(ValueError, r"tokenizer must have a bos_token and an eos_token, got ids 1 and None\."):
        tokenize_rows(STORIES, tokenizer, context=6)


def training_data(stories=STORIES):
    rows = tokenize_rows(stories, tiny_tokenizer(), context=6)
    return TrainingData(tiny_tokenizer(), rows, tokenize_rows(["a red cat"], tiny_tokenizer(), 6), {"read": 7})


def test_saved_rows_are_read_back_from_disk_as_they_were(tmp_path):
    data, folder = training_data(), tmp_path / "run/data"
    data.save(folder, "key")
    again = TrainingData.load(folder)
    for mine, theirs in ((again.rows, data.rows), (again.valid_rows, data.valid_rows)):
        assert isinstance(mine.stream, np.memmap)
        assert ids_of(mine) == ids_of(theirs)
        assert mine.data_hash == theirs.data_hash
    assert again.counts == {"read": 7}
    assert again.tokenizer.backend_tokenizer.to_str() == data.tokenizer.backend_tokenizer.to_str()
    assert again.tokenizer.bos_token_id == data.tokenizer.bos_token_id
    assert [path.name for path in folder.parent.iterdir()] == ["data"]


def test_rows_of_something_else_or_half_written_do_not_count_as_saved(tmp_path):
    folder = tmp_path / "data"
    assert not TrainingData.is_saved(folder, "one")
    (tmp_path / "data.partial").mkdir()
    (tmp_path / "data.partial/train.stream.npy").write_text("killed here")
    assert not TrainingData.is_saved(folder, "one")
    training_data().save(folder, "one")
    assert TrainingData.is_saved(folder, "one")
    assert not TrainingData.is_saved(folder, "other")
    training_data(STORIES[:1]).save(folder, "other")
    assert TrainingData.is_saved(folder, "other")
    assert len(TrainingData.load(folder).rows) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_file_that_holds_python_objects_is_not_read(tmp_path):
    training_data().save(tmp_path / "data", "key")
    np.save(tmp_path / "data/train.stream.npy", np.array([{}], dtype=object), allow_pickle=True)
    with refused(ValueError, "Python objects"):
        TrainingData.load(tmp_path / "data")


def test_the_key_is_of_the_settings_and_of_every_story():
    keys = [
        data_key({"seed": 0}, STORIES),
        data_key({"seed": 1}, STORIES),
        data_key({"seed": 0}, STORIES[::-1]),
        data_key({"seed": 0}, STORIES[:2]),
        data_key({"seed": 0}, STORIES, []),
        data_key({"seed": 0}, STORIES[:2], STORIES[2:]),
        data_key({"seed": 0}, ["the cat sata dog", STORIES[2]]),
        data_key({"seed": 0}, ["\ud800", *STORIES]),
    ]
    assert len(set(keys)) == len(keys)
    assert data_key({"a": 1, "b": 2}, STORIES) == data_key({"b": 2, "a": 1}, list(STORIES))
