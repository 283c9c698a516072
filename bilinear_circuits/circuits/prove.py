"""Causal proof: remove a feature's low-rank form from the MLP, or the feature itself, and see what the model does.

1. Sites: the first trigger token of each of some stories that played no part in the ranking.
2. Removal subtracts (x^T Q_r x) d_f from the MLP output at every token: an edit of the weights, since it is a rank-r
   quadratic form written along the feature's decoder row. Ablation subtracts z_f d_f, the feature's own activation.
3. The effect is the change of mean logit(positive words) - mean logit(negative words) at the site.
4. The same removal is done for control features of like frequency and like norm, on the same sites.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.activity import LayerActivity
from bilinear_circuits.circuits.effects import Effect, bootstrap, bootstrap_rows
from bilinear_circuits.circuits.experiments import LossExperiment, SiteExperiment, ablation_edit, removal_edit
from bilinear_circuits.circuits.rank import Evidence
from bilinear_circuits.progress import Progress, silent


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
        share: Trigger share of every output feature.
        rank: Rank of the form removed.
        n_controls: Control features per circuit.
        seed: Seed of the bootstrap.
        progress: Wraps the circuits.
    """
    interactions = activity.interactions
    encoded = interactions.sae_out.encode(sites.y_at_sites())
    proofs = []
    for one in progress(evidence, f"prove layer {interactions.mlp.layer}"):
        generator = torch.Generator().manual_seed(seed)
        active = (encoded[:, one.feature] > 0).cpu()
        removed = removal_edit(interactions, one.feature, interactions.spectrum(one.feature, rank))
        ablated = ablation_edit(interactions, one.feature)
        removal, ablation = sites.effect(removed), sites.effect(ablated)
        at_active = bootstrap(removal[active], generator)
        chosen = matched_controls(activity, share, one.feature, n_controls)
        controls, control = _run_controls(chosen, activity, sites.select(active), rank, generator)
        as_large = sum(abs(other.effect.mean) >= abs(at_active.mean) for other in controls)
        proofs.append(
            CausalProof(
                rank=rank,
                removal=at_active,
                removal_all_sites=bootstrap(removal, generator),
                ablation=bootstrap(ablation[active], generator),
                ablation_all_sites=bootstrap(ablation, generator),
                control=control,
                controls=controls,
                p_value=(1 + as_large) / (1 + len(controls)),
                ce_base=losses.base,
                ce_removal=losses.change(removed, generator),
                ce_ablation=losses.change(ablated, generator),
            )
        )
    return proofs


def _run_controls(
    features: Sequence[int],
    activity: LayerActivity,
    sites: SiteExperiment,
    rank: int,
    generator: torch.Generator,
) -> tuple[tuple[Control, ...], Effect]:
    """The removal of each control at the sites where the circuit's feature is active, and their mean."""
    interactions = activity.interactions
    controls, effects = [], [torch.zeros(0, len(sites), dtype=torch.double)]
    for feature in features:
        edit = removal_edit(interactions, feature, interactions.spectrum(feature, rank))
        effect = sites.effect(edit)
        norm = interactions.form(feature).matrix.frobenius_norm().item()
        n_active = int(activity.outputs.counts[feature])
        controls.append(Control(feature, n_active, norm, bootstrap(effect, generator)))
        effects.append(effect.unsqueeze(0))
    return tuple(controls), bootstrap_rows(torch.cat(effects), generator)


def matched_controls(activity: LayerActivity, share: Float[Tensor, " d_sae"], feature: int, n: int) -> list[int]:
    """The n output features closest in log frequency and log norm that act at triggers no more than chance would.

    Chance is the share of all activation of the dictionary that lies on triggers. Fewer than n are returned where
    fewer such features exist.
    """
    outputs, interactions = activity.outputs, activity.interactions
    norms = interactions.mlp.tensor.matrix(interactions.sae_out.W_enc.T).frobenius_norm()
    log_count, log_norm = outputs.counts.clamp_min(1).log(), norms.clamp_min(torch.finfo(norms.dtype).tiny).log()
    alive = outputs.counts > 0
    distance = ((log_count - log_count[feature]) / log_count[alive].std()).square()
    distance = distance + ((log_norm - log_norm[feature]) / log_norm[alive].std()).square()
    total = outputs.sum_over_tokens(torch.ones(len(activity.x), device=share.device))
    eligible = alive & (share <= (share * total).sum() / total.sum())
    eligible[feature] = False
    distance = torch.where(eligible, distance, torch.inf)
    return distance.argsort()[: min(n, int(eligible.sum()))].tolist()
