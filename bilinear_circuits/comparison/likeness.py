"""How alike output features of two dictionaries are: by what they do on the same tokens, and by their weights.

Each measure is a function of two layers and features of either, and gives all pairs at once. Activations on the same
tokens and promoted tokens can be compared between any two models of one tokenizer; directions and forms only where
both dictionaries are on the same MLP, since other models have other bases.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.algebra.similarity import quadratic_form_similarity
from bilinear_circuits.algebra.tensor import QuadraticForm
from bilinear_circuits.interactions.active import ActiveTokens
from bilinear_circuits.interactions.activity import LayerActivity
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.feature import Feature

Measure = Literal["activation", "jaccard", "promoted", "decoder", "encoder", "form"]
ANY_MODEL: tuple[Measure, ...] = ("activation", "jaccard", "promoted")
SAME_MLP: tuple[Measure, ...] = ("decoder", "encoder", "form")
_ROWS_PER_CHUNK = 512


class Side(NamedTuple):
    """Some output features of a layer.

    Attributes:
        activity: The layer on a corpus.
        unembedding: Unembedding of its model, with the final norm weight folded in.
        features: The features.
    """

    activity: LayerActivity
    unembedding: Float[Tensor, "d_model d_vocab"]
    features: Int[Tensor, " n"]


@dataclass(frozen=True, eq=False, repr=False)
class CircuitSet(Brief):
    """Circuits found in one model with one set of dictionaries, and its layers on the corpus of the comparison.

    Attributes:
        name: A name for tables.
        activity: The layers, each once.
        unembedding: Unembedding of the model, with the final norm weight folded in (`models.running.unembedding`).
        circuits: Output features, as (layer, feature), each once.
    """

    name: str
    activity: tuple[LayerActivity, ...]
    unembedding: Float[Tensor, "d_model d_vocab"]
    circuits: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        layers = self.layers
        if not self.circuits or len(set(self.circuits)) < len(self.circuits):
            raise ValueError(f"circuits of {self.name} must be one or more, each once, got {self.circuits}.")
        for layer, feature in self.circuits:
            if layer not in layers:
                raise ValueError(f"circuits of {self.name} must be of its layers {layers}, got layer {layer}.")
            self.activity[layers.index(layer)].interactions.check_feature(feature)

    @property
    def layers(self) -> list[int]:
        """Layers in the order of `activity`."""
        return [layer_activity.interactions.mlp.layer for layer_activity in self.activity]

    @property
    def features(self) -> list[Feature]:
        """Every output feature of every layer."""
        return [
            Feature(layer_activity.interactions.mlp.layer, f)
            for layer_activity in self.activity
            for f in range(layer_activity.interactions.sae_out.d_sae)
        ]

    def offset(self, layer: int) -> int:
        """Find the place at which the features of a layer begin in `features`."""
        before = self.activity[: self.layers.index(layer)]
        return sum(one.interactions.sae_out.d_sae for one in before)

    def side(self, layer: int, features: Sequence[int] | None = None) -> Side:
        """Features of a layer, all by default."""
        activity = self.activity[self.layers.index(layer)]
        chosen = range(activity.interactions.sae_out.d_sae) if features is None else features
        return Side(activity, self.unembedding, torch.tensor(list(chosen), dtype=torch.long))

    def one(self, feature: tuple[int, int]) -> Side:
        """A single feature, of a layer and with a number."""
        return self.side(feature[0], [feature[1]])


@dataclass(frozen=True)
class Likeness:
    """How alike two output features are; see `compare_features`. The last four are None between different MLPs.

    Attributes:
        activation: Correlation of activations over the same tokens.
        jaccard: Tokens at which both are active, over those at which one is.
        promoted: Correlation of what they add to the logits.
        decoder: Cosine of decoder rows.
        encoder: Cosine of encoder directions.
        form: Gaussian correlation of their quadratic forms.
        inputs: Overlap of the spans of their two leading eigenvectors, from 0 to 1; 2 / d_in by chance.
    """

    activation: float
    jaccard: float
    promoted: float
    decoder: float | None
    encoder: float | None
    form: float | None
    inputs: float | None


@torch.no_grad()
def compare_features(measure: Measure, first: Side, second: Side) -> Float[Tensor, "n_first n_second"]:
    """All pairs of features of two layers by one measure, in float64; NaN where one of a pair is never active or zero.

    - "activation": Pearson correlation of activations over all tokens.
    - "jaccard": tokens at which both are active, over those at which one is.
    - "promoted": Pearson correlation, over the vocabulary, of what the decoder rows add to the logits.
    - "decoder", "encoder": cosine of decoder rows, of encoder directions.
    - "form": correlation of pre-activations over inputs drawn from the Gaussian with mean and covariance of the MLP
      inputs of the first (`quadratic_form_similarity`).

    Raises:
        ValueError: If the measure needs one MLP and there are two.
    """
    if measure in SAME_MLP and not same_mlp(first.activity, second.activity):
        raise ValueError(f"measure must be one that compares two MLPs ({', '.join(ANY_MODEL)}), got {measure}.")
    return _MEASURES[measure](first, second)


@torch.no_grad()
def pair_likeness(first: Side, second: Side) -> Likeness:
    """Every measure of two features, one on either side."""
    activation, jaccard, promoted = (compare_features(measure, first, second).item() for measure in ANY_MODEL)
    if not same_mlp(first.activity, second.activity):
        return Likeness(activation, jaccard, promoted, None, None, None, None)
    decoder, encoder, form = (compare_features(measure, first, second).item() for measure in SAME_MLP)
    return Likeness(activation, jaccard, promoted, decoder, encoder, form, _span_overlap(first, second))


def _span_overlap(first: Side, second: Side) -> float:
    """Mean squared cosine of the principal angles between the spans of two leading eigenvectors."""
    one, other = (
        side.activity.interactions.spectrum(int(side.features[0]), 2).eigenvectors.double() for side in (first, second)
    )
    return ((one.T @ other).square().sum() / one.shape[1]).item()


def same_mlp(first: LayerActivity, second: LayerActivity) -> bool:
    """Compare the MLPs of both dictionaries: layer and weights must be equal."""
    one, other = (activity.interactions.mlp for activity in (first, second))
    if one.layer != other.layer or one.tensor.W_gate.shape != other.tensor.W_gate.shape:
        return False
    names = ("W_gate", "W_in", "W_out")
    return all(torch.equal(getattr(one.tensor, name).double(), getattr(other.tensor, name).double()) for name in names)


def activations(activity: LayerActivity, features: Int[Tensor, " n"]) -> Float[Tensor, "token n"]:
    """Activations of some output features at all tokens, dense, in float64."""
    return activity.outputs.columns(features, len(activity.x))


def correlation_with_all(z: Float[Tensor, "token n"], active: ActiveTokens) -> Float[Tensor, "n d_sae"]:
    """Pearson correlation over tokens of some signals with every feature of a dictionary: O(n nnz)."""
    n_tokens, n_features = len(z), len(active.counts)
    value = active.value.double()
    sums, squares = (z.new_zeros(n_features).index_add(0, active.feature, part) for part in (value, value.square()))
    mean, z_mean = sums / n_tokens, z.mean(0)
    covariance = active.weighted_sums(z).T / n_tokens - torch.outer(z_mean, mean)
    variance = (squares / n_tokens - mean.square()).clamp_min(0)
    return covariance / torch.outer(z.var(0, correction=0), variance).sqrt()


def _activation(first: Side, second: Side) -> Tensor:
    z = activations(first.activity, first.features)
    return correlation_with_all(z, second.activity.outputs)[:, second.features]


def _jaccard(first: Side, second: Side) -> Tensor:
    z = (activations(first.activity, first.features) != 0).double()
    active = second.activity.outputs
    present = ActiveTokens(active.token, (active.value != 0).double(), active.offsets)
    both = present.weighted_sums(z).T[:, second.features]
    return both / (z.sum(0).unsqueeze(1) + active.counts[second.features] - both)


def _promoted(first: Side, second: Side) -> Tensor:
    chunks = second.features.split(_ROWS_PER_CHUNK)  # so that logits of a whole dictionary are never held
    one = _logits(first)
    return torch.cat([one @ _logits(second._replace(features=chunk)).T for chunk in chunks], 1)


def _logits(side: Side) -> Float[Tensor, "n d_vocab"]:
    """What decoder rows add to the logits, centred and of norm 1."""
    logits = side.activity.interactions.sae_out.W_dec[side.features].double() @ side.unembedding.double()
    return _unit(logits - logits.mean(1, keepdim=True))


def _decoder(first: Side, second: Side) -> Tensor:
    one, other = (_unit(side.activity.interactions.sae_out.W_dec[side.features].double()) for side in (first, second))
    return one @ other.T


def _encoder(first: Side, second: Side) -> Tensor:
    one, other = (_unit(side.activity.interactions.sae_out.W_enc.T[side.features].double()) for side in (first, second))
    return one @ other.T


def _form(first: Side, second: Side) -> Tensor:
    x = first.activity.x.double()
    return quadratic_form_similarity(_forms(first), _forms(second), x.T.cov(), x.mean(0), kind="correlation")


def _forms(side: Side) -> QuadraticForm:
    interactions = side.activity.interactions
    return interactions.mlp.tensor.to(torch.float64).quadratic_form(
        interactions.sae_out.W_enc.T[side.features].double()
    )


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)  # NaN for a row of zeros, which has no direction


_MEASURES: dict[str, Callable[[Side, Side], Tensor]] = {
    "activation": _activation,
    "jaccard": _jaccard,
    "promoted": _promoted,
    "decoder": _decoder,
    "encoder": _encoder,
    "form": _form,
}
