"""The report on an edit: what it does to the behaviour, to everything else, and whether it is the edit asked for.

1. The effect at trigger sites, measured in the edited model by whole forward passes, against what hooks on the
   original predict; of each feature alone; and by rank, from 1 to full.
2. The same edit of matched control features.
3. Cross-entropy and KL divergence from the original, over all tokens and after triggers.
4. The weights: what was there is unchanged, and what was added is the change of the interaction tensor asked for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.circuits.rank import screen_features
from bilinear_circuits.data.stories import StoryTokens
from bilinear_circuits.interactions.activity import LayerActivity
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.models.running import unembedding
from bilinear_circuits.runs import Runs, measure
from bilinear_circuits.statistics.effects import Effect, bootstrap, bootstrap_rows
from bilinear_circuits.surgery.controls import control_edits
from bilinear_circuits.surgery.edits import FormEdit
from bilinear_circuits.surgery.predictions import PredictionShift, compare_predictions
from bilinear_circuits.surgery.weights import WeightCheck, check_weights
from bilinear_circuits.utilities.display import Result
from bilinear_circuits.utilities.progress import Progress, silent

RANKS = (1, 2, 4, 8, 16)
TOLERANCE = 0.1


@dataclass(frozen=True)
class FeatureEffect:
    """One feature of the edit by itself, predicted with hooks.

    Attributes:
        name: Layer and feature.
        factor: What its form is multiplied by.
        effect: Effect at the sites where it is active.
        effect_all_sites: Effect at all sites.
    """

    name: str
    factor: float
    effect: Effect
    effect_all_sites: Effect


@dataclass(frozen=True)
class RankEffect:
    """The whole edit at another rank, predicted with hooks, at the sites where a feature of it is active."""

    rank: int
    effect: Effect


@dataclass(frozen=True)
class ControlSet:
    """Effects of the edit of one set of control features, at the sites where a feature of the edit is active."""

    names: tuple[str, ...]
    effect: Effect


@dataclass(frozen=True, eq=False, repr=False)
class EditReport(Result):
    """What an edit does. Effects are changes of the pole logit difference at trigger tokens, in nats.

    Attributes:
        edits: The edits.
        effect: Effect in the edited model, at the sites where at least one feature edited is active.
        effect_all_sites: The same at all trigger sites.
        predicted: The effect as hooks on the original predict it, at the sites of `effect`.
        largest_deviation: Largest difference between measured and predicted at a site.
        features: Each feature alone.
        ranks: The edit at several ranks, the full one last.
        matching_rank: Smallest of these with 90 to 110 % of the effect of full rank, since a low rank can do more than
            the whole form; None where that is zero.
        control: Mean effect of controls that act at triggers no more than chance; the interval resamples sets of
            control features and sites.
        controls: Each set of them.
        trigger_control: Mean magnitude of the effects of controls that act at triggers and point to no pole; the
            interval resamples sets.
        trigger_controls: Each set of them.
        overall: Predictions of all tokens.
        at_triggers: Predictions of the tokens right after a trigger.
        weights: What the files of the edited model hold.
    """

    edits: tuple[FormEdit, ...]
    effect: Effect
    effect_all_sites: Effect
    predicted: Effect
    largest_deviation: float
    features: tuple[FeatureEffect, ...]
    ranks: tuple[RankEffect, ...]
    matching_rank: int | None
    control: Effect
    controls: tuple[ControlSet, ...]
    trigger_control: Effect
    trigger_controls: tuple[ControlSet, ...]
    overall: PredictionShift
    at_triggers: PredictionShift
    weights: WeightCheck

    @property
    def control_share(self) -> float:
        """Size of the mean effect of the controls as a share of that of the edit."""
        return abs(self.control.mean / self.effect.mean) if self.effect.mean else math.nan

    @property
    def trigger_control_share(self) -> float:
        """Mean size of the effects of the controls at triggers, as a share of the edit's."""
        return abs(self.trigger_control.mean / self.effect.mean) if self.effect.mean else math.nan


