"""Edits of weights: the low-rank form of an output feature, multiplied by a factor, as extra neurons.

1. The rank-r part of a feature's form, written along its decoder row d, is x -> (x^T Q_r x) d. To multiply it by a
   factor is to add (factor - 1) (x^T Q_r x) d to what the layer writes, which is bilinear itself (Pearce et al. 2024,
   arXiv 2410.08417, section 3).
2. With eigenvalues of either sign paired, lambda_+ (v_+ . x)^2 + lambda_- (v_- . x)^2 = (a . x)(b . x) is one neuron,
   so the sum takes as many neurons as the sign that has more eigenvalues: no bilinear layer does it with fewer.
3. All layers of the model are padded to one width with neurons of zeros, so that it stays a stock Llama.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bilinear_circuits.algebra.spectra import Spectrum
from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.models.bilinear_mlp import BilinearMLP
from bilinear_circuits.models.host import host_of
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.feature import OfFeature

_PROJECTIONS = {"gate_proj": "W_gate", "up_proj": "W_in", "down_proj": "W_out"}


@dataclass(frozen=True, eq=False, repr=False)
class FormEdit(OfFeature, Brief):
    """The low-rank form of one output feature, to be multiplied by a factor.

    Attributes:
        layer: Layer of the MLP.
        feature: Output feature.
        factor: 0 removes the form, -1 inverts it, any other number scales it.
        spectrum: Its leading eigenpairs on the MLP input.
        row: Decoder row of the feature, along which the form is written.
    """

    layer: int
    feature: int
    factor: float
    spectrum: Spectrum
    row: Float[Tensor, " d_out"]

    def __post_init__(self) -> None:
        if isinstance(self.factor, bool) or not isinstance(self.factor, (int, float)) or not math.isfinite(self.factor):
            raise ValueError(f"factor must be a finite number, got {self.factor!r}.")
        if self.spectrum.eigenvalues.ndim != 1:
            raise ValueError(
                f"spectrum must be that of one form, got a batch of shape {tuple(self.spectrum.eigenvalues.shape)}."
            )

    @classmethod
    def of(
        cls, interactions: FeatureInteractions, feature: int, rank: int | None = None, factor: float = 0.0
    ) -> "FormEdit":
        """An edit of the rank-r part of a feature's form; of the whole form by default.

        Raises:
            ValueError: If there is no such feature, or the rank is not between 0, which changes nothing, and d_in.
        """
        d_in = interactions.mlp.tensor.d_in
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank <= d_in):
            raise ValueError(f"rank must be a whole number between 0 and {d_in}, got {rank!r}.")
        spectrum = interactions.spectrum(feature, rank)
        return cls(interactions.mlp.layer, feature, factor, spectrum, interactions.sae_out.W_dec[feature])

    @property
    def rank(self) -> int:
        """Number of eigenpairs."""
        return len(self.spectrum)

    def truncate(self, rank: int) -> "FormEdit":
        """Keep the leading eigenpairs of an edit."""
        return replace(self, spectrum=self.spectrum.truncate(rank))

    def __call__(self, x: Float[Tensor, "*n d_in"], y: Float[Tensor, "*n d_out"]) -> Float[Tensor, "*n d_out"]:
        """What is added to the MLP output y: (factor - 1) (x^T Q_r x) d. An `Edit` of `runs`."""
        form = self.spectrum(x.to(self.row.dtype))
        return ((self.factor - 1) * form.unsqueeze(-1) * self.row).to(y.dtype)

    def neurons(self) -> InteractionTensor:
        """Write the edit as neurons: one per pair of eigenvalues of opposite sign, one per eigenvalue left over.

        The three vectors of each neuron have equal norms, which no dtype rounds to zero.
        """
        values, vectors = self.spectrum.eigenvalues, self.spectrum.eigenvectors
        plus, minus = (vectors[:, chosen] * values[chosen].abs().sqrt() for chosen in (values > 0, values < 0))
        width = max(plus.shape[1], minus.shape[1])
        plus, minus = (nn.functional.pad(columns, (0, width - columns.shape[1])) for columns in (plus, minus))
        row = (self.factor - 1) * self.row
        # Eigenvectors are orthogonal, so both read vectors have the same norm.
        size = (plus + minus).norm(dim=0)
        common = (size.square() * row.norm()).pow(1 / 3)
        W_out = torch.outer(common, nn.functional.normalize(row, dim=0))
        return InteractionTensor((plus + minus) * (common / size), (plus - minus) * (common / size), W_out)


def edited_tensor(tensor: InteractionTensor, edits: Sequence[FormEdit]) -> InteractionTensor:
    """The layer with its edits: B' = B + sum_f (factor_f - 1) d_f (x) Q_f, exact and bilinear, with extra neurons.

    Biases of the layer stay as they are; the extra neurons have none.

    Raises:
        ValueError: If the edits are of several layers, or do not fit the layer.
    """
    if len(layers := sorted({edit.layer for edit in edits})) > 1:
        raise ValueError(f"edits must be of one layer, got layers {', '.join(map(str, layers))}.")
    for edit in edits:
        if (edit.spectrum.dim, len(edit.row)) != (tensor.d_in, tensor.d_out):
            raise ValueError(
                f"edits must fit the layer, d_in={tensor.d_in} and d_out={tensor.d_out}, got {edit.name} with"
                f" d_in={edit.spectrum.dim} and d_out={len(edit.row)}."
            )
    parts = [tensor, *(edit.neurons().to(tensor.W_gate.dtype).to(tensor.W_gate.device) for edit in edits)]
    n_extra = sum(part.d_mlp for part in parts[1:])
    b_gate, b_in = (None if b is None else nn.functional.pad(b, (0, n_extra)) for b in (tensor.b_gate, tensor.b_in))
    return InteractionTensor(
        torch.cat([part.W_gate for part in parts], 1),
        torch.cat([part.W_in for part in parts], 1),
        torch.cat([part.W_out for part in parts]),
        b_gate,
        b_in,
        tensor.b_out,
    )


@torch.no_grad()
def edit_model(model: nn.Module, edits: Sequence[FormEdit]) -> Any:
    """A stock Llama with the edits in its weights; the model given stays as it is.

    Every layer gets as many extra neurons as the layer that needs most, of zeros where it needs fewer, and the config
    says so: `save_pretrained` writes a folder that plain transformers load.

    Args:
        model: A Hugging Face Llama with hidden_act="linear", or a TransformerBridge over one.
        edits: Edits of any of its layers.

    Raises:
        ValueError: If there is no edit, one does not fit, or a layer has no gate, up and down projection to pad.
        NotBilinearError: If an edited layer is not bilinear.
        TypeError: If the model is of another kind.
    """
    if not edits:
        raise ValueError("edits must hold at least one, got none.")
    edited = plain_llama(model)
    blocks = edited.model.layers
    for layer, block in enumerate(blocks):
        if not all(isinstance(getattr(block.mlp, name, None), nn.Linear) for name in _PROJECTIONS):
            raise ValueError(
                f"layers must all have linear gate, up and down projections, got {type(block.mlp).__name__} in layer"
                f" {layer}. Merge adapters and undo quantisation first."
            )
    tensors = {
        layer: edited_tensor(BilinearMLP.from_model(edited, layer).tensor, [e for e in edits if e.layer == layer])
        for layer in sorted({edit.layer for edit in edits})
    }
    width = max(tensor.d_mlp for tensor in tensors.values())
    for layer, block in enumerate(blocks):
        _widen(block.mlp, tensors.get(layer), width)
    edited.config.intermediate_size = width
    return edited


@torch.no_grad()
def plain_llama(model: nn.Module) -> Any:
    """A copy of the model as plain transformers have it, without hooks of TransformerLens.

    Raises:
        TypeError: If it is neither a Hugging Face Llama nor a TransformerBridge over one.
        ValueError: If a TransformerBridge has changed its weights (compatibility mode).
    """
    wrapped = host_of(model).plain()
    if wrapped is model:
        return copy.deepcopy(model)
    if wrapped is None:
        raise TypeError(
            "model must be a Hugging Face Llama or a TransformerBridge over one, to be saved as one again,"
            f" got {type(model).__name__}."
        )
    if getattr(model, "compatibility_mode", False):
        raise ValueError("model must not be in compatibility mode, which changes weights. Load it anew for an edit.")
    config = copy.deepcopy(wrapped.config)
    config.output_attentions = False  # the bridge asks for patterns; a model on disk should not
    with torch.random.fork_rng():
        plain = type(wrapped)(config)
    state = {name.replace("._original_component", ""): value for name, value in wrapped.state_dict().items()}
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    plain.generation_config = copy.deepcopy(wrapped.generation_config)
    first = next(wrapped.parameters())
    return plain.to(first.device, first.dtype).eval()


def _widen(mlp: Any, tensor: InteractionTensor | None, width: int) -> None:
    """Give an MLP the extra neurons of its edited tensor, if it has one, and neurons of zeros up to a width."""
    d_mlp = mlp.down_proj.in_features
    for name, matrix in _PROJECTIONS.items():
        projection = getattr(mlp, name)
        old, neurons = projection.weight, 1 if name == "down_proj" else 0
        parts = (
            [old] if tensor is None else [old, getattr(tensor, matrix).T.narrow(neurons, d_mlp, tensor.d_mlp - d_mlp)]
        )
        n_zeros = width - sum(part.shape[neurons] for part in parts)
        padding = (0, n_zeros) if neurons else (0, 0, 0, n_zeros)
        weight = nn.functional.pad(torch.cat(parts, neurons), padding)
        projection.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
        if projection.bias is not None and name != "down_proj":
            bias = nn.functional.pad(projection.bias, (0, width - d_mlp))
            projection.bias = nn.Parameter(bias, requires_grad=projection.bias.requires_grad)
    mlp.gate_proj.out_features = mlp.up_proj.out_features = mlp.down_proj.in_features = width
    mlp.intermediate_size = width
