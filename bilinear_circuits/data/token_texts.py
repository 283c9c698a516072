"""Texts of token ids, as a tokenizer writes them one by one."""

from typing import Any


class TokenTexts:
    """Texts of token ids, each looked up once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, token_id: int) -> str:
        """Text of one token."""
        if token_id not in self._known:
            self._known[token_id] = token_text(self._tokenizer, token_id)
        return self._known[token_id]


def token_text(tokenizer: Any, token_id: int) -> str:
    """Text of one token, as the tokenizer writes it; marks of byte-level and SentencePiece tokenizers are resolved.

    An id that the tokenizer does not have, as where a vocabulary is rounded up, is shown as such: <4097>.
    """
    raw = _raw_token(tokenizer, int(token_id))
    if raw is None:
        return f"<{token_id}>"
    if raw.isascii():
        return raw
    decoded = str(tokenizer.decode([int(token_id)], clean_up_tokenization_spaces=False))
    return raw.replace("Ġ", " ").replace("▁", " ") if "▁" in raw or "\ufffd" in decoded else decoded


def _raw_token(tokenizer: Any, token_id: int) -> str | None:
    try:
        return tokenizer.convert_ids_to_tokens(token_id)
    except (IndexError, KeyError, OverflowError):  # tokenizers differ in how they miss an id
        return None
