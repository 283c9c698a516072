"""A circuit query: trigger words, and two poles of words between which a circuit moves the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bilinear_circuits.data.stories import StoryTokens
from bilinear_circuits.runs import Sites
from bilinear_circuits.utilities.display import Brief


@dataclass(frozen=True)
class CircuitQuery:
    """What to look for.

    Attributes:
        name: Title of the report.
        triggers: Words at which the circuit acts, such as "not" and "n't".
        positive: Words of the positive pole, such as "good".
        negative: Words of the negative pole, such as "bad".
        allow_missing: Leave out words that are no single token of the model's vocabulary, and record them, instead of
            refusing the query. Each list must keep at least one word.
    """

    name: str
    triggers: Sequence[str]
    positive: Sequence[str]
    negative: Sequence[str]
    allow_missing: bool = False

    def __post_init__(self) -> None:
        for field in ("triggers", "positive", "negative"):
            words = getattr(self, field)
            if (
                isinstance(words, str)
                or not isinstance(words, Sequence)
                or not all(isinstance(word, str) for word in words)
            ):
                raise ValueError(f'{field} must be a list of words, got {words!r}. Quote words such as "no" in YAML.')
            if not words:
                raise ValueError(f"{field} must hold at least one word, got none.")
            if not all(map(str.strip, words)):
                raise ValueError(f"{field} must hold words, got one without a letter in {list(words)!r}.")
            object.__setattr__(self, field, tuple(words))
        if not isinstance(self.name, str):
            raise ValueError(f"name must be a text, got {self.name!r}. Quote it.")
        if not isinstance(self.allow_missing, bool):
            raise ValueError(f"allow_missing must be true or false, got {self.allow_missing!r}.")
        if both := sorted(set(self.positive) & set(self.negative)):
            raise ValueError(f"positive and negative must not share words, got {', '.join(both)} in both.")


@dataclass(frozen=True, eq=False, repr=False)
class QueryTokens(Brief):
    """A query in one model's vocabulary; a metric of `runs`, the difference of its poles.

    Attributes:
        name: Name of the metric.
        unit: Its unit.
        triggers: Token ids of the triggers, with every spelling that is a single token.
        positive: Token ids of the positive pole.
        negative: Token ids of the negative pole.
        missing: Words left out, where the query allows it.
    """

    triggers: Int[Tensor, " n_triggers"]
    positive: Int[Tensor, " n_positive"]
    negative: Int[Tensor, " n_negative"]
    missing: tuple[str, ...]
    name: ClassVar[str] = "pole logit difference"
    unit: ClassVar[str] = "nats"

    @classmethod
    def resolve(cls, query: CircuitQuery, tokenizer: Any) -> "QueryTokens":
        """Look the words up: as they are, capitalised, and with a space in front, whichever are single tokens.

        Raises:
            ValueError: If a word is no single token and the query does not allow that, or a list is left empty.
        """
        found = {field: _lookup(getattr(query, field), tokenizer) for field in ("triggers", "positive", "negative")}
        missing = [word for _, absent in found.values() for word in absent]
        if missing and not query.allow_missing:
            raise ValueError(
                f"query words must be single tokens of the model's vocabulary, got {', '.join(missing)}, which are not."
                " Remove them, or set allow_missing: true in the query."
            )
        ids = {field: torch.tensor(sorted(known)) for field, (known, _) in found.items()}
        for field, known in ids.items():
            if not len(known):
                raise ValueError(f"{field} must hold at least one word that is a single token, got none that is.")
        if both := set(ids["positive"].tolist()) & set(ids["negative"].tolist()):
            shared = ", ".join(str(tokenizer.convert_ids_to_tokens(token)) for token in sorted(both))
            raise ValueError(f"positive and negative must not share tokens, got {shared} in both.")
        return cls(ids["triggers"], ids["positive"], ids["negative"], tuple(missing))

    def difference(self, logits: Float[Tensor, "*n d_vocab"]) -> Float[Tensor, "*n"]:
        """Mean logit of the positive pole less that of the negative."""
        return logits[..., self.positive].mean(-1) - logits[..., self.negative].mean(-1)

    def __call__(
        self, logits: Float[Tensor, "n d_vocab"], following: Int[Tensor, " n"] | None = None, /
    ) -> Float[Tensor, " n"]:
        """Mean logit of the positive pole less that of the negative, in float64."""
        return self.difference(logits.double())

    def sites(self, stories: StoryTokens, n: int, max_position: int) -> Sites:
        """Find the first trigger of each story within `max_position` tokens, for the first n stories that have one."""
        return Sites.first(stories, self.is_trigger(stories.ids), n, max_position)

    def is_trigger(self, token_ids: Int[Tensor, "*n"]) -> Bool[Tensor, "*n"]:
        """Mark the tokens that are triggers."""
        return torch.isin(token_ids, self.triggers.to(token_ids.device))


def _lookup(words: Sequence[str], tokenizer: Any) -> tuple[set[int], list[str]]:
    """Ids of the spellings that are single tokens, and the words that have none."""
    ids: set[int] = set()
    missing = []
    for word in words:
        spellings = {word, word.capitalize(), f" {word}", f" {word.capitalize()}"}
        pieces = [tokenizer.encode(spelling, add_special_tokens=False) for spelling in spellings]
        single = {piece[0] for piece in pieces if len(piece) == 1 and piece[0] != tokenizer.unk_token_id}
        ids |= single
        if not single:
            missing.append(word)
    return ids, missing
