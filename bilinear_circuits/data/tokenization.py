"""Training the tokenizer: lower-case words and word pieces, with "n't", "'s" and the like as tokens of their own.

1. Normalise: plain quotes, dashes and dots, no accents, lower case.
2. Split at white space, around punctuation, and before contractions: didn't -> did n't.
3. Train word pieces on what is left, from every character on: no word of up to 100 characters is unknown.
"""

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bilinear_circuits.data.stories import PLAIN_SIGNS
from bilinear_circuits.utilities.progress import Progress, silent

SPECIAL_TOKENS = {"unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]", "pad_token": "[PAD]"}
CONTRACTIONS = ("n't", "'s", "'re", "'ve", "'ll", "'d", "'m")
_PREFIX = "##"
_BATCH = 1000  # texts handed to the trainer at once
_CLOSING_QUOTE = "\ue000"  # stands for one while the decoder works; no text holds it


def train_tokenizer(
    stories: Sequence[str], vocab_size: int = 4096, model_max_length: int = 256, progress: Progress = silent
) -> PreTrainedTokenizerFast:
    """Train a WordPiece tokenizer; the same stories, in any order, give the same one.

    Ids start with [UNK] [BOS] [EOS] [PAD], the contractions and the characters of the stories. Encoding adds no special
    token. Decoding joins punctuation, contractions and paired quotes to their words again.

    Args:
        stories: Texts to train on.
        vocab_size: Number of tokens; fewer where the stories have no more pieces to merge.
        model_max_length: Longest row of the model it is for.
        progress: Wraps the batches of texts.

    Raises:
        ValueError: If the stories hold no word, or `vocab_size` is too small for their characters.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = _pre_tokenizer()
    characters = _alphabet(stories, tokenizer)
    if not characters:
        raise ValueError(f"stories must hold at least one word, got none in {len(stories)} texts.")
    reserved = [*SPECIAL_TOKENS.values(), *CONTRACTIONS, *characters]
    if vocab_size < len(reserved):
        raise ValueError(
            f"vocab_size must be at least {len(reserved)}, for {len(SPECIAL_TOKENS)} special tokens, "
            f"{len(CONTRACTIONS)} contractions and {len(characters)} characters, got {vocab_size}. "
            "Raise it, or clean the stories: rare characters each take a token or two."
        )
    # Characters the trainer is not given get their numbers in an order that changes from run to run, and ties between
    # merges go by number.
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=reserved, show_progress=False)
    batches = progress(range(0, len(stories), _BATCH), "train the tokenizer")
    tokenizer.train_from_iterator((stories[start : start + _BATCH] for start in batches), trainer)
    return _finished(tokenizer.get_vocab(with_added_tokens=False), model_max_length)


def _normalizer() -> normalizers.Normalizer:
    signs = [normalizers.Replace(Regex(f"[{signs}]"), plain) for plain, signs in PLAIN_SIGNS.items()]
    return normalizers.Sequence([*signs, normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Pieces between white space: a word up to "n't", a contraction, a word, or one sign."""
    suffixes = "|".join(CONTRACTIONS[1:])
    pieces = Regex(rf"\w+(?=n't\b)|n't\b|(?:{suffixes})\b|\w+|[^\w\s]")
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(pieces, "isolated")])


def _decoder() -> decoders.Decoder:
    """Words joined from their pieces, then signs, contractions and quotes joined to their words."""

    def replace(pattern: str, content: str) -> decoders.Decoder:
        return decoders.Replace(Regex(pattern), content)

    return decoders.Sequence(
        [
            decoders.WordPiece(prefix=_PREFIX, cleanup=False),
            decoders.Fuse(),
            replace(rf" (?=[.,!?;:]|(?:{'|'.join(CONTRACTIONS[1:])})\b)", ""),
            replace(rf"(?<!{'|'.join(CONTRACTIONS)}) (?=n't\b)", ""),  # behind one, neither would be read again
            # Every second quote closes: \K leaves all up to it unchanged, and the search goes on behind it.
            replace(r'"[^"]*?\K ?"', _CLOSING_QUOTE),
            replace('" ', '"'),
            replace(_CLOSING_QUOTE, '"'),
        ]
    )


def _alphabet(stories: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """Characters that start a piece, and with the prefix those that can continue a word, sorted."""
    raw = set().union(*stories)
    characters = sorted(set(tokenizer.normalizer.normalize_str("".join(sorted(raw)))))

    def n_pieces(text: str) -> int:
        return len(tokenizer.pre_tokenizer.pre_tokenize_str(text))

    starts = [character for character in characters if n_pieces(character)]  # white space has no piece
    # The trainer builds contractions from characters as well, and so needs their apostrophe.
    continues = [character for character in starts if character == "'" or n_pieces(f"a{character}") == 1]
    return starts + [f"{_PREFIX}{character}" for character in continues]


def _finished(vocab: dict[str, int], model_max_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer around a trained vocabulary, with none but the four special tokens marked as such."""
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = _decoder()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
        **SPECIAL_TOKENS,
    )
