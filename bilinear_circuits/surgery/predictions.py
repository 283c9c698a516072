"""How far an edited model's predictions of the next token are from the original's: cross-entropy and KL divergence."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.data.stories import StoryTokens
from bilinear_circuits.models.running import model_device, run_logits
from bilinear_circuits.statistics.effects import Effect, bootstrap_ratio
from bilinear_circuits.utilities.progress import Progress, silent

_STORIES_PER_BATCH = 8


@dataclass(frozen=True)
class PredictionShift:
    """Predictions of two models at the same tokens, in nats per token; intervals resample stories.

    Attributes:
        n_tokens: Number of predictions compared.
        ce_before: Cross-entropy of the original.
        ce_after: Cross-entropy of the edited model.
        ce_change: Their difference.
        kl: Mean of KL(original || edited).
        largest_kl: Largest of it.
    """

    n_tokens: int
    ce_before: float
    ce_after: float
    ce_change: Effect
    kl: Effect
    largest_kl: float


@torch.no_grad()
def compare_predictions(
    original: Any,
    edited: Any,
    stories: StoryTokens,
    tokens: QueryTokens,
    generator: torch.Generator,
    progress: Progress = silent,
) -> tuple[PredictionShift, PredictionShift]:
    """Predictions of all story tokens, and of those right after a trigger.

    Both models run whole, on the same rows. Logits are compared in float64.
    """
    losses: list[Tensor] = []
    for rows in progress(torch.arange(len(stories)).split(_STORIES_PER_BATCH), "compare predictions"):
        ids = stories.ids[rows]
        p, q = (
            run_logits(model, ids.to(model_device(model)))[:, :-1].double().log_softmax(-1).cpu()
            for model in (original, edited)
        )
        following = ids[:, 1:].unsqueeze(-1)
        before, after = (-logs.gather(-1, following).squeeze(-1) for logs in (p, q))
        losses.append(torch.stack([before, after, (p.exp() * (p - q)).sum(-1)]))
    before, after, kl = torch.cat(losses, 1)
    mask = stories.mask[:, 1:]
    at_trigger = mask & tokens.is_trigger(stories.ids[:, :-1])
    return (_shift(before, after, kl, mask, generator), _shift(before, after, kl, at_trigger, generator))


def _shift(
    before: Float[Tensor, "story pos"],
    after: Float[Tensor, "story pos"],
    kl: Float[Tensor, "story pos"],
    mask: Bool[Tensor, "story pos"],
    generator: torch.Generator,
) -> PredictionShift:
    return PredictionShift(
        n_tokens=int(mask.sum()),
        ce_before=before[mask].mean().item(),
        ce_after=after[mask].mean().item(),
        ce_change=_per_token(after - before, mask, generator),
        kl=_per_token(kl, mask, generator),
        largest_kl=kl[mask].max().item() if mask.any() else math.nan,
    )


def _per_token(
    values: Float[Tensor, "story pos"], mask: Bool[Tensor, "story pos"], generator: torch.Generator
) -> Effect:
    """Mean over the tokens of a mask, with an interval over the stories that have such tokens."""
    rows = mask.any(1)
    return bootstrap_ratio((values * mask)[rows].sum(1), mask[rows].sum(1), generator)
