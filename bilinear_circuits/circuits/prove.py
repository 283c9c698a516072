"""Causal proof: remove a feature's low-rank form from the MLP, or the feature itself, and see what the model does.

1. Sites: the first trigger token of each of some stories that played no part in the ranking.
2. Removal subtracts (x^T Q_r x) d_f from the MLP output at every token: an edit of the weights, since it is a rank-r
   quadratic form written along the feature's decoder row. Ablation subtracts z_f d_f, the feature's own activation.
3. The effect is the change of mean logit(positive words) - mean logit(negative words) at the site.
4. The same removal is done for control features of like frequency and like norm, on the same sites.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.activity import LayerActivity
from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.circuits.rank import Evidence
from bilinear_circuits.data import StoryTokens
from bilinear_circuits.interactions import FeatureInteractions
from bilinear_circuits.progress import Progress, silent
from bilinear_circuits.running import Downstream, model_device
from bilinear_circuits.spectra import Spectrum

N_BOOTSTRAP = 2000
_SITES_PER_BATCH = 32

Edit = Callable[[Tensor, Tensor], Tensor]
"""Maps MLP input and output to what is added to the output."""


@dataclass(frozen=True)
class Effect:
    """A mean with a 95 % percentile bootstrap interval.

    Attributes:
        mean: The mean.
        low: Lower end.
        high: Upper end.
        n: Number of units resampled: stories, or control features.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Control:
    """The same removal for another feature, on the same sites.

    Attributes:
        feature: Output feature of the same layer.
        n_active: Tokens at which it is active, in the ranking stories.
        norm: Frobenius norm of its interaction matrix.
        effect: Effect of removing its rank-r form.
    """

    feature: int
    n_active: int
    norm: float
    effect: Effect


@dataclass(frozen=True)
class CausalProof:
    """What removing one circuit does. Effects are changes of the pole logit difference, in nats, at trigger tokens.

    Attributes:
        rank: Rank r of the form removed.
        removal: Effect of the removal at the trigger sites where the feature is active.
        removal_all_sites: The same at all trigger sites.
        ablation: Effect of subtracting the feature's activation, at the sites where it is active.
        ablation_all_sites: The same at all trigger sites.
        control: Mean effect of the control removals at the sites where the circuit's feature is active; the interval
            resamples control features and stories.
        controls: Each control by itself.
        p_value: (1 + controls with an effect at least as large) / (1 + controls).
        ce_base: Cross-entropy of the model on held-out stories, nats per token.
        ce_removal: Change of it under the removal; the interval resamples stories.
        ce_ablation: Change of it under the ablation.
    """

    rank: int
    removal: Effect
    removal_all_sites: Effect
    ablation: Effect
    ablation_all_sites: Effect
    control: Effect
    controls: tuple[Control, ...]
    p_value: float
    ce_base: float
    ce_removal: Effect
    ce_ablation: Effect


@dataclass(frozen=True, eq=False)
class Sites:
    """Stories cut after their first trigger token, sorted by length.

    Attributes:
        ids: Token ids, padded on the right.
        position: Position of the trigger, the last token of each row.
    """

    ids: Int[Tensor, "site pos"]
    position: Int[Tensor, " site"]

    def __len__(self) -> int:
        return len(self.position)

    @classmethod
    def choose(cls, stories: StoryTokens, tokens: QueryTokens, n: int, max_position: int) -> "Sites":
        """The first trigger of each story within `max_position` tokens, for the first n stories that have one."""
        is_trigger = tokens.is_trigger(stories.ids) & stories.mask
        is_trigger = is_trigger[:, : max_position + 1]
        rows = is_trigger.any(1).nonzero().squeeze(1)[:n]
        position = is_trigger[rows].int().argmax(1)
        order = position.argsort()
        rows, position = rows[order], position[order]
        width = int(position.max()) + 1 if len(rows) else 0
        return cls(stories.ids[rows, :width], position)

    def batches(self) -> list["Sites"]:
        """Batches of like length, trimmed to the longest row."""
        batches = []
        for index in torch.arange(len(self)).split(_SITES_PER_BATCH):
            position = self.position[index]
            batches.append(Sites(self.ids[index, : int(position.max()) + 1], position))
        return batches


