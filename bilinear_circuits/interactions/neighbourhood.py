"""The input features around an output feature: which take part, how each pair interacts, and which behave alike."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from bilinear_circuits.interactions.activity import LayerActivity
from bilinear_circuits.interactions.naming import input_label
from bilinear_circuits.interactions.profiles import FeatureProfile
from bilinear_circuits.interactions.shape import factor_pair
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.feature import OfFeature

N_MEMBERS = 40
N_CLUSTERS = 4
_CANDIDATES = 160


@dataclass(frozen=True, eq=False, repr=False)
class Clusters(Brief):
    """Features grouped by what they interact with.

    Attributes:
        cluster: Number of the cluster of each feature, counted from 0 in the order of the leaves.
        order: The features in the order of the leaves of the tree: like ones are neighbours, clusters are contiguous.
    """

    cluster: Int[Tensor, " n"]
    order: Int[Tensor, " n"]


@dataclass(frozen=True, eq=False, repr=False)
class Neighbourhood(OfFeature, Brief):
    """The input features that matter most to one output feature, and all interactions among them.

    Attributes:
        layer: Layer of the MLP.
        feature: Output feature.
        members: Input features: the two groups of its AND shape, then the partners that add most to it.
        group: 0 for the first group, 1 for the second, -1 for neither.
        side: Factor of the form (0 or 1, see `shape.factor_pair`) along which the decoder row lies more, either way;
            for members of a group that of the group.
        labels: Names of the members.
        usage: Mean activation while the output feature is active.
        weights: Interactions T_ab.
        everywhere: E[z_a z_b] over all tokens.
        active: E[z_a z_b] over the tokens at which the output feature is active: T_ab times it, over both orders, is
            the mean contribution of the pair there.
        projections: Decoder rows on the two leading eigenvectors.
        clusters: Members by their signed rows T_ab usage_b, what they do with themselves left out.
    """

    layer: int
    feature: int
    members: Int[Tensor, " n"]
    group: Int[Tensor, " n"]
    side: Int[Tensor, " n"]
    labels: tuple[str, ...]
    usage: Float[Tensor, " n"]
    weights: Float[Tensor, "n n"]
    everywhere: Float[Tensor, "n n"]
    active: Float[Tensor, "n n"]
    projections: Float[Tensor, "n k"]
    clusters: Clusters


@torch.no_grad()
def neighbourhood(
    activity: LayerActivity, profile: FeatureProfile, tokenizer: Any, n_members: int = N_MEMBERS
) -> Neighbourhood:
    """The members of an output feature's circuit and how each pair of them interacts.

    Besides the two groups of the AND shape, members are the input features with the largest sum over partners of
    |T_ab| E[z_a z_b] where the feature is active, among the 160 most used there. Rescaling a decoder row and its
    activation changes neither this choice nor the clusters.

    Args:
        activity: The layer on a corpus.
        profile: The output feature, measured on the same corpus.
        tokenizer: Gives token ids their text.
        n_members: How many input features; never fewer than the two groups hold.

    Raises:
        ValueError: If `n_members` is below 2.
    """
    if n_members < 2:
        raise ValueError(f"n_members must be at least 2, got {n_members}.")
    interactions, feature = activity.interactions, profile.feature
    matrix, (token, _) = interactions.matrix(feature), activity.outputs[feature]
    groups = torch.cat([profile.shape.first, profile.shape.second])
    partners = _partners(activity, matrix.block, token, groups, n_members - len(groups))
    members = torch.cat([groups, partners])
    z = activity.inputs.columns(members, len(activity.x))
    usage, active = z[token].mean(0), z[token].T @ z[token] / len(token)
    weights = matrix.block(members, members).double()
    group = torch.full((len(members),), -1)
    group[: len(profile.shape.first)] = 0
    group[len(profile.shape.first) : len(groups)] = 1
    return Neighbourhood(
        layer=profile.layer,
        feature=feature,
        members=members,
        group=group,
        side=_sides(profile, interactions.sae_in.W_dec[members]),
        labels=tuple(input_label(activity, member, tokenizer) for member in members.tolist()),
        usage=usage,
        weights=weights,
        everywhere=z.T @ z / len(z),
        active=active,
        projections=profile.projections[members],
        clusters=cluster_rows((weights * usage).fill_diagonal_(0)),
    )


def _partners(activity: LayerActivity, block: Any, token: Tensor, groups: Tensor, n: int) -> Tensor:
    """The n input features besides those of the groups that take most part in what makes the feature fire."""
    usage = activity.mean_inputs_at(token)
    candidates = usage.topk(min(_CANDIDATES, int((usage > 0).sum()))).indices
    z = activity.inputs.columns(candidates, len(activity.x))[token]
    mass = (block(candidates, candidates).double() * (z.T @ z)).abs().sum(1)
    mass[torch.isin(candidates, groups)] = 0
    return candidates[mass.topk(max(0, min(n, int((mass > 0).sum())))).indices]


def _sides(profile: FeatureProfile, rows: Tensor) -> Tensor:
    """0 where a decoder row lies more along the first factor, 1 where along the second; groups stay together.

    The sign of a pull does not matter: a feature against a factor belongs to its side as well, as a negative partner.
    """
    first, second = ((rows @ factor).abs() for factor in factor_pair(profile.spectrum))
    side = (second > first).long()
    n_first, n_second = len(profile.shape.first), len(profile.shape.second)
    side[:n_first] = 0
    side[n_first : n_first + n_second] = 1
    return side


def cluster_rows(rows: Float[Tensor, "n d"], n_clusters: int = N_CLUSTERS) -> Clusters:
    """Cluster features by the direction of their signed rows: Ward's linkage of the rows at unit length.

    Four clusters by default: a form of rank two has rows of four kinds, along either factor with either sign. Leaves
    are ordered so that neighbours are as near as the tree allows. A row of zeros is equally far from all others.

    Args:
        rows: One row per feature, for instance its interactions with the others.
        n_clusters: Most clusters.
    """
    n = len(rows)
    if n < 2:
        return Clusters(torch.zeros(n, dtype=torch.long), torch.arange(n))
    unit = torch.nn.functional.normalize(rows.double().cpu(), dim=1)
    distance = (2 - 2 * unit @ unit.T).clamp_min(0).sqrt().fill_diagonal_(0).numpy()
    tree = linkage(squareform(distance, checks=False), "ward", optimal_ordering=True)
    order, cut = leaves_list(tree).tolist(), fcluster(tree, n_clusters, "maxclust").tolist()
    numbers = {label: number for number, label in enumerate(dict.fromkeys(cut[index] for index in order))}
    return Clusters(torch.tensor([numbers[label] for label in cut]), torch.tensor(order))
