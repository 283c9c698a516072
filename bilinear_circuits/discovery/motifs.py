"""Motifs of quadratic forms in input features: which simple circuit the form of an output feature is nearest to.

The leading eigenvectors of either sign, v+ and v-, span the plane in which an indefinite form of rank 2 lives:
lambda+ (v+ . x)^2 - |lambda-| (v- . x)^2 = (a . x)(b . x). Squares lie along v+ and v-, products along a and b. Each of
these four axes has two ends, and each end a group of input features. A motif is a template on these groups.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.algebra.leading import leading_spectra
from bilinear_circuits.algebra.spectra import Spectrum
from bilinear_circuits.discovery.groups import Groups, group_directions
from bilinear_circuits.utilities.display import Brief

Motif = Literal["and", "flip", "xor", "contrast", "square", "suppression"]
MOTIFS: tuple[Motif, ...] = ("and", "flip", "xor", "contrast", "square", "suppression")
ENDS = ("+v+", "-v+", "+v-", "-v-", "+a", "-a", "+b", "-b")
_N_LEADING, _MOST_LEADING = 4, 8  # eigenpairs looked through for one of either sign: of most forms, and of the others
_BALANCE = 0.5
_SAME = 0.5

Plane = tuple[Tensor, Tensor, Tensor]
"""Largest eigenvalue of either sign, their eigenvectors, and the norm of some forms: see `leading_plane`."""

Block = tuple[int, int, int]
"""Two ends, by their place in ENDS, and the sign of the interactions between their groups."""

TEMPLATES: tuple[tuple[Motif, tuple[Block, ...]], ...] = (
    ("and", ((4, 6, 1),)),
    ("and", ((5, 7, 1),)),
    ("flip", ((4, 6, 1), (4, 7, -1))),
    ("flip", ((5, 7, 1), (5, 6, -1))),
    ("flip", ((6, 4, 1), (6, 5, -1))),
    ("flip", ((7, 5, 1), (7, 4, -1))),
    ("xor", ((0, 0, 1), (1, 1, 1), (0, 1, -1))),
    ("contrast", ((0, 0, 1), (2, 2, -1))),
    ("contrast", ((0, 0, 1), (3, 3, -1))),
    ("contrast", ((1, 1, 1), (2, 2, -1))),
    ("contrast", ((1, 1, 1), (3, 3, -1))),
    ("square", ((0, 0, 1),)),
    ("square", ((1, 1, 1),)),
    ("suppression", ((4, 7, -1),)),
    ("suppression", ((5, 6, -1),)),
    ("suppression", ((2, 2, -1),)),
    ("suppression", ((3, 3, -1),)),
)
"""Motif and blocks of each template.