@torch.no_grad()
def measure_edit(
    runs: Runs[QueryTokens],
    edited: Any,
    edits: Sequence[FormEdit],
    activity: Sequence[LayerActivity],
    stories: StoryTokens,
    n_controls: int = 12,
    seed: int = 0,
    progress: Progress = silent,
) -> EditReport:
    """Measure an edited model against the one it was made from.

    Cost: about 2 n_controls + 12 passes over the sites, and one of each model over the stories.

    Args:
        runs: The original at trigger sites, at the first layer edited or an earlier one.
        edited: The edited model, as read from disk.
        edits: Its edits.
        activity: The layers edited, on stories that are not used otherwise; controls are matched on them.
        stories: Stories for cross-entropy and KL divergence.
        n_controls: Sets of control features of either kind.
        seed: Seed of the bootstrap.
        progress: Wraps controls and stories.

    Raises:
        ValueError: If no feature edited is active at a site, or the edited model has other weights than those of the
            original and the edits.
    """
    generator = torch.Generator().manual_seed(seed)
    model, tokens = runs.model, runs.metric
    interactions = [one.interactions for one in activity]
    weights = check_weights(model, edited, edits)
    active = active_at(runs, interactions, edits)
    here = active.any(0)
    if not here.any():
        names = ", ".join(edit.name for edit in edits)
        raise ValueError(f"edits must be of features that are active at a trigger site, got {names}. Use more stories.")
    predicted = effect_of(runs, edits)
    measured = measure(edited, runs.sites, tokens) - measure(model, runs.sites, tokens)
    ranks = _by_rank(runs.select(here), interactions, edits, generator)
    screens = [screen_features(one, tokens, unembedding(model).to(one.x)) for one in activity]
    kinds = control_edits(edits, activity, screens, n_controls)
    (controls, table), (trigger_controls, trigger_table) = (
        _run_controls(runs.select(here), sets, generator, progress) for sets in kinds
    )
    overall, at_triggers = compare_predictions(model, edited, stories, tokens, generator, progress)
    return EditReport(
        edits=tuple(edits),
        effect=bootstrap(measured[here], generator),
        effect_all_sites=bootstrap(measured, generator),
        predicted=bootstrap(predicted[here], generator),
        largest_deviation=(measured - predicted).abs().max().item(),
        features=_alone(runs, edits, active, generator),
        ranks=ranks,
        matching_rank=_matching_rank(ranks),
        control=bootstrap_rows(table, generator),
        controls=controls,
        trigger_control=bootstrap(trigger_table.mean(1).abs(), generator),
        trigger_controls=trigger_controls,
        overall=overall,
        at_triggers=at_triggers,
        weights=weights,
    )


def effect_of(runs: Runs[QueryTokens], edits: Sequence[FormEdit]) -> Float[Tensor, " site"]:
    """Effect at every site when edits of the weights are made by hooks, all at once."""
    return runs.effect([(edit.layer, edit) for edit in edits])


def active_at(
    runs: Runs[QueryTokens], interactions: Sequence[FeatureInteractions], edits: Sequence[FormEdit]
) -> Bool[Tensor, "edit site"]:
    """At which sites the feature of each edit is active, in the model as it is."""
    dictionaries = {layer.mlp.layer: layer.sae_out for layer in interactions}
    written = runs.mlps(sorted({edit.layer for edit in edits}))
    active = [dictionaries[edit.layer].is_active(written[edit.layer].y, edit.feature).cpu() for edit in edits]
    return torch.stack(active)


def _alone(
    runs: Runs[QueryTokens], edits: Sequence[FormEdit], active: Bool[Tensor, "edit site"], generator: torch.Generator
) -> tuple[FeatureEffect, ...]:
    effects = []
    for edit, where in zip(edits, active, strict=True):
        effect = effect_of(runs, [edit])
        parts = (bootstrap(part, generator) for part in (effect[where], effect))
        effects.append(FeatureEffect(edit.name, edit.factor, *parts))
    return tuple(effects)


def _by_rank(
    runs: Runs[QueryTokens], interactions: Sequence[Any], edits: Sequence[FormEdit], generator: torch.Generator
) -> tuple[RankEffect, ...]:
    by_layer = {layer.mlp.layer: layer for layer in interactions}
    full = [FormEdit.of(by_layer[edit.layer], edit.feature, None, edit.factor) for edit in edits]
    ranks = [rank for rank in RANKS if rank < full[0].rank] + [full[0].rank]
    return tuple(
        RankEffect(rank, bootstrap(effect_of(runs, [edit.truncate(rank) for edit in full]), generator))
        for rank in ranks
    )


def _matching_rank(ranks: Sequence[RankEffect]) -> int | None:
    """Smallest rank whose effect is within a tolerance of that of the last one, on either side."""
    whole = ranks[-1].effect.mean
    if whole == 0:
        return None
    return next(rank.rank for rank in ranks if abs(rank.effect.mean / whole - 1) <= TOLERANCE)


def _run_controls(
    runs: Runs[QueryTokens], sets: Sequence[Sequence[FormEdit]], generator: torch.Generator, progress: Progress
) -> tuple[tuple[ControlSet, ...], Float[Tensor, "set site"]]:
    controls, effects = [], [torch.zeros(0, len(runs), dtype=torch.double)]
    for edits in progress(sets, "controls"):
        effect = effect_of(runs, edits)
        controls.append(ControlSet(tuple(edit.name for edit in edits), bootstrap(effect, generator)))
        effects.append(effect.unsqueeze(0))
    return tuple(controls), torch.cat(effects)
