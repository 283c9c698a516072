"""One attention head from its weights alone: what it moves (OV), where it looks (QK), and with whom it composes.

The weight of the norm in front is folded in; its scale, one positive number per token, is not there. A head moves
x W_V W_O, of rank d_head. Source: Elhage et al. 2021, A mathematical framework for transformer circuits.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from bilinear_circuits.models.host import Host
from bilinear_circuits.paths.forms import BilinearForm, Directions, read_rows, written_rows
from bilinear_circuits.paths.qk import QKForm
from bilinear_circuits.paths.weights import LayerWeights, LlamaWeights, read_weights
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.kinds import check_whole


@dataclass(frozen=True, eq=False, repr=False)
class AttentionHead(Brief):
    """One head of a Llama-type model, in x @ W orientation.

    Attributes:
        layer: Its layer.
        head: Its number.
        W_Q: Queries; the weights of the norm in front and of a norm on queries are folded in.
        W_K: Keys, of the group that the head reads.
        W_V: Values.
        W_O: What it writes; the weight of a norm behind attention is folded in.
        inv_freq: Radians per position of each pair of dimensions p, p + d_head / 2.
        scaling: Factor of scores.
    """

    layer: int
    head: int
    W_Q: Float[Tensor, "d_model d_head"]
    W_K: Float[Tensor, "d_model d_head"]
    W_V: Float[Tensor, "d_model d_head"]
    W_O: Float[Tensor, "d_head d_model"]
    inv_freq: Float[Tensor, " half"]
    scaling: float

    @classmethod
    def of(cls, model: Host | LlamaWeights | Any, layer: int, head: int) -> "AttentionHead":
        """Read a head of a model, or of weights that have been read.

        Raises:
            ValueError: If there is no such head, or the model is of another architecture.
        """
        weights = model if isinstance(model, LlamaWeights) else read_weights(model)
        check_whole("layer", layer, 0, weights.n_layers - 1)
        check_whole("head", head, 0, weights.n_heads - 1)
        one = weights.layers[layer]
        group = head // one.group
        W_Q = one.W_Q[head] if one.q_norm is None else one.W_Q[head] * one.q_norm
        W_K = one.W_K[group] if one.k_norm is None else one.W_K[group] * one.k_norm
        W_O = one.W_O[head] if one.attention_out_norm is None else one.W_O[head] * one.attention_out_norm
        scaling = weights.scaling * weights.rope_scaling**2
        return cls(layer, head, W_Q, W_K, one.W_V[group], W_O, weights.inv_freq, scaling)

    @property
    def name(self) -> str:
        """Layer and head, as 3.1."""
        return f"{self.layer}.{self.head}"

    def ov(self, sources: Directions, readouts: Directions) -> BilinearForm:
        """Make the form of what the head moves from directions at the key to readouts at the query.

        Entry (a, b) is d_a W_V W_O . r_b; its rank is d_head at most. With `weights.W_E` and `weights.W_U.T` it says
        which tokens a head promotes where it looks at a token.
        """
        return BilinearForm(written_rows(sources, self.W_V) @ self.W_V, read_rows(readouts, self.W_V) @ self.W_O.T)

    def qk(self, queries: Directions, keys: Directions) -> QKForm:
        """Make the forms of where the head looks, for all distances, between directions at the query and at the key."""
        q, k = written_rows(queries, self.W_Q) @ self.W_Q, written_rows(keys, self.W_K) @ self.W_K
        return QKForm(_as_complex(q) * self.scaling, _as_complex(k), self.inv_freq)

    def eigenvalues(
        self, sources: Directions | None = None, readouts: Directions | None = None
    ) -> Complex[Tensor, " d_head"]:
        """Find the eigenvalues of W_V W_O, or of its form between as many sources as readouts, by falling magnitude.

        Those that can differ from zero are the ones of a d_head x d_head core.

        Raises:
            ValueError: If only one of the two is given, or they are not equally many.
        """
        core = self.W_O @ self.W_V
        if sources is not None or readouts is not None:
            if sources is None or readouts is None:
                raise ValueError("sources and readouts must both be given, got one of them.")
            written, read = written_rows(sources, self.W_V), read_rows(readouts, self.W_V)
            if len(written) != len(read):
                raise ValueError(f"readouts must be as many as sources, {len(written)}, got {len(read)}.")
            core = (self.W_O @ read.T) @ (written @ self.W_V)
        found = torch.linalg.eigvals(core.double())
        return found[found.abs().argsort(descending=True, stable=True)]

    def copying_score(self, sources: Directions | None = None, readouts: Directions | None = None) -> float:
        """Measure the share of the eigenvalues' magnitude with a positive real part: 1 if it copies all, 1/2 by chance.

        With real eigenvalues it is (1 + s) / 2 for s = sum(lambda) / sum(|lambda|) of Elhage et al.
        """
        found = self.eigenvalues(sources, readouts)
        size = found.abs()
        return (size[found.real > 0].sum() / size.sum()).item() if size.any() else 0.5

    def composition(self, earlier: "AttentionHead", by: Literal["Q", "K", "V"], distance: int = 0) -> float:
        """Measure how much of what an earlier head writes is read by this head's queries, keys or values.

        |M_earlier M| / (|M_earlier| |M|) in Frobenius norms, M being W_Q R(distance) W_K^T, its transpose, or W_V W_O.

        Raises:
            ValueError: If the other head is not of an earlier layer, or it is read by none of the three.
        """
        if earlier.layer >= self.layer:
            raise ValueError(f"earlier must be a head of a layer before {self.layer}, got {earlier.name}.")
        if by not in ("Q", "K", "V"):
            raise ValueError(f"by must be 'Q', 'K' or 'V', got {by!r}.")
        turned = self._turned_queries(check_whole("distance", distance, least=None))
        read, other = {
            "Q": (turned, self.W_K),
            "K": (self.W_K, turned),
            "V": (self.W_V, self.W_O.T),
        }[by]
        size = BilinearForm(earlier.W_V, earlier.W_O.T).norm() * BilinearForm(read, other).norm()
        return BilinearForm(earlier.W_V @ (earlier.W_O @ read), other).norm() / size if size else 0.0

    def read_by_mlp(self, mlp: LayerWeights) -> tuple[float, float]:
        """Measure how much of what the head writes is read by an MLP's gate, and by W_in (0 without a gate).

        |W_V W_O W| / (|W_V W_O| |W|): changed neither by a factor of the gate nor by one of W_in.
        """
        size = BilinearForm(self.W_V, self.W_O.T).norm()
        found = [0.0, 0.0]
        for at, W in enumerate((mlp.W_gate, mlp.W_in)):
            if W is not None and size:
                found[at] = BilinearForm(self.W_V, (self.W_O @ W).T).norm() / (size * W.norm().item())
        return found[0], found[1]

    def _turned_queries(self, distance: int) -> Tensor:
        """W_Q with every pair of dimensions turned as by that many positions."""
        turn = torch.polar(torch.ones_like(self.inv_freq), self.inv_freq * distance)
        turned = _as_complex(self.W_Q) * turn
        return torch.cat([turned.real, turned.imag], -1)


def _as_complex(x: Float[Tensor, "*n d_head"]) -> Complex[Tensor, "*n half"]:
    """Pair dimension p with p + d_head / 2, as rotary embeddings of Hugging Face do."""
    first, second = x.chunk(2, -1)
    return torch.complex(first.contiguous(), second.contiguous())