and: two groups multiply, neither acts alone. flip: one group turns the sign of the effect of two others, as a negation
does. xor: either of two groups, not both: the square of a difference. contrast: one group squared against another.
square: one group with itself. suppression: a negative product, or a negative square.
"""


@dataclass(frozen=True, eq=False, repr=False)
class MotifScores(Brief):
    """How near the form of each output feature is to each motif.

    Attributes:
        score: Cosine between the form and the nearest template of the motif, <Q, S> / (|Q| |S|), 0 where its blocks
            have other signs than the template's, one is less than half of another, or two groups that are multiplied
            point the same way (cosine above 1/2). It does not change with the gauge of the layer, the order of neurons,
            or the scale of either dictionary.
        template: That template, by its place in TEMPLATES.
        groups: Groups of input features at the ends of each form's axes, in the order of ENDS.
        blocks: g_i^T Q g_j / |Q| of the directions of the groups.
        outliers: Leading eigenvalue of either sign, positive first, over the norm of the form.
        plane: The leading plane of each form; see `leading_plane`.
    """

    score: Float[Tensor, "feature motif"]
    template: Int[Tensor, "feature motif"]
    groups: Groups
    blocks: Float[Tensor, "feature 8 8"]
    outliers: Float[Tensor, "feature 2"]
    plane: Plane

    @classmethod
    def cat(cls, parts: "list[MotifScores]") -> "MotifScores":
        """Those of several sets of forms as one."""
        names = ("direction", "feature", "weight")
        groups = Groups(*(torch.cat([getattr(part.groups, name) for part in parts]) for name in names))
        score, template, blocks, outliers = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("score", "template", "blocks", "outliers")
        )
        values, vectors, norm = (torch.cat(column) for column in zip(*(part.plane for part in parts), strict=True))
        return cls(score, template, groups, blocks, outliers, (values, vectors, norm))


@torch.no_grad()
def motif_scores(
    Q: Float[Tensor, "feature d d"], rows: Float[Tensor, "n_features d"], plane: Plane | None = None
) -> MotifScores:
    """Score some forms against all motifs.

    Args:
        Q: Forms of output features on the MLP input, symmetric.
        rows: Unit decoder rows of the input features, zero for those left out.
        plane: What `leading_plane` finds in the forms, where it is known.

    Cost: the leading eigenpairs of each form, and 8 pursuits, of 16 n_features d operations a step.
    """
    values, vectors, norm = leading_plane(Q) if plane is None else plane
    groups = group_directions(_ends(values, vectors), rows.to(Q))
    g = groups.direction
    blocks = torch.einsum("fid,fde,fje->fij", g, Q, g) / norm[:, None, None]
    cosines = _cosines(blocks, g @ g.mT)
    score, place = [], []
    for motif in MOTIFS:
        own = torch.tensor([index for index, (name, _) in enumerate(TEMPLATES) if name == motif], device=Q.device)
        best, which = cosines[:, own].max(1)
        score.append(best)
        place.append(own[which])
    outliers = values / norm[:, None]
    return MotifScores(torch.stack(score, 1), torch.stack(place, 1), groups, blocks, outliers, (values, vectors, norm))


def leading_plane(Q: Float[Tensor, "feature d d"]) -> Plane:
    """Find the largest eigenvalue of either sign and its eigenvector, zero where there is none; and the norm of forms.

    Nearly every form has one of either sign among its four leading pairs; eight are looked through in the others.

    Returns:
        Values (feature, 2), positive first, vectors (feature, d, 2) and norms (feature).
    """
    d = Q.shape[-1]
    values, vectors, norm = _of_either_sign(leading_spectra(Q, min(_N_LEADING, d)).spectrum)
    lacking = (values == 0).any(1)
    if d > _N_LEADING and lacking.any():
        more = _of_either_sign(leading_spectra(Q[lacking], min(_MOST_LEADING, d)).spectrum)
        values[lacking], vectors[lacking], norm[lacking] = more
    return values, vectors, norm


def _of_either_sign(spectrum: Spectrum) -> Plane:
    """The largest pair of either sign among leading ones."""
    values, vectors = [], []
    for sign in (1, -1):
        signed = (sign * spectrum.eigenvalues).clamp_min(0)
        largest, at = signed.max(1)
        # An eigenvalue that is zero up to rounding is no direction.
        real = largest > 1e-5 * spectrum.frobenius_norm
        chosen = spectrum.eigenvectors[torch.arange(len(at), device=at.device), :, at]
        values.append(sign * largest * real)
        vectors.append(chosen * real.unsqueeze(1))
    norm = spectrum.frobenius_norm.clamp_min(torch.finfo(spectrum.eigenvalues.dtype).tiny)
    return torch.stack(values, 1), torch.stack(vectors, 2), norm


def _ends(values: Tensor, vectors: Tensor) -> Float[Tensor, "feature 8 d"]:
    """Unit directions to the ends of the four axes, in the order of ENDS; zero for axes a form does not have."""
    plus, minus = (values.abs().sqrt().unsqueeze(1) * vectors).unbind(2)
    both = (values.abs().amin(1) > 0).unsqueeze(1)
    axes = torch.stack([vectors[..., 0], vectors[..., 1], (plus + minus) * both, (plus - minus) * both], 1)
    axes = torch.nn.functional.normalize(axes, dim=2)
    return torch.stack([axes, -axes], 2).flatten(1, 2)


def _cosines(
    blocks: Float[Tensor, "feature 8 8"], gram: Float[Tensor, "feature 8 8"]
) -> Float[Tensor, "feature template"]:
    """Cosine between each form and each template S = sum_ij C_ij g_i g_j^T, 0 where a block fails the template.

    <Q, S> = sum_ij C_ij g_i^T Q g_j and |S|^2 = tr(C G C G), with G the Gram matrix of the groups' directions.
    """
    C = torch.zeros(len(TEMPLATES), len(ENDS), len(ENDS), dtype=blocks.dtype, device=blocks.device)
    for index, (_, template) in enumerate(TEMPLATES):
        for i, j, sign in template:
            C[index, i, j] = C[index, j, i] = sign
    mixed = C @ gram.unsqueeze(1)
    squared = (mixed * mixed.mT).sum((2, 3))
    entries = C * blocks.unsqueeze(1)
    least = entries.where(C != 0, torch.inf).amin((2, 3))
    holds = (least > 0) & (least >= _BALANCE * entries.amax((2, 3))) & (squared > 0)
    # The product of two groups that point the same way is a square.
    between = gram.unsqueeze(1) * (C != 0) * (1 - torch.eye(len(ENDS), dtype=C.dtype, device=C.device))
    holds &= between.amax((2, 3)) < _SAME
    return torch.where(holds, entries.sum((2, 3)) / squared.clamp_min(torch.finfo(blocks.dtype).tiny).sqrt(), 0)
