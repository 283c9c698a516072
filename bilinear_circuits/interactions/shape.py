"""The shape of a quadratic form in the input features: which two groups of features it multiplies, and how purely."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.algebra.spectra import Spectrum
from bilinear_circuits.interactions.activity import LayerActivity
from bilinear_circuits.utilities.display import Brief

GROUP_SIZE = 8


@dataclass(frozen=True, eq=False, repr=False)
class AndShape(Brief):
    """An output feature as a product of two groups of input features.

    Attributes:
        first: Input features of the first group, strongest first.
        second: Input features of the second group.
        usage: Mean activation of each of them, first group then second, while the output feature is active.
        block: Interactions T_ab between all of them, in the same order.
        score: Share of the interaction mass |T_ab| usage_a usage_b that lies between the groups, not inside them:
            1 for a pure AND, 1/2 for no structure, near 0 for squares. It does not change when a feature's decoder row
            is scaled and its activation scaled back.
    """

    first: Int[Tensor, " n_first"]
    second: Int[Tensor, " n_second"]
    usage: Float[Tensor, " n"]
    block: Float[Tensor, "n n"]
    score: float


def factor_pair(spectrum: Spectrum) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Directions a, b with sym(a b^T) = lambda_+ v_+ v_+^T + lambda_- v_- v_-^T, the leading pair of opposite signs.

    a, b = sqrt(lambda_+) v_+ +- sqrt(-lambda_-) v_-: an indefinite form of rank 2 is a product (a . x)(b . x) of two
    linear functions. Where one sign is missing, a = +-b is a square.
    """
    values, vectors = spectrum.eigenvalues, spectrum.eigenvectors
    plus, minus = values.argmax(), values.argmin()
    # An eigenvalue that is zero up to rounding is no direction.
    rounding = values.abs().max() * values.shape[0] * torch.finfo(values.dtype).eps
    sizes = torch.stack([values[plus], -values[minus]])
    sizes = torch.where(sizes > rounding, sizes, 0).sqrt()
    first, second = sizes[0] * vectors[:, plus], sizes[1] * vectors[:, minus]
    return first + second, first - second


@torch.no_grad()
def and_shape(
    activity: LayerActivity,
    feature: int,
    spectrum: Spectrum,
    size: int = GROUP_SIZE,
    usage: Float[Tensor, " d_sae_in"] | None = None,
) -> AndShape:
    """Split the input features used with an output feature by the two factors of its form, and measure the blocks.

    A feature joins the group of the factor it contributes more to, (d . a) or (d . b) times its excess usage: its mean
    activation while the output feature is active, less its overall mean. Factors are turned so that they are positive
    on the active tokens; the strongest `size` of each group are kept.

    Args:
        activity: The layer on a corpus.
        feature: Output feature, active at least once.
        spectrum: Its spectrum on the MLP input.
        size: Features per group.
        usage: Mean activation of every input feature over the tokens where the output feature is active, where it is
            known already.
    """
    token, value = activity.outputs[feature]
    first_factor, second_factor = factor_pair(spectrum)
    centre = value @ activity.x[token].to(value.dtype)
    dictionary = activity.interactions.sae_in
    usage = activity.mean_inputs_at(token).to(dictionary.W_dec.dtype) if usage is None else usage
    excess = usage - activity.mean_inputs.to(usage.dtype)
    pulls = []
    for factor in (first_factor, second_factor):
        oriented = factor * torch.where(centre @ factor < 0, -1.0, 1.0)
        pulls.append(excess.clamp_min(0) * (dictionary.W_dec @ oriented))
    in_first = pulls[0] >= pulls[1]  # a square has equal factors, and one group
    groups = []
    for own, member in zip(pulls, (in_first, ~in_first), strict=True):
        strength = torch.where(member, own, -torch.inf)
        groups.append(strength.topk(min(size, int((strength > 0).sum()))).indices)
    members = torch.cat(groups)
    block = activity.interactions.matrix(feature).block(members, members)
    return AndShape(groups[0], groups[1], usage[members], block, _cross_share(block, usage[members], len(groups[0])))


def _cross_share(block: Tensor, usage: Tensor, n_first: int) -> float:
    mass = block.abs() * usage.unsqueeze(0) * usage.unsqueeze(1)
    cross = 2 * mass[:n_first, n_first:].sum()
    total = mass.sum()
    return (cross / total).item() if total > 0 else 0.0
