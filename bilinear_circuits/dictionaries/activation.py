"""Activation rules of dictionaries."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.utilities.display import Brief


@dataclass(frozen=True, eq=False, repr=False)
class Activation(Brief):
    """A rule from pre-activations to activations: which features of a dictionary are active.

    Attributes:
        kind: "relu"; "jumprelu" (ReLU above `threshold`, else 0); "topk" (ReLU of the k largest of a row);
            "abstopk" (the k largest in magnitude, sign kept); "identity" (everything passes).
        k: Number kept per row, for the two top-k rules.
        threshold: Threshold of each feature, for "jumprelu".
    """

    kind: Literal["relu", "jumprelu", "topk", "abstopk", "identity"]
    k: int | None = None
    threshold: Float[Tensor, " d_sae"] | None = None

    def __post_init__(self) -> None:
        needed = {"relu": None, "jumprelu": "threshold", "topk": "k", "abstopk": "k", "identity": None}
        if self.kind not in needed:
            raise ValueError(f"kind must be one of {', '.join(needed)}, got {self.kind!r:.40}.")
        for name in ("k", "threshold"):
            if (getattr(self, name) is not None) != (needed[self.kind] == name):
                must = "be given" if needed[self.kind] == name else "be left out"
                raise ValueError(f"{name} must {must} for the kind {self.kind}, got {getattr(self, name)!r:.60}.")
        if self.k is not None and (isinstance(self.k, bool) or self.k < 1):
            raise ValueError(f"k must be at least 1, got {self.k}.")

    def __call__(self, pre: Float[Tensor, "*n d_sae"]) -> Float[Tensor, "*n d_sae"]:
        """Zero what the rule drops."""
        if self.kind == "identity":
            return pre
        if self.kind == "relu":
            return pre.relu()
        if self.kind == "jumprelu":
            assert self.threshold is not None
            return pre.relu() * (pre > self.threshold)
        assert self.k is not None
        indices = (pre.abs() if self.kind == "abstopk" else pre).topk(self.k, dim=-1, sorted=False).indices
        values = pre.gather(-1, indices)
        return torch.zeros_like(pre).scatter(-1, indices, values if self.kind == "abstopk" else values.relu())
