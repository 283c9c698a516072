"""Known circuits compiled into a bilinear layer, in superposition, with noise and decoys: what a search should find."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.dictionaries.activation import Activation
from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.discovery.motifs import MOTIFS, Motif
from bilinear_circuits.interactions.active import ActiveTokens
from bilinear_circuits.interactions.activity import FeatureActivity
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.models.bilinear_mlp import BilinearMLP
from bilinear_circuits.utilities.display import Brief

_N_GROUPS = {"and": 2, "flip": 3, "xor": 2, "contrast": 2, "square": 1, "suppression": 2}
_RANDOM_NEURONS = 32
_TOGETHER = 0.7
_HOOKS = ("blocks.0.mlp.hook_in", "blocks.0.mlp.hook_out")


@dataclass(frozen=True)
class PlantedSettings:
    """Sizes and difficulty.

    Attributes:
        d_model: Width of the spaces the layer reads and writes.
        features: Input features, and output features, for each dimension: 2 is twice as many as dimensions.
        circuits: Circuits of each motif, each on an output feature of its own.
        group: Most features of a group.
        noise: Norm of the random form added to every output feature, over that of a circuit.
        noise_neurons: Neurons it is made of.
        frequency: Share of tokens at which an input feature is active by itself.
        tokens: Tokens.
        seed: Seed of everything.
    """

    d_model: int = 128
    features: float = 2.0
    circuits: int = 8
    group: int = 3
    noise: float = 0.5
    noise_neurons: int = 512
    frequency: float = 0.02
    tokens: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("d_model", "circuits", "group", "noise_neurons", "tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.frequency < 1 or self.features <= 0 or self.noise < 0:
            raise ValueError(
                "frequency must lie between 0 and 1, features be positive and noise not negative, got"
                f" {self.frequency}, {self.features} and {self.noise}."
            )
        # Every motif, and as many pairs that never meet, has an output of its own; as many outputs hold nothing.
        if self.n_features < 2 * (len(MOTIFS) + 1) * self.circuits:
            raise ValueError(
                f"features x d_model must be at least {2 * (len(MOTIFS) + 1) * self.circuits} for {self.circuits}"
                f" circuits of each motif, got {self.n_features}."
            )

    @property
    def n_features(self) -> int:
        """Input features, and output features."""
        return round(self.features * self.d_model)


@dataclass(frozen=True)
class PlantedCircuit:
    """One circuit: the motif, its output feature, and its groups of input features.

    Groups are the two factors of a product (and, suppression), the gate and the two poles (flip), the two sides (xor,
    contrast), or the one of a square. `meets` is False for a decoy: a product whose factors are never active together.
    """

    motif: Motif
    output: int
    groups: tuple[tuple[int, ...], ...]
    meets: bool = True


@dataclass(frozen=True, eq=False, repr=False)
class PlantedLayer(Brief):
    """A layer with known circuits, and what its features do on random tokens.

    Attributes:
        interactions: The layer between the two true dictionaries.
        circuits: What was planted; an output feature that is not named here holds a random form of the same norm.
        activity: Layer inputs, true activations of the input features, activations of the output features.
    """

    interactions: FeatureInteractions
    circuits: tuple[PlantedCircuit, ...]
    activity: FeatureActivity


@torch.no_grad()
def plant(settings: PlantedSettings) -> PlantedLayer:
    """Compile circuits into a layer.

    Input feature a is read and written along a random unit row d_a, output feature o along a random unit row d_o, so
    that both interfere with others by about 1 / sqrt(d_model). A circuit is one neuron per term, such as
    gate = sum_A d_a, in = sum_B d_b, out = d_o for a product, scaled to a form of norm 1; encoders differ in scale.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    n, d = settings.n_features, settings.d_model
    read, write = (torch.nn.functional.normalize(_randn(generator, n, d), dim=1) for _ in range(2))
    circuits = _draw_circuits(settings, generator)
    named = {circuit.output for circuit in circuits}
    neurons = [_neuron(circuit, read, write) for circuit in circuits]
    for output in range(n):
        if output not in named:
            own = write[output, :, None] * _randn(generator, _RANDOM_NEURONS)
            neurons.append(_random_neurons(d, own, 1.0, generator))
    noise = _randn(generator, d, settings.noise_neurons)
    neurons.append(_random_neurons(d, noise, settings.noise, generator))
    W_gate, W_in, W_out = (torch.cat(part, 1) for part in zip(*neurons, strict=True))
    tensor = InteractionTensor(W_gate, W_in, W_out.T.contiguous())
    z = _draw_activations(settings, circuits, generator)
    x = z @ read
    scale = _randn(generator, n).mul(0.5).exp()
    pre = tensor(x) @ (write.T * scale)
    bias = -pre.quantile(1 - 2 * settings.frequency, dim=0)
    relu = Activation("relu")
    sae_in = Dictionary(read.T.contiguous(), torch.zeros(n), read, torch.zeros(d), relu, _HOOKS[0], "planted in")
    W_enc = (write.T * scale).contiguous()
    sae_out = Dictionary(W_enc, bias, write / scale[:, None], torch.zeros(d), relu, _HOOKS[1], "planted out")
    mlp = BilinearMLP(tensor, 0, *_HOOKS, None, 0.0)
    activity = FeatureActivity(x, _sparse(z), _sparse((pre + bias).relu()))
    return PlantedLayer(FeatureInteractions(mlp, sae_in, sae_out), circuits, activity)


