"""Polynomials in place of the function on a gate, neuron by neuron, by weighted least squares."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.utilities.display import Brief

_TINY = 1e-300
_RANK = 1e-12  # of a neuron's normal equations: a gate that is always the same has a constant alone


@dataclass(frozen=True, eq=False, repr=False)
class GateFit(Brief):
    """A polynomial of each neuron's gate, act(g) ~ sum_k c_k g^k, and what it leaves out.

    Attributes:
        coefficients: c_k by neuron, in float64.
        remainder: E[(u (act(g) - sum_k c_k g^k))^2] of each neuron: the second moment of its gate remainder.
        power: E[(u act(g))^2] of each neuron.
        n: Inputs that the fit is of.
    """

    coefficients: Float[Tensor, "d_mlp order_plus_1"]
    remainder: Float[Tensor, " d_mlp"]
    power: Float[Tensor, " d_mlp"]
    n: int

    @property
    def order(self) -> int:
        """Degree of the polynomials."""
        return self.coefficients.shape[1] - 1

    @property
    def unexplained(self) -> Float[Tensor, " d_mlp"]:
        """Share of each neuron's power that the polynomial leaves out; 0 for a neuron that is never on."""
        return torch.where(self.power > 0, self.remainder / self.power.clamp_min(_TINY), 0)

    def __call__(self, g: Float[Tensor, "*n d_mlp"]) -> Float[Tensor, "*n d_mlp"]:
        """Evaluate the polynomials at gates."""
        value = torch.zeros_like(g)
        for column in self.coefficients.to(g).flip(1).unbind(1):
            value = value * g + column
        return value


@torch.no_grad()
def fit_gates(
    batches: Iterable[tuple[Float[Tensor, "_ d_mlp"], Float[Tensor, "_ d_mlp"]]],
    act: Callable[[Tensor], Tensor],
    order: int,
) -> GateFit:
    """Fit a polynomial to the function on each neuron's gate, where it matters: weighted with the other factor squared.

    Minimises sum u^2 (act(g) - sum_k c_k g^k)^2 over the inputs: the mean square of what the neuron's product misses.
    Cost: one pass over the inputs, for sums of u^2 g^k in float64, and (order + 1)^3 for each neuron.

    Args:
        batches: Gates and other factors, some inputs at a time.
        act: The function.
        order: Degree: 1 makes a bilinear layer, 2 a cubic one.

    Raises:
        ValueError: If the order is not positive, or there is no input.
    """
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}.")
    sums: list[Tensor] = []
    n = 0
    for gate, other in batches:
        g, weight = gate.double(), other.double().square()
        value, terms = act(g), [weight * g**k for k in range(2 * order + 1)]
        powers = torch.stack([term.sum(0) for term in terms])
        crossed = torch.stack([(term * value).sum(0) for term in terms[: order + 1]])
        new = [powers, crossed, (weight * value.square()).sum(0)]
        sums = [old + one for old, one in zip(sums, new, strict=True)] if sums else new
        n += len(g)
    if n == 0:
        raise ValueError("batches must hold one input or more, got none.")
    powers, crossed, power = sums
    coefficients = _solved(powers, crossed, order)
    fitted = torch.einsum("mk,km->m", coefficients, crossed)
    # At the minimum what is explained is c . r; rounding may leave it above the whole.
    return GateFit(coefficients, ((power - fitted) / n).clamp_min(0), power / n, n)


def _solved(
    powers: Float[Tensor, "twice_order_plus_1 d_mlp"], crossed: Float[Tensor, "order_plus_1 d_mlp"], order: int
) -> Float[Tensor, "d_mlp order_plus_1"]:
    """Solve the normal equations of all neurons, in gates divided by their root mean square."""
    total = torch.where(powers[0] > 0, powers[0], 1)
    size = (powers[2] / total).sqrt()
    size = torch.where(size > 0, size, 1)
    degree = torch.arange(order + 1, device=powers.device)
    scale = size.unsqueeze(1) ** degree
    H = powers[degree.unsqueeze(1) + degree].permute(2, 0, 1) / (scale.unsqueeze(2) * scale.unsqueeze(1))
    r = crossed.T / scale / total.unsqueeze(1)
    solved = torch.linalg.pinv(H / total[:, None, None], hermitian=True, rtol=_RANK) @ r.unsqueeze(2)
    return solved.squeeze(2) / scale
