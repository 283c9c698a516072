"""A gated MLP with quadratic functions on its gates, between two dictionaries: triples of input features."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.algebra.matrix import InteractionMatrix
from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.interactions.fit import LEAST_RECOVERED, check_recovered, described, sides_of
from bilinear_circuits.interactions.ledger import SumOfTerms
from bilinear_circuits.models.approximation import CubicMLP
from bilinear_circuits.utilities.display import Brief, Shown, Tabled
from bilinear_circuits.utilities.kinds import check_kind, check_whole

if TYPE_CHECKING:
    from sae_lens import SAE

_SLACK = 1e-4  # bounds are rounded: what is that near is computed too
_ENTRIES = 1 << 22


@dataclass(frozen=True, eq=False, repr=False)
class OrderLedger(SumOfTerms, Brief):
    """Where the pre-activation of an output feature comes from, by the number of factors that are inputs.

    The layer is sum_m w_m (c0 + c1 g + c2 g^2)_m u_m; with biases, g and u are affine in the input.

    Attributes:
        first: Terms c0 u: the input once.
        second: Terms c1 g u.
        third: Terms c2 g^2 u.
        constant: Encoder bias of the output dictionary, less its decoder bias, and the output bias of the MLP.
        gate_remainder: What the function on the gates is more than the polynomials.
    """

    first: Float[Tensor, "*n"]
    second: Float[Tensor, "*n"]
    third: Float[Tensor, "*n"]
    constant: Float[Tensor, "*n"]
    gate_remainder: Float[Tensor, "*n"]


@dataclass(frozen=True, eq=False, repr=False)
class Triples(Shown, Tabled):
    """Triples of input features, each unordered one once, largest first.

    Attributes:
        features: Input features of each; d_sae stands for the decoder bias and d_sae + 1 for what the dictionary
            misses, where a single input is divided.
        value: Coefficient of z_a z_b z_c, or what the triple adds at an input.
    """

    features: Int[Tensor, "triple 3"]
    value: Float[Tensor, " triple"]

    def table(self) -> dict[str, list[Any]]:
        """One row for each triple."""
        columns = zip(("first", "second", "third"), self.features.T.tolist(), strict=True)
        return {**dict(columns), "value": self.value.tolist()}


class CubicInteractions:
    """A cubic MLP between two dictionaries: every output feature as a polynomial of degree three of input features.

    Attributes:
        mlp: The cubic MLP.
        sae_in: Dictionary of the MLP input.
        sae_out: Dictionary of the MLP output.
    """

    def __init__(
        self,
        mlp: CubicMLP,
        sae_in: "Dictionary | SAE[Any] | None",
        sae_out: "Dictionary | SAE[Any] | None",
        *,
        least_recovered: float = LEAST_RECOVERED,
    ) -> None:
        """Check that the dictionaries belong to this layer; all is brought to the widest dtype among them.

        Args:
            mlp: The cubic MLP.
            sae_in: Dictionary of its input; None for its coordinates.
            sae_out: Dictionary of its output; None for its coordinates.
            least_recovered: Least share of the variance of the MLP output that the layer must recover.

        Raises:
            TypeError: If `mlp` is none.
            ValueError: If a dictionary does not fit, or the layer recovers too little.
        """
        check_kind("mlp", mlp, CubicMLP, "GatedMLP.from_model(model, layer).cubic(inputs) makes one.")
        check_recovered(mlp.approximation, mlp.layer, least_recovered)
        self.sae_in, self.sae_out = sides_of(mlp, mlp.tensor.weights, sae_in, sae_out)
        self.mlp = mlp.to(self.sae_in.W_enc.dtype)

    def __repr__(self) -> str:
        return described("CubicInteractions", self.mlp, self.sae_in, self.sae_out)

    @cached_property
    def _wide_mlp(self) -> CubicMLP:
        return self.mlp.to(torch.float64)

    def _direction(self, feature: int) -> Float[Tensor, " d_out"]:
        check_whole("feature", feature, 0, self.sae_out.d_sae - 1)
        return self.sae_out.W_enc[:, feature]

    def matrix(self, feature: int, at: Float[Tensor, "n d_in"]) -> InteractionMatrix:
        """Local interaction matrix between input features: one factor of every g^2 held at its mean over some inputs.

        T = W_dec Q W_dec^T with Q = sum_m w_m (c1 + c2 mean(g))_m sym(G_m U_m^T), factored, (d_sae_in, d_sae_in).

        Args:
            feature: Output feature.
            at: MLP inputs, such as those at which the feature is active.

        Raises:
            ValueError: If there is no such feature, or no input.
        """
        local = self.mlp.tensor.local(self._rows(at), self._direction(feature))
        left, right = self.sae_in.W_dec @ local.left, self.sae_in.W_dec @ local.right
        return InteractionMatrix(left, right, local.weights)

    def marginal(self, feature: int, z: Float[Tensor, " d_sae_in"]) -> Float[Tensor, "d_sae_in d_sae_in"]:
        """Contract one place of the cubic part with activations: sum_c T_abc z_c, such as with `mean_inputs`.

        Cost: d_in^2 d_mlp, and a (d_sae_in, d_sae_in) matrix.

        Raises:
            ValueError: If there is no such feature, or not one activation for each input feature.
        """
        W_dec = self.sae_in.W_dec
        if z.shape != (len(W_dec),):
            raise ValueError(f"z must have d_sae_in={len(W_dec)} entries, got shape {tuple(z.shape)}.")
        return W_dec @ self.mlp.tensor.marginal(z.to(W_dec) @ W_dec, self._direction(feature)) @ W_dec.T

    @torch.no_grad()
    def triples(self, feature: int, x: Float[Tensor, " d_in"], n_active: int | None = None) -> Triples:
        """Divide the cubic part at one MLP input among all triples of active features, bias and error, exactly.

        Values add up to `ledger(x, feature).third` for an MLP without biases. Cost: n^3 / 6 d_mlp for n parts.

        Args:
            feature: Output feature.
            x: The input.
            n_active: Active features that are parts of their own, those of largest activation: the others count with
                what the dictionary misses. All by default.

        Raises:
            ValueError: If there is no such feature, x is not one row, or there are more than 20 million triples.
        """
        e, row = self._direction(feature), self._rows(x.unsqueeze(0) if x.ndim == 1 else x)
        if len(row) != 1:
            raise ValueError(f"x must be one row of d_in entries, got {len(row)}.")
        z = self.sae_in.encode(row)[0]
        active = z.nonzero().squeeze(1)
        if n_active is not None:
            largest = z[active].abs().topk(min(check_whole("n_active", n_active), len(active))).indices
            active = active[largest.sort().values]
        written = z[active].unsqueeze(1) * self.sae_in.W_dec[active]
        bias = self.sae_in.b_dec
        parts = torch.cat([written, torch.stack([bias, row[0] - written.sum(0) - bias])])
        index, value = self.mlp.tensor.triples(parts, e)
        names = torch.cat([active, torch.tensor([self.sae_in.d_sae, self.sae_in.d_sae + 1], device=active.device)])
        return Triples(names[index], value)

    @torch.no_grad()
    def top_triples(self, feature: int, k: int = 20) -> Triples:
        """Find the k triples of input features with the largest coefficients of z_a z_b z_c, exactly.

        |T_abc| <= |t_ab| |d_c| with t_ab = T(d_a, d_b, .): a pair (a, b) whose bound cannot reach the k-th coefficient
        found so far is left out with all its triples. A coefficient is T_abc times its number of orders: 6, or 3 with
        two features equal, or 1 with all.
        Cost: d_sae_in (3 d_in^2 d_mlp + d_sae_in d_in^2), and d_sae_in d_in for each pair that is opened.

        Raises:
            ValueError: If there is no such feature, or k is not positive.
        """
        e = self._direction(feature)
        check_whole("k", k)
        W_dec, n = self.sae_in.W_dec, self.sae_in.d_sae
        longest = W_dec.norm(dim=1).max()
        found = Triples(torch.zeros(0, 3, dtype=torch.long, device=W_dec.device), W_dec.new_zeros(0))
        for a in range(n):
            rows = W_dec[a:] @ self.mlp.tensor.marginal(W_dec[a], e)  # t_ab of every b from a on
            least = found.value[-1].abs() * (1 - _SLACK) if len(found.value) == k else 0
            opened = (6 * rows.norm(dim=1) * longest >= least).nonzero().squeeze(1)
            for some in opened.split(max(1, _ENTRIES // n)):
                found = _largest(found, a, some, rows[some] @ W_dec[a:].T, k)
        return found

    @torch.no_grad()
    def ledger(self, x: Float[Tensor, "*n d_in"], feature: int) -> OrderLedger:
        """The account of a feature's pre-activation at MLP inputs x by orders, in float64; it sums to the model's.

        Raises:
            ValueError: If there is no such feature.
        """
        e = self._direction(feature).double()
        mlp, rows = self._wide_mlp, x.double()
        first, second, third = mlp.tensor.orders(rows, e)
        bias = mlp.tensor.weights.b_out
        constant = self.sae_out.b_enc[feature].double() + (0 if bias is None else bias @ e)
        remainder = (mlp.approximation.original(rows) - mlp.tensor(rows)) @ e
        return OrderLedger(first, second, third, constant.expand(rows.shape[:-1]), remainder)

    def _rows(self, x: Tensor) -> Tensor:
        d_in = self.mlp.tensor.weights.d_in
        if x.ndim != 2 or x.shape[1] != d_in or len(x) == 0:
            raise ValueError(f"inputs must be one row or more of d_in={d_in} entries, got shape {tuple(x.shape)}.")
        return x.to(self.sae_in.W_dec)


def _largest(found: Triples, a: int, b: Tensor, entries: Float[Tensor, "pair third"], k: int) -> Triples:
    """The k largest of what was found and of the triples (a, a + b, a + c) with b <= c."""
    row, c = (torch.arange(entries.shape[1], device=b.device) >= b.unsqueeze(1)).nonzero().unbind(1)
    b = b[row]
    n_same = (b == 0).int() + (c == b).int()
    values = entries[row, c] * torch.where(n_same == 0, 6, torch.where(n_same == 1, 3, 1))
    best = values.abs().topk(min(k, len(values))).indices
    features = torch.stack([torch.zeros_like(best), b[best], c[best]], 1) + a
    features, values = torch.cat([found.features, features]), torch.cat([found.value, values[best]])
    kept = values.abs().argsort(descending=True, stable=True)[:k]
    return Triples(features[kept], values[kept])
