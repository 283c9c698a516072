import random
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import refused

from bilinear_circuits.data.stories import normalise
from bilinear_circuits.data.tokenization import train_tokenizer

STORIES = [
    'Tim didn’t like it. "I can\'t go," he said.',
    "She’ll say they're sad, and we've seen Lily's dog!",
    "I'm happy. He'd play; the dog ran: why? Wait… no – yes.",
    "The dog played. The dog was playing. They like to play and to like the big, big dog.",
]
SPECIAL = ["[UNK]", "[BOS]", "[EOS]", "[PAD]"]
CONTRACTIONS = ["n't", "'s", "'re", "'ve", "'ll", "'d", "'m"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(STORIES, vocab_size=400)


def test_special_tokens_come_first(tokenizer):
    assert tokenizer.convert_ids_to_tokens(range(4)) == SPECIAL
    assert [tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id] == [
        0,
        1,
        2,
        3,
    ]
    assert sorted(tokenizer.all_special_tokens) == sorted(SPECIAL)
    assert list(tokenizer.added_tokens_decoder) == [0, 1, 2, 3]


def test_words_signs_and_contractions_are_tokens(tokenizer):
    assert tokenizer.tokenize('Tim DIDN\'T like it, "dog."') == [
        *["tim", "did", "n't", "like", "it", ",", '"', "dog", ".", '"'],
    ]
    assert tokenizer.tokenize("She'll, they're, we've; Lily's. I'm, he'd") == [
        *["she", "'ll", ",", "they", "'re", ",", "we", "'ve", ";", "lily", "'s", ".", "i", "'m", ",", "he", "'d"],
    ]
    assert tokenizer.tokenize("can't") == ["ca", "n't"]


def test_an_apostrophe_elsewhere_is_a_sign(tokenizer):
    assert tokenizer.tokenize("'dog' dog's' 'say") == ["'", "dog", "'", "dog", "'s", "'", "'", "say"]


def test_contractions_are_whole_without_having_been_seen():
    small = train_tokenizer(["a b n t s r e v l d m '"], vocab_size=40)
    assert small.tokenize("a" + " a".join(CONTRACTIONS)) == [
        piece for contraction in CONTRACTIONS for piece in ("a", contraction)
    ]


def test_encoding_adds_no_special_token(tokenizer):
    assert tokenizer.encode("dog") == tokenizer.convert_tokens_to_ids(["dog"])
    assert list(tokenizer("dog")) == ["input_ids", "attention_mask"]


def test_special_tokens_are_read_and_left_out(tokenizer):
    ids = tokenizer.encode("[BOS] the dog [EOS]")
    assert tokenizer.convert_ids_to_tokens(ids) == ["[BOS]", "the", "dog", "[EOS]"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the dog"


@pytest.mark.parametrize(
    "text",
    [
        "didn't like it.",
        "she'll say they're sad, and we've seen lily's dog!",
        "i'm happy. he'd play; the dog ran: why?",
        '"i can\'t go," he said. "why?"',
        'he said, "yes',  # a quote left open
        '"" "dog"',
        "play playing played",
        "zzq",  # in pieces
    ],
)
def test_decoding_reads_naturally(text):
    tokenizer = train_tokenizer([*STORIES, "z q"], vocab_size=400)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decoding_keeps_the_tokens(tokenizer):
    generator = random.Random(0)
    words = [*CONTRACTIONS, *"'\".,!?;:-", "the", "dog", "did", "s", "t", "n", "d", "ll", "say"]
    for _ in range(1000):
        text = "".join(generator.choice(words) + generator.choice(["", " "]) for _ in range(12))
        ids = tokenizer.encode(text)
        assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_single_tokens_decode_to_themselves(tokenizer):
    tokens = ["dog", "n't", '"', ".", "##a"]
    assert [tokenizer.decode([i]) for i in tokenizer.convert_tokens_to_ids(tokens)] == tokens


def test_text_is_normalised(tokenizer):
    raw = "“Thé dog”… didn’t – «play» „sad“ Lily`s"
    assert tokenizer.tokenize(raw) == tokenizer.tokenize('"the dog"... didn\'t - "play" "sad" lily\'s')
    assert tokenizer.encode(raw) == tokenizer.encode(normalise(raw))


def test_it_splits_as_the_shipped_tokenizer_does(tokenizer):
    from transformers import AutoTokenizer

    from bilinear_circuits import zoo

    shipped = AutoTokenizer.from_pretrained(zoo.model_path("ts-17m")).backend_tokenizer
    own = tokenizer.backend_tokenizer
    for story in [*STORIES, "Zoë´s «3-year-old» didn't_go; won’t, isn'tit, 'sad' 'll’s rock’n’roll £5 naïve"]:
        normal = own.normalizer.normalize_str(story)
        assert normal == shipped.normalizer.normalize_str(story)
        assert own.pre_tokenizer.pre_tokenize_str(normal) == shipped.pre_tokenizer.pre_tokenize_str(normal)


def test_no_word_made_of_seen_characters_is_unknown(tokenizer):
    assert tokenizer.unk_token_id not in tokenizer.encode("ydgo! " + "dog" * 33 + " ; l'i't")
    assert tokenizer.encode("8") == [tokenizer.unk_token_id]


def test_the_vocabulary_has_the_size_asked_for():
    # 4 special tokens, 7 contractions, "a b" and "' . ##' ##a ##b", and one merge: a ##b
    tokenizer = train_tokenizer(["ab' ab. ab ab"], vocab_size=18)
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == [
        *SPECIAL,
        *CONTRACTIONS,
        *["'", ".", "a", "b", "##'", "##a", "##b"],
    ]
    assert train_tokenizer(["ab' ab. ab ab"], vocab_size=50).convert_ids_to_tokens([18]) == ["ab"]
    assert len(train_tokenizer(["ab' ab. ab ab"], vocab_size=50)) == 19


CODE = """
from test_tokenization import STORIES, train_tokenizer
print(train_tokenizer(STORIES, vocab_size=150).backend_tokenizer.to_str())
"""


@pytest.mark.slow
def test_the_same_stories_give_the_same_tokenizer():
    # The trainer's own order differs from one process to the next.
    command = [sys.executable, "-c", CODE]
    other = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert train_tokenizer(STORIES, vocab_size=150).backend_tokenizer.to_str() == other
    assert train_tokenizer(STORIES[::-1], vocab_size=150).backend_tokenizer.to_str() == other


def test_it_is_saved_as_a_fast_tokenizer(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = train_tokenizer(STORIES, vocab_size=400, model_max_length=77)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.is_fast
    assert loaded.model_max_length == 77
    assert loaded.get_vocab() == tokenizer.get_vocab()
    for story in STORIES:
        assert loaded.encode(story) == tokenizer.encode(story)
        assert loaded.decode(loaded.encode(story)) == tokenizer.decode(tokenizer.encode(story))
    assert [loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id] == [1, 2, 3]
    assert list(loaded("dog")) == ["input_ids", "attention_mask"]


def test_it_is_loaded_beside_a_model(tmp_path):
    from helpers import tiny_llama
    from transformers import AutoTokenizer

    tokenizer = train_tokenizer(STORIES, vocab_size=61)
    tiny_llama().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).tokenize(STORIES[0]) == tokenizer.tokenize(STORIES[0])
    with_bos = AutoTokenizer.from_pretrained(tmp_path, add_bos_token=True)
    assert with_bos.encode("dog") == [1, *tokenizer.encode("dog")]


@pytest.mark.parametrize("stories", [[], ["", " \n\u00a0"]])
def test_stories_without_a_word_are_refused(stories):
    with refused(ValueError, rf"stories must hold at least one word, got none in {len(stories)} texts\."):
        train_tokenizer(stories)


def test_a_vocabulary_too_small_for_the_characters_is_refused():
    with refused(
        ValueError,
        "vocab_size must be at least 18, for 4 special tokens, 7 contractions and 7 characters, got 17. Raise it",
    ):
        train_tokenizer(["ab' ab. ab ab"], vocab_size=17)
