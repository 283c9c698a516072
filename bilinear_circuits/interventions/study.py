"""The circuits of a search, each proved by interventions on stories that the search did not rank on."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.circuits.rank import screen_features
from bilinear_circuits.circuits.search import story_parts
from bilinear_circuits.circuits.target import Searched, Target
from bilinear_circuits.data.stories import StoryTokens
from bilinear_circuits.interactions.activity import LayerActivity, collect_activity
from bilinear_circuits.interactions.cubic_interactions import CubicInteractions
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.interactions.naming import FeatureNames
from bilinear_circuits.interventions.agreement import RemovalAgreement, removal_agreement
from bilinear_circuits.interventions.controls import other_sites
from bilinear_circuits.interventions.edges import UntestableError
from bilinear_circuits.interventions.joint import JointRemoval, joint_removal
from bilinear_circuits.interventions.proof import ProofPlace, prove_interventions, removal_of
from bilinear_circuits.interventions.results import CircuitProofs, InterventionProof, ProofSettings
from bilinear_circuits.models.gated_mlp import GatedMLP
from bilinear_circuits.models.running import context_length, unembedding
from bilinear_circuits.runs import Runs, Sites
from bilinear_circuits.utilities.kinds import check_kind
from bilinear_circuits.utilities.progress import Progress, silent


@torch.no_grad()
def prove_circuits(
    model: nn.Module,
    interactions: Sequence[FeatureInteractions],
    search: Searched,
    stories: Sequence[str] | StoryTokens,
    settings: ProofSettings | None = None,
    seed: int = 0,
    tokenizer: Any = None,
    progress: Progress = silent,
) -> CircuitProofs:
    """Prove the circuits of a search by every intervention of this package, on stories that it held out.

    Args:
        model: A TransformerBridge, a HookedTransformer or a Hugging Face Llama.
        interactions: The layers of the circuits, and any later ones whose features are to be compared.
        search: The search, or what is read from its file. `search.only(names)` proves some of its circuits.
        stories: Texts, those of the search, or their tokens: with others, its held-out stories are not known.
        settings: How much is measured.
        seed: Seed of everything random here.
        tokenizer: The model's own by default.
        progress: Wraps the loops.

    Raises:
        TypeError: If it is no search.
        ValueError: If a layer is not among the interactions, there is no such feature, or the stories hold too few
            triggers for any of the circuits; where that is so of some, they are `untested`.
    """
    check_kind("search", search, Searched, "find_circuits returns one: a query, settings, a seed and targets.")
    settings = ProofSettings() if settings is None else settings
    check_kind("settings", settings, ProofSettings, "Leave it out for the defaults.")
    tokenizer = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(f"tokenizer must be given for a {type(model).__name__}, which carries none.")
    plan, targets = search.settings, search.targets
    tokens = QueryTokens.resolve(search.query, tokenizer)
    context = min(plan.context, context_length(model))
    ranking, _, held_out = story_parts(stories, tokenizer, plan, context, search.seed)
    sites = tokens.sites(held_out, plan.sites, plan.site_position)
    if len(sites) == 0:
        raise ValueError(
            f"stories must hold triggers ({', '.join(search.query.triggers)}), got none. Use more stories."
        )
    elsewhere = other_sites(held_out, tokens, plan.sites, plan.site_position, seed)
    activity = {one.interactions.mlp.layer: one for one in _activity(model, interactions, targets, ranking, progress)}
    directions = unembedding(model).to(next(iter(activity.values())).x)
    proofs: dict[int, InterventionProof] = {}
    untested: dict[str, str] = {}
    for layer, corpus in activity.items():
        runs, other = (Runs(model, layer, some, tokens) for some in (sites, elsewhere))
        screen = screen_features(corpus, tokens, directions)
        place = ProofPlace(runs, other, corpus, screen, tuple(interactions), directions, plan.rank)
        here = [index for index, target in enumerate(targets) if target.layer == layer]
        for index in progress(here, f"prove layer {layer}"):
            try:
                proofs[index] = prove_interventions(place, targets[index], settings, seed)
            except UntestableError as error:  # the others are measured nevertheless
                untested[targets[index].name] = str(error)
    if not proofs:
        raise ValueError("; ".join(f"{name}: {why}" for name, why in untested.items()))
    ordered = tuple(proofs[index] for index in sorted(proofs))
    joint = _joint(model, activity, sites, tokens, [targets[index] for index in sorted(proofs)], ordered, seed)
    n_tokens, labels = len(next(iter(activity.values())).x), _labels(activity, ordered, tokenizer)
    agreements = _agreements(activity, ordered, plan.rank, seed)
    return CircuitProofs(search.query, settings, seed, n_tokens, ordered, joint, labels, untested, agreements)


def _agreements(
    activity: Mapping[int, LayerActivity], proofs: Sequence[InterventionProof], rank: int, seed: int
) -> dict[str, RemovalAgreement]:
    """What fitted layers predict of removals, beside the model's own MLPs, on the features of the circuits."""
    found: dict[str, RemovalAgreement] = {}
    for layer, corpus in activity.items():
        fit = corpus.interactions.mlp.approximation
        features = [proof.feature for proof in proofs if proof.layer == layer]
        if fit is not None and isinstance(fit.original, GatedMLP) and features:
            sides = (corpus.interactions.sae_in, corpus.interactions.sae_out)
            cubic = CubicInteractions(fit.original.cubic(corpus.x), *sides, least_recovered=-math.inf)
            found[str(layer)] = removal_agreement(corpus, features, cubic, rank, seed=seed)
    return found


