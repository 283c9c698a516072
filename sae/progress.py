"""Dictionaries along their training: how good they are, and how well a few eigenvectors predict their features.

The model runs over the stories once per layer, for the activations that all dictionaries of the layer are measured on,
once as it is, once per side with zero in its place, and once per dictionary spliced in.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bilinear_circuits.data.stories import StoryTokens
from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.interactions.active import active_tokens
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.interactions.low_rank import LowRankCorrelation, low_rank_correlation
from bilinear_circuits.models.bilinear_mlp import BilinearMLP
from bilinear_circuits.models.running import capture_mlp, model_blocks, model_device
from bilinear_circuits.runs.splice import Side, spliced
from bilinear_circuits.statistics.correlations import rank_correlation
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.progress import Progress, silent
from sae.evaluate import Reconstruction, SpliceLoss, Tally, batches_of, cross_entropy

RANKS = (1, 2, 4)
_LEAST_POINTS = 3
T = TypeVar("T")


@dataclass(frozen=True, eq=False, repr=False)
class Stage(Brief):
    """One dictionary after some of its training.

    Attributes:
        hook_name: Where it sits.
        training_tokens: Tokens it was trained on by then.
        d_sae: Number of features.
        reconstruction: FVU, L0, dead features.
        loss: Cross-entropies.
        low_rank: Low-rank correlation of its features; None for a dictionary of an MLP input.
    """

    hook_name: str
    training_tokens: int
    d_sae: int
    reconstruction: Reconstruction
    loss: SpliceLoss
    low_rank: LowRankCorrelation | None


@dataclass(frozen=True)
class Trend:
    """How the share of low-rank features goes with the quality of one output dictionary, over its training.

    Attributes:
        hook_name: Where it sits.
        rank: Rank of the share.
        n: Stages compared.
        fvu: Spearman rank correlation of the share with the FVU; nan for fewer than three stages.
        ce_recovered: The same with recovered CE.
    """

    hook_name: str
    rank: int
    n: int
    fvu: float
    ce_recovered: float


@dataclass(frozen=True, eq=False)
class _Seen:
    """What one MLP read and wrote at the stories' own tokens."""

    x: Float[Tensor, "token d_model"]
    y: Float[Tensor, "token d_model"]


@torch.no_grad()
def training_progress(
    model: nn.Module,
    stages: Mapping[str, Mapping[int, Dictionary]],
    tokens: StoryTokens,
    *,
    ranks: Sequence[int] = RANKS,
    progress: Progress = silent,
) -> tuple[Stage, ...]:
    """Measure dictionaries kept along their training.

    Args:
        model: nn.Module of the three kinds of model.
        stages: For each hook name, the dictionary at each number of training tokens.
        tokens: Stories.
        ranks: Ranks at which output dictionaries are measured.
        progress: Wraps the loops.

    Returns:
        Sorted by layer, side and training tokens.

    Raises:
        ValueError: If there is no dictionary, a hook is no side of an MLP of the model, a dictionary has another width
            than its activations, a rank is out of range, or there is no token.
        NotBilinearError: If the MLP below an output dictionary is not bilinear.
    """
    if not stages:
        raise ValueError("stages must hold at least one dictionary, got none.")
    sides = {name: Side.of(name) for name in stages}
    layers = sorted({side.layer for side in sides.values()})
    n_layers = len(model_blocks(model))
    if layers[-1] >= n_layers:
        raise ValueError(f"dictionaries must sit at the model's layers, 0 to {n_layers - 1}, got layer {layers[-1]}.")
    base = cross_entropy(model, tokens, progress)
    found: list[Stage] = []
    for layer in layers:
        seen = _seen(model, layer, tokens, progress)
        for name in sorted(name for name, side in sides.items() if side.layer == layer):
            _check_widths(stages[name], seen.x.shape[1])
            zero = _cross_entropy_with(model, sides[name], torch.zeros_like, tokens, _named(progress, f"{name} zero"))
            mlp = BilinearMLP.from_model(model, layer) if sides[name].side == "hook_out" else None
            for n_tokens, dictionary in sorted(stages[name].items()):
                named = _named(progress, f"{name} at {n_tokens:,} tokens")
                tally = Tally(dictionary)
                tally.add(seen.x if mlp is None else seen.y)
                ce = _cross_entropy_with(model, sides[name], _reconstruct(dictionary), tokens, named)
                low_rank = None if mlp is None else _low_rank(mlp, dictionary, seen, ranks, named)
                loss = SpliceLoss(base, ce, zero)
                found.append(Stage(name, n_tokens, dictionary.d_sae, tally.result(), loss, low_rank))
    return tuple(found)


