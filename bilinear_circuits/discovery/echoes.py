"""Echoes: motifs that an output feature only seems to have, because its encoder also reads what another feature writes.

Where there are more output features than dimensions, the encoder w_f of one feature overlaps the decoder d_g of others,
and the form of f holds w_f . d_g parts of theirs. Such a motif is in the weights, but it is not one more circuit.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_ROWS = 256
_OWN = 0.5


@torch.no_grad()
def echoes(
    scores: Float[Tensor, " n"],
    cutoffs: Float[Tensor, " n"],
    overlap: Float[Tensor, "n n"],
    norms: Float[Tensor, " n"],
    directions: Float[Tensor, "n end d"],
    coefficients: Float[Tensor, "n end end"],
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Scores less what stronger motifs of other features explain, strongest first.

    With unit templates S, feature g holds the part c_g |Q_g| S_g of its form, of which feature f reads w_f . d_g /
    w_g . d_g. Its score falls by that times <S_g, S_f> / |Q_f|. Only motifs that are no echoes themselves
    explain. A motif is an echo if what is left is not significant, or less than half of the score.

    Args:
        scores: Score of the motif of each feature.
        cutoffs: Score below which a motif is not significant.
        overlap: Encoder f times decoder row g, W_enc^T W_dec^T.
        norms: Frobenius norm of each form.
        directions: Group directions of each template, padded with zeros.
        coefficients: Coefficients of each template, S = sum_ij C_ij g_i g_j^T, padded with zeros.

    Returns:
        What is left of each score, and for each the feature (its place) it is an echo of, -1 where it is none.

    Cost: 2 n^2 end^2 d operations.
    """
    explained = _explained(scores, overlap, norms, directions, coefficients).cpu()
    scores, cutoffs = scores.cpu(), cutoffs.cpu()
    left = scores.clone()
    source = torch.full((len(scores),), -1, dtype=torch.long)
    stands = torch.zeros(len(scores), dtype=torch.bool)
    for place in scores.argsort(descending=True).tolist():
        parts = explained[place] * stands
        left[place] = scores[place] - parts.sum()
        if left[place] >= cutoffs[place] and left[place] >= _OWN * scores[place] > 0:
            stands[place] = True
        else:
            source[place] = parts.abs().argmax()
    return left, source


def _explained(
    scores: Tensor, overlap: Tensor, norms: Tensor, directions: Tensor, coefficients: Tensor
) -> Float[Tensor, "n n"]:
    """What of the score of f (row) the motif of g (column) explains."""
    n, n_ends, d = directions.shape
    flat = directions.reshape(n * n_ends, d)
    within = coefficients @ (directions @ directions.mT)
    size = (within * within.mT).sum((1, 2)).clamp_min(1e-12).sqrt()
    own = overlap.diagonal()
    read = overlap / torch.where(own.abs() > 1e-6, own, torch.inf)
    rows = []
    for part in torch.arange(n).split(_ROWS):
        gram = (directions[part].reshape(-1, d) @ flat.T).view(len(part), n_ends, n, n_ends).transpose(1, 2)
        mixed = coefficients[part].unsqueeze(1) @ gram @ coefficients.unsqueeze(0)
        inner = (mixed * gram).sum((2, 3)) / (size[part, None] * size)
        rows.append(read[part] * inner * (scores * norms) / norms[part, None])
    return torch.cat(rows).fill_diagonal_(0)
