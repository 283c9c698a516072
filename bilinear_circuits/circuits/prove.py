"""Causal proof: remove a feature's low-rank form from the MLP, or the feature itself, and see what the model does.

1. Sites: the first trigger token of each of some stories that played no part in the ranking.
2. Removal subtracts (x^T Q_r x) d_f from the MLP output at every token: an edit of the weights, since it is a rank-r
   quadratic form written along the feature's decoder row. Ablation subtracts z_f d_f, the feature's own activation.
3. The effect is the change of mean logit(positive words) - mean logit(negative words) at the site.
4. The same removal is done for two sets of control features on the same sites: features of like frequency and norm
   that act at triggers no more than chance would, which show that the edit as such does nothing; and features of like
   activity at triggers and like norm that point to no pole, which show that not just anything at a trigger matters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bilinear_circuits.circuits.edits import ablation_edit, removal_edit
from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.circuits.rank import Evidence, Screen
from bilinear_circuits.circuits.settings import SearchSettings
from bilinear_circuits.interactions.activity import LayerActivity
from bilinear_circuits.runs import CrossEntropy, Edit, Runs
from bilinear_circuits.statistics.effects import Effect, bootstrap, bootstrap_ratio, bootstrap_rows
from bilinear_circuits.utilities.display import Drawn
from bilinear_circuits.utilities.progress import Progress, silent


@dataclass(frozen=True)
class Control:
    """A control feature, removed at the sites of a circuit.

    Attributes:
        feature: Output feature of the same layer.
        n_active: Tokens at which it is active, in the ranking stories.
        n_trigger: Trigger tokens among them.
        norm: Frobenius norm of its interaction matrix.
        effect: Effect of removing its rank-r form.
    """

    feature: int
    n_active: int
    n_trigger: int
    norm: float
    effect: Effect


@dataclass(frozen=True, repr=False)
class CausalProof(Drawn):
    """What removing one circuit does. Effects are changes of the pole logit difference, in nats, at trigger tokens.

    Attributes:
        rank: Rank r of the form removed.
        removal: Effect of the removal at the trigger sites where the feature is active.
        removal_all_sites: The same at all trigger sites.
        ablation: Effect of subtracting the feature's activation, at the sites where it is active.
        ablation_all_sites: The same at all trigger sites.
        control: Mean effect of the first set of controls, of like frequency and norm, at the sites where the circuit's
            feature is active; the interval resamples control features and stories.
        controls: Each of them by itself.
        trigger_control: Mean magnitude of the effects of the second set, of like activity at triggers and norm; the
            interval resamples control features.
        trigger_controls: Each of them by itself.
        p_value: (1 + controls of either set with an effect at least as large) / (1 + controls); NaN where the feature
            is active at no site.
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
    trigger_control: Effect
    trigger_controls: tuple[Control, ...]
    p_value: float
    ce_base: float
    ce_removal: Effect
    ce_ablation: Effect


@torch.no_grad()
def prove(
    evidence: Sequence[Evidence],
    activity: LayerActivity,
    sites: Runs[QueryTokens],
    losses: Runs[CrossEntropy],
    screen: Screen,
    settings: SearchSettings,
    seed: int,
    progress: Progress = silent,
) -> list[CausalProof]:
    """Prove circuits of one layer.

    Args:
        evidence: The circuits.
        activity: Their layer on the ranking stories.
        sites: The same layer on the trigger sites.
        losses: The same layer on whole held-out stories.
        screen: What is known of every output feature of the layer.
        settings: Rank of the form removed, and how many control features of either set there are per circuit.
        seed: Seed of the bootstrap.
        progress: Wraps the circuits.
    """
    interactions, rank, n_controls = activity.interactions, settings.rank, settings.controls
    proofs = []
    for circuit in progress(evidence, f"prove layer {interactions.mlp.layer}"):
        generator = torch.Generator().manual_seed(seed)
        active = sites.active(interactions.sae_out, circuit.feature)
        removed = removal_edit(interactions, circuit.feature, interactions.spectrum(circuit.feature, rank))
        ablated = ablation_edit(interactions, circuit.feature)
        removal, ablation = sites.effect(removed), sites.effect(ablated)
        at_active = bootstrap(removal[active], generator)
        here, sets = sites.select(active), control_sets(activity, screen)
        (controls, table), (trigger_controls, trigger_table) = (
            _run_controls(
                matched(screen, *one_set, circuit.feature, n_controls), activity, screen, here, rank, generator
            )
            for one_set in sets
        )
        every = (*controls, *trigger_controls)
        as_large = sum(abs(other.effect.mean) >= abs(at_active.mean) for other in every)
        proofs.append(
            CausalProof(
                rank=rank,
                removal=at_active,
                removal_all_sites=bootstrap(removal, generator),
                ablation=bootstrap(ablation[active], generator),
                ablation_all_sites=bootstrap(ablation, generator),
                control=bootstrap_rows(table, generator),
                controls=controls,
                trigger_control=bootstrap(trigger_table.mean(1).abs(), generator),
                trigger_controls=trigger_controls,
                p_value=math.nan if math.isnan(at_active.mean) else (1 + as_large) / (1 + len(every)),
                ce_base=losses.values.mean().item(),
                ce_removal=loss_change(losses, removed, generator),
                ce_ablation=loss_change(losses, ablated, generator),
            )
        )
    return proofs


