"""Whether an edited model holds the original's weights and the edits asked for, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.models.bilinear_mlp import BilinearMLP
from bilinear_circuits.surgery.edits import FormEdit, plain_llama

_READS = ("gate_proj", "up_proj")


@dataclass(frozen=True)
class WeightCheck:
    """What the weights of an edited model are.

    Attributes:
        d_mlp_before: Neurons of every layer of the original.
        d_mlp: Neurons of every layer of the edited model.
        probe_error: Largest error of the proof that an edited layer is bilinear (`BilinearMLP.probe_error`).
        form_error: Largest relative error, in Frobenius norm, of the change of an edited layer's interaction tensor
            against the sum of the parts asked for.
    """

    d_mlp_before: int
    d_mlp: int
    probe_error: float
    form_error: float


@torch.no_grad()
def check_weights(model: nn.Module, edited: Any, edits: Sequence[FormEdit]) -> WeightCheck:
    """Prove what an edited model holds.

    Raises:
        ValueError: If a weight of the original differs in the edited model, or another layer than those edited has
            extra neurons that are not zero.
        NotBilinearError: If an edited layer is not bilinear.
    """
    original = plain_llama(model).state_dict()
    d_mlp = edited.config.intermediate_size
    before = original["model.layers.0.mlp.gate_proj.weight"].shape[0]
    layers = {edit.layer for edit in edits}
    for name, weight in edited.state_dict().items():
        kept, extra = _parts(name, weight, before)
        edited_layer = any(name.startswith(f"model.layers.{layer}.mlp.") for layer in layers)
        if not torch.equal(kept, original[name].to(kept.device)) or (extra.any() and not edited_layer):
            raise ValueError(f"edited must hold the weights of the original besides its edits, but {name} differs.")
    proved = {layer: BilinearMLP.from_model(edited, layer) for layer in sorted(layers)}
    errors = [_form_error(one.tensor, before, [e for e in edits if e.layer == layer]) for layer, one in proved.items()]
    return WeightCheck(before, d_mlp, max(one.probe_error for one in proved.values()), max(errors))


def _parts(name: str, weight: Tensor, d_mlp: int) -> tuple[Tensor, Tensor]:
    """A parameter split into what the original has and what belongs to extra neurons."""
    if ".mlp.down_proj.weight" in name:
        return weight[:, :d_mlp], weight[:, d_mlp:]
    if any(f".mlp.{projection}." in name for projection in _READS):
        return weight[:d_mlp], weight[d_mlp:]
    return weight, weight[:0]


def _form_error(tensor: InteractionTensor, d_mlp: int, edits: Sequence[FormEdit]) -> float:
    """Relative error of the extra neurons, as one tensor, against the eigenpairs of the edits written along their rows.

    Both are formed densely, in float64, in orthonormal bases of what they read and write.
    """
    reads = torch.cat([edit.spectrum.eigenvectors for edit in edits], 1)
    scaled = [(edit.factor - 1) * torch.outer(edit.spectrum.eigenvalues, edit.row) for edit in edits]
    want = InteractionTensor(reads, reads, torch.cat(scaled)).to(torch.float64)
    got = InteractionTensor(tensor.W_gate[:, d_mlp:], tensor.W_in[:, d_mlp:], tensor.W_out[d_mlp:]).to(torch.float64)
    read_basis = torch.linalg.qr(torch.cat([want.W_gate, got.W_gate, got.W_in], 1)).Q.T
    write_basis = torch.linalg.qr(torch.cat([want.W_out, got.W_out]).T).Q
    dense = [one.read_from(read_basis).write_to(write_basis).to_dense() for one in (got, want)]
    return ((dense[0] - dense[1]).norm() / dense[1].norm()).item()
