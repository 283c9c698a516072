"""What a search without a query returns."""

import math
from dataclasses import dataclass

from bilinear_circuits.discovery.motifs import Motif
from bilinear_circuits.discovery.nulls import NULLS, Null
from bilinear_circuits.utilities.display import Result, Shown
from bilinear_circuits.utilities.feature import OfFeature

_MEETING = 0.5


@dataclass(frozen=True)
class DiscoverySettings:
    """How the search is done.

    Attributes:
        nulls: What scores are compared with; see `nulls`. A p-value is the largest of those against each.
        replicates: Draws of each null, each with as many scores of every motif as features are tested. P-values are no
            smaller than 1 / (1 + draws x features), so that 6 / (fdr x draws) features must be significant together.
        fdr: False-discovery rate over all features, motifs and layers.
        min_active: Features active on at most this many tokens are left out.
        min_together: Tokens at which a pair of input features must be active together to count.
    """

    nulls: tuple[Null, ...] = ("refit", "rotation")
    replicates: int = 2
    fdr: float = 0.05
    min_active: int = 10
    min_together: int = 5

    def __post_init__(self) -> None:
        for name in ("replicates", "min_active", "min_together"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if isinstance(self.fdr, bool) or not isinstance(self.fdr, float) or not 0 < self.fdr < 1:
            raise ValueError(f"fdr must be a number between 0 and 1, got {self.fdr!r}.")
        object.__setattr__(self, "nulls", tuple(dict.fromkeys(self.nulls)))  # one named twice counts once
        if not self.nulls or set(self.nulls) - set(NULLS):
            raise ValueError(
                f"nulls must be one or more of {', '.join(NULLS)}, got {', '.join(map(str, self.nulls)) or 'none'}."
            )


@dataclass(frozen=True)
class Block:
    """Two groups of input features and how they interact in one output feature.

    Attributes:
        first: Input features of the first group, heaviest first.
        second: Those of the second; the same where a group meets itself.
        first_weights: Weight of each unit decoder row in the direction of the first group.
        second_weights: The same for the second.
        strength: g^T Q h / |Q|, signed: interaction of the two directions.
        together: Tokens at which both groups are active.
        meeting: Share of the block, by |weight_a weight_b T_ab|, in pairs that are active together on enough tokens.
        weighted: Sum over pairs of T_ab E[z_a z_b]: what the block adds to the mean pre-activation.
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    first_weights: tuple[float, ...]
    second_weights: tuple[float, ...]
    strength: float
    together: int
    meeting: float
    weighted: float


@dataclass(frozen=True, repr=False)
class Discovery(OfFeature, Shown):
    """One output feature and the motif its form is nearest to, of those that are significant.

    Attributes:
        layer: Layer of the MLP.
        feature: Output feature.
        motif: The motif.
        score: Cosine between form and template.
        corrected: What is left of it without what stronger motifs of other features explain.
        p: Share of null scores at least as large as what is left.
        q: Smallest false-discovery rate at which it is reported.
        blocks: Its groups and their interactions.
        outliers: Leading eigenvalue of either sign over the norm of the form, positive first.
        echo_of: Feature whose motif it repeats, None where it stands by itself.
    """

    layer: int
    feature: int
    motif: Motif
    score: float
    corrected: float
    p: float
    q: float
    blocks: tuple[Block, ...]
    outliers: tuple[float, float]
    echo_of: int | None

    @property
    def meets(self) -> bool:
        """True if the two groups of every product are active together, for at least half of it."""
        return all(block.meeting >= _MEETING for block in self.blocks if block.first != block.second)


@dataclass(frozen=True, repr=False)
class DiscoverySearch(Result):
    """What a search found.

    Attributes:
        discoveries: Significant motifs that stand by themselves, highest score first.
        echoes: Significant motifs that other features explain.
        apart: Significant motifs whose groups are hardly ever active together, which are no discoveries.
        n_features: Output features tested.
        n_tests: Tests, of all motifs.
        cutoffs: Smallest significant score of each motif; infinite where none is.
        high_scores: The score of each motif that one in a hundred exceeds: of the features tested ("layer"), and under
            each null.
        settings: How the search was done.
        seed: Seed of the nulls.
    """

    discoveries: tuple[Discovery, ...]
    echoes: tuple[Discovery, ...]
    apart: tuple[Discovery, ...]
    n_features: int
    n_tests: int
    cutoffs: dict[str, float]
    high_scores: dict[str, dict[str, float]]
    settings: DiscoverySettings
    seed: int

    @property
    def fewest(self) -> int:
        """Fewest tests that can be significant together: p-values from few draws of the nulls are not small enough."""
        smallest = 1 / (1 + self.settings.replicates * self.n_features)
        return math.ceil(smallest * self.n_tests / self.settings.fdr)