def _labels(
    activity: Mapping[int, LayerActivity], proofs: Sequence[InterventionProof], tokenizer: Any
) -> dict[str, dict[str, str]]:
    """Names of the input features of all edges."""
    name = FeatureNames(activity.values(), tokenizer)
    labels: dict[str, dict[str, str]] = {}
    for proof in proofs:
        ends = torch.cat([proof.effects.first, proof.effects.second]).unique().tolist()
        labels.setdefault(str(proof.layer), {}).update({str(end): name(proof.layer, end) for end in ends})
    return labels


def _joint(
    model: nn.Module,
    activity: Mapping[int, LayerActivity],
    sites: Sites,
    tokens: QueryTokens,
    targets: Sequence[Target],
    proofs: Sequence[InterventionProof],
    seed: int,
) -> tuple[JointRemoval, ...]:
    """The circuits of either pole removed together."""
    found = []
    for sign in (1, -1):
        some = [proof for target, proof in zip(targets, proofs, strict=True) if target.sign == sign]
        if len(some) < 2:
            continue
        edits = {
            proof.name: (proof.layer, removal_of(activity[proof.layer].interactions, proof.feature, proof.edges))
            for proof in some
        }
        runs = Runs(model, min(proof.layer for proof in some), sites, tokens)
        outputs = runs.mlps(sorted({proof.layer for proof in some}))
        active = torch.stack(
            [
                activity[effect.layer].interactions.sae_out.is_active(outputs[effect.layer].y, effect.feature).cpu()
                for effect in some
            ]
        ).any(0)
        found.append(joint_removal(runs.select(active), edits, seed))
    return tuple(found)


def _activity(
    model: nn.Module,
    interactions: Sequence[FeatureInteractions],
    targets: Sequence[Target],
    ranking: StoryTokens,
    progress: Progress,
) -> tuple[LayerActivity, ...]:
    """The layers of the targets on the ranking stories."""
    known = {one.mlp.layer: one for one in interactions}
    for target in targets:
        if target.layer not in known:
            raise ValueError(f"interactions must hold layer {target.layer}, got layers {sorted(known)}.")
        known[target.layer].check_feature(target.feature)
    layers = sorted({target.layer for target in targets})
    return collect_activity(model, [known[layer] for layer in layers], ranking, progress)
