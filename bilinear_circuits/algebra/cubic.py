"""CubicTensor: a gated layer whose gate is a quadratic polynomial, as a symmetric fourth-order tensor, never formed."""

from dataclasses import dataclass
from itertools import permutations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.algebra.matrix import InteractionMatrix
from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.utilities.display import Brief

_NUMBERS = 1 << 24  # held together for products of triples
_MOST_TRIPLES = 20_000_000


@dataclass(frozen=True, eq=False, repr=False)
class CubicTensor(Brief):
    """The layer x -> ((c0 + c1 g + c2 g^2) * u) W_out + b_out with g = x W_gate + b_gate and u = x W_in + b_in.

    An output direction e is the polynomial p(x) = sum_m w_m (c0 + c1 g + c2 g^2)_m u_m, w = W_out e. Its cubic part is
    T_abc = sum_m w_m c2_m sym(G_am G_bm U_cm); T is symmetric in its three places and held as three factors.

    Attributes:
        weights: The matrices and biases, held as those of a layer whose gate is linear.
        coefficients: c0, c1 and c2 of each neuron.
    """

    weights: InteractionTensor
    coefficients: Float[Tensor, "d_mlp 3"]

    def __post_init__(self) -> None:
        if self.coefficients.shape != (self.weights.d_mlp, 3):
            raise ValueError(
                f"coefficients must be three for each of d_mlp={self.weights.d_mlp} neurons, got"
                f" {tuple(self.coefficients.shape)}."
            )

    def __call__(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_out"]:
        """Apply the layer."""
        c0, c1, c2 = self.coefficients.to(x).unbind(1)
        return self.weights.gated(x, lambda g: c0 + c1 * g + c2 * g.square())

    def orders(
        self, x: Float[Tensor, "*n d_in"], e: Float[Tensor, " d_out"]
    ) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"], Float[Tensor, "*n"]]:
        """Divide e . layer(x), less e . b_out, by powers of the gate: sums of c0 u, c1 g u and c2 g^2 u."""
        g, u = self.weights.projections(x)
        w = self.weights.W_out @ e
        c0, c1, c2 = self.coefficients.to(g).unbind(1)
        return u @ (w * c0), (g * u) @ (w * c1), (g.square() * u) @ (w * c2)

    @property
    def quadratic(self) -> InteractionTensor:
        """The layer without c2: the bilinear layer ((c0 + c1 g) * u) W_out + b_out."""
        c0, c1, _ = self.coefficients.to(self.weights.W_gate).unbind(1)
        b_gate = c0 if self.weights.b_gate is None else c0 + c1 * self.weights.b_gate
        return InteractionTensor(
            self.weights.W_gate * c1, self.weights.W_in, self.weights.W_out, b_gate, self.weights.b_in,
            self.weights.b_out,
        )  # fmt: skip

    def local(self, x: Float[Tensor, "n d_in"], e: Float[Tensor, " d_out"]) -> InteractionMatrix:
        """Read an output direction as a quadratic form at some inputs: one factor of c2 g^2 held at its mean there.

        Q = sum_m w_m (c1 + c2 mean(g))_m sym(G_m U_m^T). At a single input, x^T Q x is orders 2 and 3 of p without
        biases.
        """
        g, _ = self.weights.projections(x)
        _, c1, c2 = self.coefficients.to(g).unbind(1)
        w = self.weights.W_out @ e
        return InteractionMatrix(self.weights.W_gate, self.weights.W_in, w * (c1 + c2 * g.mean(0)))

    def marginal(self, v: Float[Tensor, " d_in"], e: Float[Tensor, " d_out"]) -> Float[Tensor, "d_in d_in"]:
        """Contract one place of the cubic part, as with the mean input: sum_c T_abc v_c, in O(d^2 d_mlp)."""
        W_gate, W_in = self.weights.W_gate, self.weights.W_in
        w = (self.weights.W_out @ e) * self.coefficients[:, 2].to(W_gate)
        squares = (W_gate * (w * (v @ W_in))) @ W_gate.T
        crossed = (W_gate * (w * (v @ W_gate))) @ W_in.T
        return (squares + crossed + crossed.T) / 3

    def entries(
        self,
        parts: Float[Tensor, "part d_in"],
        index: Int[Tensor, "triple 3"],
        e: Float[Tensor, " d_out"],
    ) -> Float[Tensor, " triple"]:
        """Look up T of some triples of parts, such as decoder rows: O(d_mlp) each, after O(parts d_in d_mlp)."""
        G, U = parts @ self.weights.W_gate, parts @ self.weights.W_in
        w = (self.weights.W_out @ e) * self.coefficients[:, 2].to(G)
        total = G.new_zeros(len(index))
        step = max(1, _NUMBERS // max(1, G.shape[1]))
        for some, out in zip(index.split(step), total.split(step), strict=True):
            for a, b, c in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
                out += (G[some[:, a]] * G[some[:, b]] * U[some[:, c]]) @ w
        return total / 3

    def triples(
        self, parts: Float[Tensor, "part d_in"], e: Float[Tensor, " d_out"]
    ) -> tuple[Int[Tensor, "triple 3"], Float[Tensor, " triple"]]:
        """Divide the cubic part of p at x = sum of the parts among all unordered triples of them, largest first.

        n (n + 1) (n + 2) / 6 triples for n parts; their values add up to sum_m w_m c2_m (x . G_m)^2 (x . U_m).

        Raises:
            ValueError: If there are more than 20 million.
        """
        n = len(parts)
        if (n_triples := n * (n + 1) * (n + 2) // 6) > _MOST_TRIPLES:
            raise ValueError(
                f"parts must make at most {_MOST_TRIPLES:,} triples, got {n_triples:,} of {n} parts. Sum some of them."
            )
        index = torch.combinations(torch.arange(n, device=parts.device), 3, with_replacement=True)
        orders = torch.tensor([len(set(permutations(kind))) for kind in ((0, 1, 2), (0, 0, 1), (0, 0, 0))])
        n_same = (index[:, 1:] == index[:, :-1]).sum(1)
        values = self.entries(parts, index, e) * orders.to(parts.device)[n_same]
        order = values.abs().argsort(descending=True, stable=True)
        return index[order], values[order]
