"""What motif scores would be if there were nothing to find: null forms, scored by the same code.

Each null breaks one thing and keeps the rest:

| null | kept | broken |
| --- | --- | --- |
| "refit" | firing patterns of the output features, sizes of weights | which weight is where; encoders are refitted |
| "weights" | encoders, sizes of weights | which weight is where |
| "symmetric" | norm of each form | everything else: independent normal entries |
| "rotation" | spectrum of each form, angles between decoder rows | how one lies to the other |
| "dictionary" | forms, sizes of the entries of decoder rows | which way decoder rows point |

"refit" is the one that p-values use. A dictionary fits its encoders to what the layer writes, whatever its weights are:
already a random layer has forms with a large square of their own typical input. An encoder that is refitted to the
random layer, for the same firing pattern, has that too; one that is kept has not.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.algebra.forms import QuadraticForms
from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.interactions.active import ActiveTokens

Null = Literal["refit", "weights", "symmetric", "rotation", "dictionary"]
NULLS: tuple[Null, ...] = ("refit", "weights", "symmetric", "rotation", "dictionary")
SAME_FORMS: tuple[Null, ...] = ("rotation", "dictionary")
"""Nulls that leave the forms as they are and turn what they are read with."""

RIDGE = 0.1


def permute_rows(weights: Float[Tensor, "row column"], generator: torch.Generator) -> Float[Tensor, "row column"]:
    """Every row with its entries in another order, each row in one of its own."""
    order = torch.rand(weights.shape, generator=generator, dtype=torch.double).argsort(1)
    return weights.gather(1, order.to(weights.device))


def randomised_layer(tensor: InteractionTensor, generator: torch.Generator) -> InteractionTensor:
    """A layer with the same numbers in other places: rows of the three matrices are permuted, biases too."""
    parts = {}
    for name in ("W_gate", "W_in", "W_out", "b_gate", "b_in", "b_out"):
        value = getattr(tensor, name)
        if value is not None:
            row = permute_rows(value.view(-1, value.shape[-1]), generator)
            parts[name] = row.view(value.shape)
    return InteractionTensor(**parts)


@torch.no_grad()
def refitted_encoders(
    y: Float[Tensor, "token d_out"], active: ActiveTokens, ridge: float = RIDGE
) -> Float[Tensor, "d_out d_sae"]:
    """Encoders that read the activations of a dictionary off other layer outputs, by ridge regression.

    W = (C + ridge tr(C) / d_out)^-1 Cov(y, z), with C = Cov(y, y), in float64.

    Args:
        y: Outputs on the tokens of `active`.
        active: Activations to be read.
        ridge: Share of the mean variance added to every direction. On the shipped model 0.1 comes nearest to the
            encoders of its dictionaries: median cosine 0.75, against 0.71 at 0.001 and 0.74 at 1.
    """
    y = y.double()
    y = y - y.mean(0)
    covariance = y.T @ y / len(y)
    added = ridge * covariance.diagonal().mean()
    together = active.weighted_sums(y) / len(y)
    covariance.diagonal().add_(added)
    return torch.linalg.solve(covariance, together.T)


@torch.no_grad()
def null_forms(
    null: Null,
    tensor: InteractionTensor,
    encoders: Float[Tensor, "d_out feature"],
    generator: torch.Generator,
    group: int,
) -> Iterator[Float[Tensor, "feature d_in d_in"]]:
    """Forms under the null "weights" or "symmetric", some features at a time.

    Args:
        null: Which.
        tensor: The layer.
        encoders: Output directions.
        generator: Where randomness comes from.
        group: Features at a time.
    """
    if null == "weights":
        tensor = randomised_layer(tensor, generator)
    for Q in forms_in_groups(tensor, encoders, group):
        if null == "symmetric":
            entries = torch.randn(Q.shape, generator=generator, dtype=Q.dtype).to(Q.device)
            entries = entries + entries.mT
            Q = entries * (Q.flatten(1).norm(dim=1) / entries.flatten(1).norm(dim=1))[:, None, None]
        yield Q


def null_rows(null: Null, rows: Float[Tensor, "n_features d"], seed: int) -> Float[Tensor, "n_features d"]:
    """Decoder rows under the null "rotation" or "dictionary", which leave the forms as they are."""
    generator = torch.Generator().manual_seed(seed)
    if null == "dictionary":
        return torch.nn.functional.normalize(permute_rows(rows, generator), dim=1)
    d = rows.shape[1]
    rotation, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.double))
    return rows @ rotation.to(rows)


def forms_in_groups(
    tensor: InteractionTensor, encoders: Float[Tensor, "d_out feature"], group: int
) -> Iterator[Float[Tensor, "feature d_in d_in"]]:
    """Dense forms of output directions, some at a time."""
    forms = QuadraticForms(tensor, encoders.to(tensor.W_out.dtype), torch.float32)
    for index in torch.arange(encoders.shape[1], device=tensor.W_out.device).split(group):
        yield forms(index).Q