def loss_change(losses: Runs[CrossEntropy], edit: Edit, generator: torch.Generator) -> Effect:
    """Change of the mean cross-entropy under an edit, with an interval over stories."""
    story, n = losses.sites.row, len(losses.sites.ids)
    per_story = torch.zeros(n, dtype=torch.double).index_add(0, story, losses.effect(edit))
    return bootstrap_ratio(per_story, torch.bincount(story, minlength=n), generator)


def _run_controls(
    features: Sequence[int],
    activity: LayerActivity,
    screen: Screen,
    sites: Runs[QueryTokens],
    rank: int,
    generator: torch.Generator,
) -> tuple[tuple[Control, ...], Float[Tensor, "control site"]]:
    """The removal of each control at the sites where the circuit's feature is active, and the effects one by one."""
    interactions = activity.interactions
    controls, effects = [], [torch.zeros(0, len(sites), dtype=torch.double)]
    for feature in features:
        edit = removal_edit(interactions, feature, interactions.spectrum(feature, rank))
        effect = sites.effect(edit)
        norm = screen.norm[feature].item()
        n_active = int(activity.outputs.counts[feature])
        n_trigger = int(screen.n_trigger[feature])
        controls.append(Control(feature, n_active, n_trigger, norm, bootstrap(effect, generator)))
        effects.append(effect.unsqueeze(0))
    return tuple(controls), torch.cat(effects)


def control_sets(
    activity: LayerActivity, screen: Screen
) -> tuple[tuple[Bool[Tensor, " d_sae"], Int[Tensor, " d_sae"]], ...]:
    """Two sets of features that may be controls, each with the frequency they are matched on.

    1. Features that act at triggers no more than chance, which is the share of all activation that lies on triggers;
       matched on the tokens at which they are active.
    2. Features that act at triggers but whose decoder row moves the poles by less than one standard deviation of its
       logits; matched on the trigger tokens at which they are active.
    """
    total = activity.outputs.sum_over_tokens(torch.ones(len(activity.x), device=screen.share.device))
    chance = (screen.share * total).sum() / total.sum()
    inert = (total > 0) & (screen.share <= chance)
    neutral = (screen.n_trigger > 0) & (screen.share > chance) & (screen.shift.abs() < 1)
    return (inert, activity.outputs.counts), (neutral, screen.n_trigger)


def matched(
    screen: Screen, eligible: Bool[Tensor, " d_sae"], frequency: Int[Tensor, " d_sae"], feature: int, n: int
) -> list[int]:
    """The n eligible output features closest to one in log frequency and log norm, in units of their spread.

    Fewer are returned where fewer are eligible.
    """
    log_norm = screen.norm.clamp_min(torch.finfo(screen.norm.dtype).tiny).log().double()
    distance = torch.zeros_like(log_norm)
    for quantity in (frequency.clamp_min(1).double().log(), log_norm):
        spread = quantity[frequency > 0].std().clamp_min(1e-12)
        distance += ((quantity - quantity[feature]) / spread).square()
    eligible = eligible.clone()
    eligible[feature] = False
    return torch.where(eligible, distance, torch.inf).argsort()[: min(n, int(eligible.sum()))].tolist()
