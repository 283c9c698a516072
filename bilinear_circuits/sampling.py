"""Sampling stories from a model: the corpus of the demo is made this way."""

from typing import Any

import torch

from bilinear_circuits.progress import Progress, silent


@torch.no_grad()
def sample_stories(
    model: Any,
    tokenizer: Any,
    n: int,
    temperature: float = 0.9,
    seed: int = 0,
    batch_size: int = 128,
    max_tokens: int = 255,
    progress: Progress = silent,
) -> list[str]:
    """Sample stories from [BOS] to [EOS], or to `max_tokens`, with Hugging Face `generate`.

    The same seed, batch size and machine give the same stories; another machine may round differently.

    Args:
        model: A plain Hugging Face causal language model.
        tokenizer: Its tokenizer.
        n: Number of stories.
        temperature: Softmax temperature.
        seed: Seed of torch's global generator, which `generate` draws from; its state is restored afterwards.
        batch_size: Stories sampled at once.
        max_tokens: Longest story, in tokens.
        progress: Wraps the batches.

    Raises:
        ValueError: If the tokenizer has neither a [BOS] nor an [EOS] token.
    """
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if bos is None:
        raise ValueError("tokenizer must have a bos_token or an eos_token to start stories with.")
    # Training rows run on into the next story, so [BOS] ends a story as well as [EOS].
    ends = [token for token in (tokenizer.eos_token_id, bos) if token is not None]
    stories: list[str] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in progress(range(0, n, batch_size), "sample"):
            prompt = torch.full((min(batch_size, n - start), 1), bos, device=model.device)
            rows = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=True,
                temperature=temperature,
                top_k=0,
                max_new_tokens=max_tokens,
                use_cache=True,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=ends,
            )
            stories += [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
    return [story for story in stories if story]
