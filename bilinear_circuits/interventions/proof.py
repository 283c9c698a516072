"""The whole causal proof of one circuit, edge by edge: every test of this package on one output feature.

1. Sites: trigger tokens of stories that played no part in the search, at which the feature is active. Every change is
   made at the site alone; that of the whole row is reported beside it.
2. The circuit: the pairs of input features with the largest mean |w_ab z_a z_b| at the triggers of the ranking stories.
3. Exactness of single edges, their effects, ablations, doses, necessity and sufficiency, complement, later layers,
   controls.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.circuits.rank import Screen
from bilinear_circuits.circuits.target import Target
from bilinear_circuits.interactions.activity import LayerActivity
from bilinear_circuits.interactions.bounds import truncation_error
from bilinear_circuits.interactions.completeness import circuit_completeness
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.interactions.pairs import Pairs, pairs_of
from bilinear_circuits.interventions.ablations import (
    NodeAblation,
    circuit_ablations,
    circuit_sum,
    dose_response,
    node_ablations,
)
from bilinear_circuits.interventions.complement import complement_tests
from bilinear_circuits.interventions.controls import nonsense_task, other_features
from bilinear_circuits.interventions.edges import (
    UntestableError,
    edge_effects,
    edge_exactness,
    random_edges,
    top_edges,
    write_direction,
    written,
)
from bilinear_circuits.interventions.later import later_effects
from bilinear_circuits.interventions.predictions import final_scale
from bilinear_circuits.interventions.results import InterventionProof, Places, ProofSettings
from bilinear_circuits.runs import Edit, Runs
from bilinear_circuits.statistics.effects import Effect, bootstrap
from bilinear_circuits.utilities.display import Brief


@dataclass(frozen=True, eq=False, repr=False)
class ProofPlace(Brief):
    """What the proofs of circuits of one layer share.

    Attributes:
        runs: The layer at trigger sites of held-out stories.
        elsewhere: The same layer at tokens that are no triggers.
        corpus: The layer on the ranking stories.
        screen: What is known of every output feature of the layer.
        later: Layers with dictionaries, whose features are followed.
        directions: Unembedding with the final norm's weight folded in.
        rank: Rank of the form that is removed for comparison.
    """

    runs: Runs[QueryTokens]
    elsewhere: Runs[QueryTokens]
    corpus: LayerActivity
    screen: Screen
    later: tuple[FeatureInteractions, ...]
    directions: Float[Tensor, "d_model d_vocab"]
    rank: int


@torch.no_grad()
def prove_interventions(place: ProofPlace, target: Target, settings: ProofSettings, seed: int) -> InterventionProof:
    """Run every test on one circuit.

    Args:
        place: Where it is proved.
        target: The circuit.
        settings: How much is measured.
        seed: Seed of everything random.

    Raises:
        ValueError: If there is no such feature or input feature.
        UntestableError: If the output feature is active at fewer than two sites, or at no token of the corpus, or none
            of its edges is active at a site.
    """
    runs, corpus, feature, groups, rank = place.runs, place.corpus, target.feature, target.groups, place.rank
    interactions, generator = corpus.interactions, torch.Generator().manual_seed(seed)
    _check_groups(interactions, feature, groups)
    here, reference = _active_sites(runs, corpus, feature), _reference(corpus, runs, feature)
    top = top_edges(interactions, feature, reference, settings.n_edges)
    samples = _samples(interactions, feature, top, here, settings, generator)
    change = written(-circuit_sum(here, interactions, top), write_direction(interactions, feature))
    moved = (here.changed_logits(change).double() - here.logits.double()).mean(0)
    frequency = torch.bincount(corpus.token_ids.cpu(), minlength=len(moved))
    sets = _edge_sets(interactions, feature, top, reference, groups, settings)
    return InterventionProof(
        layer=runs.layer,
        feature=feature,
        n_sites=len(runs),
        n_active=len(here),
        edges=top,
        exactness=edge_exactness(here, interactions, feature, samples["contribution"], settings.n_exact, generator),
        effects=edge_effects(here, interactions, feature, samples, corpus, place.directions, final_scale(here)),
        places=_places(here, runs, place.elsewhere, interactions, feature, top, rank, seed),
        nodes=_nodes(here, corpus, feature, groups, seed),
        circuit=circuit_ablations(here, interactions, feature, top, corpus, seed),
        doses=dose_response(here, interactions, feature, top, settings.factors, seed),
        complement=complement_tests(here, interactions, feature, sets, settings.sizes, settings.n_draws, seed),
        later=later_effects(here, change, place.later, settings.n_listed, seed),
        other_features=other_features(
            here, corpus, place.screen, feature, reference, settings.n_edges, settings.n_controls, seed
        ),
        nonsense=nonsense_task(moved, runs.metric, frequency, settings.n_nonsense, seed),
        truncation=truncation_error(corpus, feature, rank),
        explained=circuit_completeness(corpus, feature, _pairs(top), seed=seed),
    )


def _pairs(edges: Pairs) -> set[tuple[int, int]]:
    return set(zip(edges.first.tolist(), edges.second.tolist(), strict=True))


def _check_groups(interactions: FeatureInteractions, feature: int, groups: tuple[Sequence[int], Sequence[int]]) -> None:
    """Refuse features that the dictionaries do not have."""
    interactions.check_feature(feature)
    for member in (*groups[0], *groups[1]):
        if not 0 <= member < interactions.sae_in.d_sae:
            raise ValueError(
                f"groups of {interactions.mlp.layer}/{feature} must be input features between 0 and"
                f" {interactions.sae_in.d_sae - 1}, got {member}."
            )


def _active_sites(runs: Runs[QueryTokens], corpus: LayerActivity, feature: int) -> Runs[QueryTokens]:
    """The sites at which a feature is active."""
    active = runs.active(corpus.interactions.sae_out, feature)
    if int(active.sum()) < 2:
        raise UntestableError(
            f"features must be active at two trigger sites or more, got {runs.layer}/{feature}, active at"
            f" {int(active.sum())} of {len(runs)}. Use more stories."
        )
    return runs.select(active)


def _reference(corpus: LayerActivity, runs: Runs[QueryTokens], feature: int) -> Float[Tensor, "n d_in"]:
    """MLP inputs that edges are chosen at: triggers of the corpus with the feature active, else all its tokens."""
    token, _ = corpus.outputs[feature]
    if len(token) == 0:
        raise UntestableError(
            f"features must be active in the ranking stories, got {runs.layer}/{feature}, never active."
        )
    at_triggers = token[runs.metric.is_trigger(corpus.token_ids[token])]
    return corpus.x[at_triggers if len(at_triggers) else token]


def _nodes(
    here: Runs[QueryTokens], corpus: LayerActivity, feature: int, groups: tuple[Sequence[int], Sequence[int]], seed: int
) -> tuple[NodeAblation, ...]:
    """Either group and both together by every method, and each of their members by zero."""
    whole = {"first group": groups[0], "second group": groups[1], "both groups": (*groups[0], *groups[1])}
    whole = {name: members for name, members in whole.items() if members}
    if not whole:
        return ()
    single = {str(one): (one,) for one in dict.fromkeys(whole["both groups"])}
    return (
        *node_ablations(here, corpus.interactions, feature, whole, corpus, seed),
        *node_ablations(here, corpus.interactions, feature, single, corpus, seed, ("zero",)),
    )


def _samples(
    interactions: FeatureInteractions,
    feature: int,
    top: Pairs,
    here: Runs[QueryTokens],
    settings: ProofSettings,
    generator: torch.Generator,
) -> dict[str, Pairs]:
    """Edges that are measured one by one: the circuit, the largest weights of all, and random ones that occur."""
    largest = interactions.top(settings.n_edges, feature)
    return {
        "contribution": top,
        "weight": pairs_of(interactions.matrix(feature), largest.first, largest.second),
        "random": random_edges(interactions, feature, here.x, settings.n_edges, generator),
    }


def _edge_sets(
    interactions: FeatureInteractions,
    feature: int,
    top: Pairs,
    reference: Float[Tensor, "n d_in"],
    groups: tuple[Sequence[int], Sequence[int]],
    settings: ProofSettings,
) -> dict[str, Pairs]:
    """Sets whose necessity and sufficiency are measured: the circuit first."""
    sets = {f"top {len(top)}": top}
    for factor in (4, 16):
        more = top_edges(interactions, feature, reference, factor * settings.n_edges)
        sets[f"top {len(more)}"] = more
    device = reference.device
    first, second = (torch.tensor(list(group), dtype=torch.long, device=device) for group in groups)
    if len(first) and len(second):
        sets["between the groups"] = pairs_of(
            interactions.matrix(feature), *torch.cartesian_prod(first, second).unbind(1)
        )
    members = torch.cat([first, second])
    if len(members):
        pairs = torch.combinations(members, with_replacement=True)
        sets["among their members"] = pairs_of(interactions.matrix(feature), *pairs.unbind(1))
    return sets


def _places(
    here: Runs[QueryTokens],
    runs: Runs[QueryTokens],
    elsewhere: Runs[QueryTokens],
    interactions: FeatureInteractions,
    feature: int,
    edges: Pairs,
    rank: int,
    seed: int,
) -> Places:
    """Remove the circuit at the sites, around them, and elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    row = write_direction(interactions, feature)

    def removed_at(some: Runs[QueryTokens], along: Tensor | None = None) -> Effect:
        change = written(-circuit_sum(some, interactions, edges), row if along is None else along)
        return bootstrap(some.effects(change.unsqueeze(0))[0], generator)

    edit = removal_of(interactions, feature, edges)
    low_rank = interactions.spectrum(feature, rank)
    form = written(-low_rank(here.x.to(row.dtype)), row)
    return Places(
        site=removed_at(here),
        all_sites=removed_at(runs),
        encoder=removed_at(here, write_direction(interactions, feature, "encoder")),
        row=bootstrap(here.effect(edit), generator),
        before=bootstrap(here.effect(edit, "elsewhere"), generator),
        elsewhere=removed_at(elsewhere),
        rank_form=bootstrap(here.effects(form.unsqueeze(0))[0], generator),
    )


def removal_of(interactions: FeatureInteractions, feature: int, edges: Pairs) -> Edit:
    """Subtract the terms of some edges along the feature's decoder row, at every token."""
    row, dictionary = write_direction(interactions, feature), interactions.sae_in

    def edit(x: Tensor, y: Tensor) -> Tensor:
        z = dictionary.encode(x.to(row.dtype)).flatten(0, -2)
        return written(-edges.contributions(z).sum(1), row).view(*x.shape[:-1], -1).to(y)

    return edit