def _draw_circuits(settings: PlantedSettings, generator: torch.Generator) -> tuple[PlantedCircuit, ...]:
    """Circuits of every motif and pairs that never meet, on outputs and input features drawn at random."""
    n = settings.n_features
    outputs = iter(torch.randperm(n, generator=generator).tolist())
    circuits = []
    for motif, meets in (*((motif, True) for motif in MOTIFS), ("and", False)):
        for _ in range(settings.circuits):
            sizes = torch.randint(1, settings.group + 1, (_N_GROUPS[motif],), generator=generator).tolist()
            members = iter(torch.randperm(n, generator=generator).tolist())
            groups = tuple(tuple(next(members) for _ in range(size)) for size in sizes)
            circuits.append(PlantedCircuit(motif, next(outputs), groups, meets))
    return tuple(circuits)


def _neuron(circuit: PlantedCircuit, read: Tensor, write: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The neuron of a circuit as columns of W_gate, W_in and of W_out transposed: a form of norm 1 on its output."""
    first, *others = [torch.nn.functional.normalize(read[list(group)].sum(0), dim=0) for group in circuit.groups]
    gate, value = {
        "and": lambda: (first, others[0]),
        "suppression": lambda: (-first, others[0]),
        "flip": lambda: (first, others[0] - others[1]),
        "xor": lambda: (first - others[0], first - others[0]),
        "contrast": lambda: (first + others[0], first - others[0]),
        "square": lambda: (first, first),
    }[circuit.motif]()
    norm = ((gate @ gate) * (value @ value) + (gate @ value) ** 2).div(2).sqrt()
    return (gate / norm)[:, None], value[:, None], write[circuit.output][:, None]


def _random_neurons(d_in: int, out: Tensor, size: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random neurons as columns, which together give a random form of norm about `size`.

    A form sum_m c_m sym(g_m i_m^T) of nearly orthogonal unit vectors has squared norm sum_m c_m^2 / 2.

    Args:
        d_in: Width read.
        out: Column m is where neuron m writes, with components of mean square 1 along the outputs meant.
        size: Norm of the form.
        generator: Where randomness comes from.
    """
    n = out.shape[1]
    gate, value = (torch.nn.functional.normalize(_randn(generator, d_in, n), dim=0) for _ in range(2))
    return gate, value, out * size * (2 / n) ** 0.5


def _draw_activations(
    settings: PlantedSettings, circuits: tuple[PlantedCircuit, ...], generator: torch.Generator
) -> Float[Tensor, "token feature"]:
    """Sparse activations; the groups of a circuit are active together often, those of a decoy never."""
    n, tokens = settings.n_features, settings.tokens
    active = torch.rand(tokens, n, generator=generator) < settings.frequency
    for circuit in circuits:
        together = torch.rand(tokens, generator=generator) < settings.frequency
        for group in circuit.groups if circuit.meets else ():
            chosen = torch.tensor(group)[torch.randint(len(group), (tokens,), generator=generator)]
            # Not always all of them, so that each side of a flip, xor or contrast also comes without the other.
            here = together & (torch.rand(tokens, generator=generator) < _TOGETHER)
            active[here.nonzero().squeeze(1), chosen[here]] = True
    for circuit in circuits:
        if not circuit.meets:
            first, second = (list(group) for group in circuit.groups)
            clash = active[:, first].any(1, keepdim=True)
            active[:, second] &= ~clash
    size = 0.5 + torch.rand(tokens, n, generator=generator)
    return active * size


def _sparse(z: Float[Tensor, "token feature"]) -> ActiveTokens:
    """Dense activations as sparse columns."""
    feature, token = z.T.nonzero(as_tuple=True)
    counts = feature.bincount(minlength=z.shape[1])
    return ActiveTokens(token, z[token, feature], torch.cat([counts.new_zeros(1), counts.cumsum(0)]))


def _randn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)
