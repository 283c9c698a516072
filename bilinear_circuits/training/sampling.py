"""Sampling stories from a model: the corpus of the demo is made this way."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.models.running import context_length
from bilinear_circuits.utilities.progress import Progress, silent


@torch.no_grad()
def sample_stories(
    model: Any,
    tokenizer: Any,
    n: int,
    temperature: float = 0.9,
    seed: int = 0,
    batch_size: int = 128,
    max_tokens: int | None = None,
    progress: Progress = silent,
) -> list[str]:
    """Sample stories from [BOS] to [EOS], or to `max_tokens`.

    Tokens are drawn from the whole softmax at the temperature given: what a generation_config.json beside the model
    says has no part in it. Ids that the tokenizer does not have, as where a vocabulary is rounded up, are not drawn.
    The same seed, batch size and machine give the same stories; another machine may round differently.

    Args:
        model: A plain Hugging Face causal language model.
        tokenizer: Its tokenizer.
        n: Number of stories.
        temperature: Softmax temperature.
        seed: Seed of torch's global generator, which is drawn from; its state is restored afterwards.
        batch_size: Stories sampled at once.
        max_tokens: Longest story, in tokens; by default what the model's context takes besides [BOS].
        progress: Wraps the batches.

    Raises:
        ValueError: If the tokenizer has neither a [BOS] nor an [EOS] token, or `max_tokens` is not positive or more
            than the context takes.
    """
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if bos is None:
        raise ValueError("tokenizer must have a bos_token or an eos_token to start stories with.")
    longest = context_length(model) - 1
    max_tokens = longest if max_tokens is None else max_tokens
    check_max_tokens(max_tokens, longest)
    # Training rows run on into the next story, so [BOS] ends a story as well as [EOS].
    ends = {token for token in (tokenizer.eos_token_id, bos) if token is not None}
    allowed = _scores_of_known(model, tokenizer)
    stories: list[str] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in progress(range(0, n, batch_size), "sample"):
            size = min(batch_size, n - start)
            rows = _sample_rows(model, bos, ends, size, temperature, max_tokens, allowed)
            stories += [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
    return [story for story in stories if story]


def check_max_tokens(max_tokens: int, longest: int) -> None:
    """Refuse a length that is none, or that the model's context does not take.

    Raises:
        ValueError: If it is.
    """
    if not 1 <= max_tokens <= longest:
        raise ValueError(
            f"max_tokens must be between 1 and {longest}, which with [BOS] fill the model's context, got {max_tokens}."
        )


def _scores_of_known(model: Any, tokenizer: Any) -> Float[Tensor, " d_vocab"]:
    """What to add to logits: 0 for tokens of the tokenizer, minus infinity for other ids."""
    size = model.config.vocab_size
    scores = torch.full((size,), -torch.inf, device=model.device)
    scores[[token for token in tokenizer.get_vocab().values() if token < size]] = 0
    return scores


def _sample_rows(
    model: Any, bos: int, ends: set[int], size: int, temperature: float, max_tokens: int, allowed: Tensor
) -> list[list[int]]:
    """Draw one batch, all rows until the last of them has ended; each up to its own end."""
    drawn = torch.full((size, 1), bos, device=model.device)
    going = torch.ones(size, dtype=torch.bool, device=model.device)
    stop, cache, columns = torch.tensor(sorted(ends), device=model.device), None, []
    for _ in range(max_tokens):
        out = model(input_ids=drawn, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        shares = ((out.logits[:, -1].float() + allowed) / temperature).softmax(-1)
        drawn = torch.multinomial(shares, 1)
        drawn[~going] = stop[0]
        columns.append(drawn)
        going &= ~torch.isin(drawn[:, 0], stop)
        if not going.any():
            break
    rows = torch.cat(columns, 1).tolist()
    return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows]