def trends(stages: Sequence[Stage], rank: int = 2, threshold: float = 0.75) -> tuple[Trend, ...]:
    """For each output dictionary, whether its features become of low rank as it becomes better.

    Raises:
        ValueError: If the rank was not measured.
    """
    found = []
    for name in dict.fromkeys(stage.hook_name for stage in stages if stage.low_rank is not None):
        rows = [stage for stage in stages if stage.hook_name == name]
        share = [row.low_rank.share_above(rank, threshold).value for row in rows if row.low_rank is not None]
        fvu = spearman([row.reconstruction.fvu for row in rows], share)
        found.append(Trend(name, rank, len(rows), fvu, spearman([row.loss.recovered for row in rows], share)))
    return tuple(found)


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman rank correlation of two rows of numbers, ties sharing their mean rank.

    Returns:
        nan where either is constant or not a number, or with fewer than three pairs.
    """
    values = torch.tensor([list(first), list(second)], dtype=torch.double)
    if values.shape[1] < _LEAST_POINTS or values.isnan().any():
        return float("nan")
    return rank_correlation(values[0], values[1])


def _named(progress: Progress, name: str) -> Progress:
    """Name what is measured in a progress bar."""

    def named(items: Sequence[T], description: str, /) -> Iterable[T]:
        return progress(items, f"{name}: {description}")

    return named


def _seen(model: nn.Module, layer: int, tokens: StoryTokens, progress: Progress) -> _Seen:
    """One run up to a layer, on the model's device."""
    x, y = [], []
    for batch in progress(batches_of(tokens), f"run the model to layer {layer}"):
        captured = capture_mlp(model, batch.ids.to(model_device(model)), [layer])[layer]
        x.append(captured.x[batch.mask])
        y.append(captured.y[batch.mask])
    return _Seen(torch.cat(x), torch.cat(y))


def _cross_entropy_with(
    model: nn.Module, side: Side, replacement: Callable[[Tensor], Tensor], tokens: StoryTokens, progress: Progress
) -> float:
    """Cross-entropy with a replacement on one side of an MLP, [BOS] left as it is.

    Padding is replaced too, which nothing measured can see: it stands on the right, and attention is causal.
    """

    def after_bos(own: Tensor) -> Tensor:
        return torch.cat([own[:, :1], replacement(own[:, 1:])], 1)

    with spliced(model, side, after_bos, torch.ones(1, 1, dtype=torch.bool)):
        return cross_entropy(model, tokens, progress)


def _reconstruct(dictionary: Dictionary) -> Callable[[Tensor], Tensor]:
    return lambda x: dictionary.decode(dictionary.encode(x))


def _low_rank(
    mlp: BilinearMLP, dictionary: Dictionary, seen: _Seen, ranks: Sequence[int], progress: Progress
) -> LowRankCorrelation:
    """Low-rank correlation of an output dictionary, on what the model's own MLP wrote."""
    interactions = FeatureInteractions(mlp, None, dictionary)
    active = active_tokens(interactions.sae_out, seen.y)
    return low_rank_correlation(interactions, seen.x, ranks, active=active, progress=progress)


def _check_widths(dictionaries: Mapping[int, Dictionary], width: int) -> None:
    for dictionary in dictionaries.values():
        if dictionary.d_in != width:
            raise ValueError(
                f"dictionary must read activations of width {width}, the model's, got {dictionary.name} of width"
                f" {dictionary.d_in}. Name the model it was trained on."
            )