class SiteExperiment:
    """One layer of a model on trigger sites, ready for edits: everything before the edit runs once."""

    def __init__(self, model: Any, layer: int, sites: Sites, tokens: QueryTokens) -> None:
        device = model_device(model)
        self._tokens, self._batches = tokens, sites.batches()
        self._runs = [Downstream(model, batch.ids.to(device), layer) for batch in self._batches]
        self._base = self._difference(lambda x, y: torch.zeros_like(y))

    def x_at_sites(self) -> Float[Tensor, "site d_model"]:
        """MLP input at every trigger."""
        return torch.cat([run.x[_at(batch)] for run, batch in zip(self._runs, self._batches, strict=True)])

    def y_at_sites(self) -> Float[Tensor, "site d_model"]:
        """MLP output at every trigger."""
        return torch.cat([run.y[_at(batch)] for run, batch in zip(self._runs, self._batches, strict=True)])

    def effect(self, edit: Edit) -> Float[Tensor, " site"]:
        """Change of the pole logit difference at every site when the edit is added to the MLP output."""
        return self._difference(edit) - self._base

    def _difference(self, edit: Edit) -> Tensor:
        out = []
        for run, batch in zip(self._runs, self._batches, strict=True):
            logits = run.logits(run.y + edit(run.x, run.y), _at(batch)).double()
            positive, negative = self._tokens.positive, self._tokens.negative
            out.append(logits[:, positive].mean(1) - logits[:, negative].mean(1))
        return torch.cat(out).cpu()


class LossExperiment:
    """Cross-entropy of a model on whole stories, with and without an edit of one layer."""

    def __init__(self, model: Any, layer: int, stories: StoryTokens) -> None:
        self._run = Downstream(model, stories.ids.to(model_device(model)), layer)
        self._ids, self._mask = stories.ids[:, 1:], stories.mask[:, 1:]
        self._base = self._loss(lambda x, y: torch.zeros_like(y))

    @property
    def base(self) -> float:
        """Mean over tokens, nats."""
        return (self._base.sum() / self._mask.sum()).item()

    def change(self, edit: Edit, generator: torch.Generator) -> Effect:
        """Change of the mean, with an interval over stories."""
        change = self._loss(edit) - self._base
        per_story, n_tokens = change.sum(1), self._mask.sum(1)
        draw = torch.randint(len(change), (N_BOOTSTRAP, len(change)), generator=generator)
        means = per_story[draw].sum(1) / n_tokens[draw].sum(1)
        return _effect(change.sum() / n_tokens.sum(), means, len(change))

    def _loss(self, edit: Edit) -> Tensor:
        logits = self._run.logits(self._run.y + edit(self._run.x, self._run.y))[:, :-1]
        ids = self._ids.to(logits.device)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids.flatten(), reduction="none")
        return (loss.view_as(ids).cpu() * self._mask).double()


def removal_edit(interactions: FeatureInteractions, feature: int, spectrum: Spectrum) -> Edit:
    """Subtract the form of a (truncated) spectrum along the feature's decoder row."""
    row = interactions.sae_out.W_dec[feature]
    return lambda x, y: -spectrum(x).unsqueeze(-1) * row


def ablation_edit(interactions: FeatureInteractions, feature: int) -> Edit:
    """Subtract the feature's own contribution z_f d_f."""
    row = interactions.sae_out.W_dec[feature]
    return lambda x, y: -interactions.sae_out.encode(y)[..., feature].unsqueeze(-1) * row


