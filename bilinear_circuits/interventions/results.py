"""What the causal proof of one circuit holds, and how much of it is measured."""

from dataclasses import dataclass, field

from bilinear_circuits.circuits.query import CircuitQuery
from bilinear_circuits.interactions.bounds import TruncationError
from bilinear_circuits.interactions.completeness import CircuitCompleteness
from bilinear_circuits.interactions.pairs import Pairs
from bilinear_circuits.interventions.ablations import CircuitAblation, Dose, NodeAblation
from bilinear_circuits.interventions.agreement import RemovalAgreement
from bilinear_circuits.interventions.complement import ComplementTests
from bilinear_circuits.interventions.controls import NonsenseTask, OtherFeature
from bilinear_circuits.interventions.edges import EdgeEffects, EdgeExactness
from bilinear_circuits.interventions.joint import JointRemoval
from bilinear_circuits.interventions.later import LaterEffects
from bilinear_circuits.statistics.effects import Effect
from bilinear_circuits.utilities.display import Result, Shown
from bilinear_circuits.utilities.feature import OfFeature


@dataclass(frozen=True)
class ProofSettings:
    """How much is measured.

    Attributes:
        n_edges: Edges of the circuit; as many of the largest weights and random ones are measured beside them.
        n_exact: Single (edge, site) pairs measured on the pre-activation.
        factors: Factors of the dose response.
        sizes: Shares of the complement that random and worst subsets hold.
        n_draws: Random subsets of each size.
        n_controls: Control features of either kind.
        n_nonsense: Draws of random poles.
        n_listed: Later features and tokens listed.
    """

    n_edges: int = 32
    n_exact: int = 64
    factors: tuple[float, ...] = (-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    sizes: tuple[float, ...] = (0.01, 0.1, 0.5, 0.9)
    n_draws: int = 5
    n_controls: int = 6
    n_nonsense: int = 1000
    n_listed: int = 10

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.startswith("n_") and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if not self.factors or not all(abs(factor) < float("inf") for factor in self.factors):
            raise ValueError(f"factors must be one or more finite numbers, got {self.factors}.")
        if not self.sizes or not all(0 < size <= 1 for size in self.sizes):
            raise ValueError(f"sizes must be one or more shares between 0 and 1, got {self.sizes}.")


@dataclass(frozen=True)
class Places:
    """Effect of removing the circuit's edges, by where the edit acts and where it is measured.

    Attributes:
        site: At the trigger alone, measured there: the effect of the circuit.
        all_sites: The same at all triggers, the feature active or not.
        encoder: At the trigger, written along the encoder row instead of the decoder row: the smallest change of the
            MLP output that takes the circuit's terms out of the pre-activation.
        row: At every token up to the trigger, as a weight edit would.
        before: At every token before the trigger, but not at it.
        elsewhere: At random tokens that are no triggers, measured there.
        rank_form: Effect of removing the low-rank form at the trigger alone, for comparison.
    """

    site: Effect
    all_sites: Effect
    encoder: Effect
    row: Effect
    before: Effect
    elsewhere: Effect
    rank_form: Effect


@dataclass(frozen=True, eq=False, repr=False)
class InterventionProof(OfFeature, Shown):
    """All interventions on one circuit. Effects are changes of the pole logit difference, in nats.

    Attributes:
        layer: Layer of the MLP.
        feature: Output feature.
        n_sites: Trigger sites of the proof.
        n_active: Those at which the feature is active, where effects are measured unless said otherwise.
        edges: The circuit, largest contribution first.
        exactness: Single edges on the pre-activation.
        effects: Single edges on poles and logits.
        places: The circuit removed, by place.
        nodes: Input features ablated.
        circuit: The circuit ablated.
        doses: The circuit scaled.
        complement: Necessity, sufficiency, subsets of the complement.
        later: The circuit removed, further on.
        other_features: Control features.
        nonsense: Random poles.
        truncation: What the low-rank form can be wrong by, and is, on the ranking stories.
        explained: Share of the activation that the circuit explains there.
    """

    layer: int
    feature: int
    n_sites: int
    n_active: int
    edges: Pairs
    exactness: EdgeExactness
    effects: EdgeEffects
    places: Places
    nodes: tuple[NodeAblation, ...]
    circuit: tuple[CircuitAblation, ...]
    doses: tuple[Dose, ...]
    complement: ComplementTests
    later: LaterEffects
    other_features: tuple[OtherFeature, ...]
    nonsense: NonsenseTask
    truncation: TruncationError
    explained: CircuitCompleteness


@dataclass(frozen=True, eq=False, repr=False)
class CircuitProofs(Result):
    """The proofs of some circuits of one query.

    Attributes:
        query: The query.
        settings: How much was measured.
        seed: Seed of everything random in the proofs.
        n_corpus_tokens: Tokens of the ranking stories, where edges were chosen and means come from.
        proofs: One for each circuit, in the order asked for.
        joint: Circuits of the same pole removed together, where there are two or more.
        labels: Names of the input features of all edges measured, by layer and feature: the tokens that tell most about
            their activation.
        untested: Circuits that could not be tested, and why: those active at too few sites.
        agreements: By layer, where it was read through one fitted to it: removals as that predicts them, beside what
            the model's own MLP does.
    """

    query: CircuitQuery
    settings: ProofSettings
    seed: int
    n_corpus_tokens: int
    proofs: tuple[InterventionProof, ...]
    joint: tuple[JointRemoval, ...]
    labels: dict[str, dict[str, str]]
    untested: dict[str, str] = field(default_factory=dict)
    agreements: dict[str, RemovalAgreement] = field(default_factory=dict)
