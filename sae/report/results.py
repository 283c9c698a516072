"""What is measured of a feature: frozen records, without a word about how they are shown."""

from dataclasses import dataclass
from typing import Literal

from bilinear_circuits.interactions.examples import Band, Histogram
from bilinear_circuits.interactions.profiles import FeatureProfile
from bilinear_circuits.utilities.display import Brief

State = Literal["", "dead", "rare", "dense"]
DENSE = 0.1
"""Share of tokens above which a feature counts as dense."""
RARE = 10
"""Number of active tokens up to which correlations say nothing."""


@dataclass(frozen=True)
class FeatureSummary:
    """What is said of any feature, of either side.

    Attributes:
        feature: Its number.
        label: Its name: given by a person, or its leading tokens.
        top_tokens: Tokens that tell most about its activation, with the share of the activation each holds.
        n_active: Tokens at which it is active.
        n_tokens: Tokens of the corpus.
        mean: Mean activation where active.
        strongest: Largest activation by magnitude.
        state: "dead": never active; "rare": at ten tokens or fewer; "dense": at more than a tenth of all.
        histogram: Of the activations where active.
        promoted: Tokens that its decoder row raises most through the unembedding, with logits; none for an input.
        suppressed: Tokens it lowers most.
        neighbours: Features with the largest decoder cosines by magnitude, with the cosine.
        bands: Examples, strongest first.
    """

    feature: int
    label: str
    top_tokens: tuple[tuple[str, float], ...]
    n_active: int
    n_tokens: int
    mean: float
    strongest: float
    state: State
    histogram: Histogram
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    neighbours: tuple[tuple[int, float], ...]
    bands: tuple[Band, ...]

    @property
    def frequency(self) -> float:
        """Share of tokens at which it is active."""
        return self.n_active / max(1, self.n_tokens)


@dataclass(frozen=True)
class Pair:
    """An interaction of two input features in an output feature.

    Attributes:
        first: Input feature a.
        second: Input feature b, which may be a.
        weight: Coefficient of z_a z_b in the pre-activation.
        added: What the pair adds to the pre-activation on average where the output feature is active, if measured.
    """

    first: int
    second: int
    weight: float
    added: float | None = None


@dataclass(frozen=True, eq=False, repr=False)
class OutputReading(Brief):
    """What an output feature computes.

    Attributes:
        by_weight: Its largest interactions in the weights, exactly.
        profile: Its form on the corpus; None where it is active at fewer than two tokens.
        outlier: Smaller magnitude of its leading eigenvalues of either sign, over the semicircle edge.
        by_activity: The pairs that add most to it where it is active.
    """

    by_weight: tuple[Pair, ...]
    profile: FeatureProfile | None = None
    outlier: float | None = None
    by_activity: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class InputUse:
    """An output feature that an input feature takes part in, by the partner with which it does so most.

    Attributes:
        output: Output feature.
        partner: Input feature b, which may be the feature itself.
        weight: Coefficient of z_a z_b in the pre-activation of the output feature.
        added: What the pair adds to it on average where it is active, if measured.
    """

    output: int
    partner: int
    weight: float
    added: float | None = None


@dataclass(frozen=True)
class InputReading:
    """Output features in which an input feature takes part.

    Attributes:
        by_weight: Output features with the largest interactions with it in the weights.
        by_activity: Output features to which it adds most, with one partner, where they are active.
    """

    by_weight: tuple[InputUse, ...]
    by_activity: tuple[InputUse, ...]