@torch.no_grad()
def prove(
    evidence: Sequence[Evidence],
    activity: LayerActivity,
    sites: SiteExperiment,
    losses: LossExperiment,
    share: Float[Tensor, " d_sae"],
    rank: int,
    n_controls: int,
    seed: int,
    progress: Progress = silent,
) -> list[CausalProof]:
    """Prove circuits of one layer.

    Args:
        evidence: The circuits.
        activity: Their layer on the ranking stories.
        sites: The same layer on the trigger sites.
        losses: The same layer on whole held-out stories.
        share: Trigger share of every output feature: controls are features without any.
        rank: Rank of the form removed.
        n_controls: Control features per circuit.
        seed: Seed of the bootstrap.
        progress: Wraps the circuits.
    """
    interactions = activity.interactions
    encoded = interactions.sae_out.encode(sites.y_at_sites())
    norms = interactions.mlp.tensor.matrix(interactions.sae_out.W_enc.T).frobenius_norm()
    proofs = []
    for one in progress(evidence, f"prove layer {interactions.mlp.layer}"):
        generator = torch.Generator().manual_seed(seed)
        active = (encoded[:, one.feature] > 0).cpu()
        removed = removal_edit(interactions, one.feature, interactions.spectrum(one.feature, rank))
        ablated = ablation_edit(interactions, one.feature)
        removal, ablation = sites.effect(removed), sites.effect(ablated)
        controls, control_effects = [], []
        for feature in matched_controls(activity, norms, share, one.feature, n_controls):
            effect = sites.effect(removal_edit(interactions, feature, interactions.spectrum(feature, rank)))[active]
            n_active = int(activity.outputs.counts[feature])
            controls.append(Control(feature, n_active, norms[feature].item(), bootstrap(effect, generator)))
            control_effects.append(effect)
        removed_effect = bootstrap(removal[active], generator)
        as_large = sum(abs(control.effect.mean) >= abs(removed_effect.mean) for control in controls)
        proofs.append(
            CausalProof(
                rank=rank,
                removal=removed_effect,
                removal_all_sites=bootstrap(removal, generator),
                ablation=bootstrap(ablation[active], generator),
                ablation_all_sites=bootstrap(ablation, generator),
                control=bootstrap_rows(torch.stack(control_effects), generator),
                controls=tuple(controls),
                p_value=(1 + as_large) / (1 + len(controls)),
                ce_base=losses.base,
                ce_removal=losses.change(removed, generator),
                ce_ablation=losses.change(ablated, generator),
            )
        )
    return proofs


def matched_controls(
    activity: LayerActivity,
    norms: Float[Tensor, " d_sae"],
    share: Float[Tensor, " d_sae"],
    feature: int,
    n: int,
    max_share: float = 0.02,
) -> list[int]:
    """The n output features closest in log frequency and log norm, among those with hardly any trigger share."""
    log_count = activity.outputs.counts.clamp_min(1).log()
    log_norm = norms.clamp_min(torch.finfo(norms.dtype).tiny).log()
    alive = activity.outputs.counts > 0
    distance = ((log_count - log_count[feature]) / log_count[alive].std()).square()
    distance = distance + ((log_norm - log_norm[feature]) / log_norm[alive].std()).square()
    eligible = alive & (share < max_share)
    eligible[feature] = False
    distance = torch.where(eligible, distance, torch.inf)
    return distance.argsort()[: min(n, int(eligible.sum()))].tolist()


def bootstrap(values: Float[Tensor, " n"], generator: torch.Generator) -> Effect:
    """Mean of independent values with its interval; NaN where there are none."""
    if len(values) == 0:
        return Effect(float("nan"), float("nan"), float("nan"), 0)
    draw = torch.randint(len(values), (N_BOOTSTRAP, len(values)), generator=generator)
    return _effect(values.mean(), values[draw].mean(1), len(values))


def bootstrap_rows(values: Float[Tensor, "row n"], generator: torch.Generator) -> Effect:
    """Mean of a table with an interval that resamples rows and columns."""
    if values.numel() == 0:
        return Effect(float("nan"), float("nan"), float("nan"), len(values))
    n_rows, n = values.shape
    rows = torch.randint(n_rows, (N_BOOTSTRAP, n_rows, 1), generator=generator)
    columns = torch.randint(n, (N_BOOTSTRAP, 1, n), generator=generator)
    return _effect(values.mean(), values[rows, columns].mean((1, 2)), n_rows)


def _effect(mean: Tensor, draws: Tensor, n: int) -> Effect:
    low, high = draws.quantile(torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist()
    return Effect(mean.item(), low, high, n)


def _at(batch: Sites) -> tuple[Tensor, Tensor]:
    return torch.arange(len(batch)), batch.position
