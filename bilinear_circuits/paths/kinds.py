"""Weights alone, attention in front of a bilinear MLP: what reaches the MLP directly, and what heads move there.

Behind attention the residual stream of a block is x = E_i + sum_h sum_j A_ij E_j OV_h, so that the MLP's form splits
into kinds of pairs: direct with direct, B[E_i, E_i]; direct with a head, B[E_i, E_j OV_h]; head with head, B[E_j OV_h,
E_k OV_h']. They are interactions between directions, E and E OV_h of every head, and the sweep ranks all of them at
once. What a head moves is E_j OV_h over the scale that the norm in front gives E_j alone, as in block 0, where it is
the whole stream. Patterns and the norm of the MLP, positive numbers of a prompt, are not in the weights. Source:
Sharkey, arXiv 2305.03452, section 3; Elhage et al. 2021 for OV.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.models.bilinear_mlp import BilinearMLP
from bilinear_circuits.paths.attention import AttentionHead
from bilinear_circuits.paths.forms import Directions, written_rows
from bilinear_circuits.paths.forward import norm_scale
from bilinear_circuits.paths.weights import read_weights
from bilinear_circuits.sweep import TopInteractions
from bilinear_circuits.utilities.display import Brief, Shown, Tabled
from bilinear_circuits.utilities.progress import Progress, silent

DIRECT = "direct"


@dataclass(frozen=True, eq=False, repr=False)
class TopPaths(Shown, Tabled):
    """The largest interactions of directions that reach an MLP directly or through heads.

    Attributes:
        found: The interactions; `first` and `second` are rows of `PathKinds.interactions.sae_in`.
        kinds: Kind of each direction: "direct", or a head as 0.3.
        sources: Name of each source.
        outputs: Name of each output, by number, where it has one.
    """

    found: TopInteractions
    kinds: tuple[str, ...]
    sources: tuple[str, ...]
    outputs: dict[int, str]

    def table(self) -> dict[str, list[Any]]:
        """One row for each interaction: its output, both sources and how they get there, and its coefficient."""
        n = len(self.sources)
        columns: dict[str, list[Any]] = {"output": [self.outputs.get(f, str(f)) for f in self.found.output.tolist()]}
        for name, rows in (("first", self.found.first.tolist()), ("second", self.found.second.tolist())):
            columns[f"{name} kind"] = [self.kinds[row // n] for row in rows]
            columns[name] = [self.sources[row % n] for row in rows]
        return columns | {"weight": self.found.weights.tolist()}


@dataclass(frozen=True, eq=False, repr=False)
class PathKinds(Brief):
    """A bilinear MLP between sources, direct and through each head of its block, and outputs.

    Attributes:
        interactions: The layer between all those directions and the outputs; row kind * n_sources + source.
        kinds: "direct", then the heads as 0.3.
        sources: Name of each source.
    """

    interactions: FeatureInteractions
    kinds: tuple[str, ...]
    sources: tuple[str, ...]

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: nn.Module,
        layer: int,
        sources: Directions,
        outputs: Dictionary | None = None,
        heads: Sequence[int] | None = None,
    ) -> "PathKinds":
        """Read a block's heads and MLP between named directions.

        Cost: a decomposition of (1 + heads) x sources directions, in float64.

        Args:
            model: A Llama-type model whose layer is bilinear.
            layer: The block.
            sources: What the residual stream in front of the block is made of: tokens (`weights.W_E`), or a dictionary
                such as one of an earlier MLP's output. Their lengths count: what arrives directly grows with them, what
                heads move does not.
            outputs: Dictionary on the MLP output, such as features or `logit_directions`; coordinates by default.
            heads: Heads of the block; all by default.

        Raises:
            ValueError: If the model or a head is not as asked, or the layer has no RMSNorm.
            NotBilinearError: If the layer is not bilinear.
        """
        mlp, weights = BilinearMLP.from_model(model, layer), read_weights(model)
        rows, dtype = written_rows(sources, weights.W_U), mlp.tensor.W_gate.dtype
        chosen = [
            AttentionHead.of(weights, layer, head) for head in (range(weights.n_heads) if heads is None else heads)
        ]
        normed = rows / norm_scale(rows, weights.eps)
        written = [rows, *(normed @ head.W_V @ head.W_O for head in chosen)]
        if mlp.norm is None:
            raise ValueError(f"layer {layer} must have an RMSNorm in front of its MLP, but none was found.")
        given = sources.names if isinstance(sources, Dictionary) else {}
        names = tuple(given.get(i, str(i)) for i in range(len(rows)))
        kinds = (DIRECT, *(head.name for head in chosen))
        directions = Dictionary.from_directions(
            torch.cat(written).to(dtype) * mlp.norm.weight.to(dtype),
            names=[f"{kind} {name}" for kind in kinds for name in names],
            hook_name=mlp.hook_in,
            name="direct and through heads",
        )
        return cls(FeatureInteractions(mlp, directions, outputs), kinds, names)

    def top(self, k: int, features: Sequence[int] | None = None, progress: Progress = silent) -> TopPaths:
        """Find the k largest interactions of all kinds, exactly. See `FeatureInteractions.top`.

        Args:
            k: How many.
            features: Outputs to search; all by default.
            progress: Wraps the blocks.

        Raises:
            ValueError: If there is no such output, or k is not positive.
        """
        found = self.interactions.top(k, features, progress=progress)
        return TopPaths(found, self.kinds, self.sources, dict(self.interactions.sae_out.names))

    @torch.no_grad()
    def mass(self) -> Float[Tensor, "kind kind"]:
        """Divide the squared norm of all interactions among kinds of pairs, summed over outputs.

        sum_f |D_k Q_f D_l^T|^2 from the Gram matrices of the directions and of the outputs, in float64. Entries add up
        to the whole; that of a pair of kinds is twice in it, as is each of its interactions.
        Cost: O(kinds d_in d_mlp^2 + kinds^2 d_mlp^2).
        """
        tensor = self.interactions.pre_activation_tensor
        n = len(self.sources)
        rows = self.interactions.sae_in.W_dec.double().split(n)
        return _mass_by_kind(tensor, rows)


def _mass_by_kind(tensor: InteractionTensor, rows: Sequence[Float[Tensor, "source d_in"]]) -> Tensor:
    """|D_k Q_f D_l^T|^2 summed over f: with C = W_out W_out^T, half of C against S_gg S_ii + S_gi S_ig^T of k and l."""
    W_out = tensor.W_out.double()
    C = W_out @ W_out.T / 2
    grams = []
    for part in rows:
        gate, other = part @ tensor.W_gate.double(), part @ tensor.W_in.double()
        grams.append((gate.T @ gate, other.T @ other, gate.T @ other))
    found = C.new_zeros(len(rows), len(rows))
    for k, (gg, ii, gi) in enumerate(grams):
        for j, (other_gg, other_ii, other_gi) in enumerate(grams):
            products = (gg * other_ii + ii * other_gg) / 2 + gi * other_gi.T
            found[k, j] = (C * products).sum()
    return found
