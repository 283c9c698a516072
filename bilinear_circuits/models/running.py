"""Running a model of any supported kind, and capturing what its MLPs read and write.

Everything is done with torch forward hooks on modules, which every kind of host has, attached for one forward
pass and removed afterwards, also when that pass fails. The input of the MLP module is what `blocks.L.mlp.hook_in`
sees: the activation after the norm and its weight.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bilinear_circuits.models.host import host_of
from bilinear_circuits.utilities.display import Brief


class _StopForwardError(Exception):
    """Ends a forward pass once everything asked for has been captured."""


@dataclass(frozen=True, eq=False, repr=False)
class MLPActivations(Brief):
    """What one MLP read and wrote.

    Attributes:
        x: MLP input, after the norm and its weight.
        y: MLP output, before it is added to the residual stream.
    """

    x: Float[Tensor, "*n d_model"]
    y: Float[Tensor, "*n d_model"]


def model_blocks(model: nn.Module) -> Any:
    """Find the transformer blocks of a model of any kind.

    Raises:
        TypeError: If the model is of none.
    """
    return host_of(model).blocks


def model_device(model: nn.Module) -> torch.device:
    """Find where the parameters of the model are."""
    return host_of(model).device


def vocabulary_size(model: nn.Module) -> int:
    """Count the tokens the model knows."""
    return host_of(model).d_vocab


def context_length(model: nn.Module) -> int:
    """Find the length of the longest row of tokens the model was made for."""
    return host_of(model).n_ctx


def model_width(model: nn.Module) -> int:
    """Find the width of the residual stream, which MLPs read and write."""
    return host_of(model).d_model


def full_precision(tensor: Tensor) -> Tensor:
    """Promote half precision to float32; float32 and float64 stay as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def run_logits(model: nn.Module, tokens: Int[Tensor, "story pos"]) -> Float[Tensor, "story pos d_vocab"]:
    """Compute logits of a model of any kind. Padding on the right needs no mask: attention is causal.

    Raises:
        ValueError: If the model computes in half precision, whose logits are too coarse to measure an intervention by.
    """
    dtype = next(model.parameters()).dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"model must compute in float32 or float64 for its logits to be measured, got {dtype}: call model.float(),"
            " or load it with bilinear_circuits.load_model(path)."
        )
    return host_of(model).logits(tokens)


def embedding(model: nn.Module) -> Float[Tensor, "d_vocab d_model"]:
    """Embedding matrix: what each token writes into the residual stream, but for a factor that all tokens share."""
    return full_precision(host_of(model).embedding.detach())


@torch.no_grad()
def unembedding(model: nn.Module) -> Float[Tensor, "d_model d_vocab"]:
    """Unembedding matrix with the final norm folded in: logits per unit of the normalised residual stream.

    The weight of the norm is read off what the norm does to a random vector, so that norms that add 1 to it or centre
    their input are handled too.

    Raises:
        ValueError: If the final norm is neither an RMSNorm nor a LayerNorm.
    """
    weight = full_precision(host_of(model).unembedding)
    norm = final_norm(model)
    if norm is None:
        return weight.detach()
    if weight.dtype != next(model.parameters()).dtype:
        norm = copy.deepcopy(norm).to(weight.dtype)
    # Large, so that the epsilon of the norm is far below rounding.
    x = 1e3 * torch.randn(2, 1, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    bias = norm(torch.zeros_like(x))
    for centred in (False, True):
        shifted = x - x.mean(-1, keepdim=True) if centred else x
        scale = (norm(x) - bias) / shifted * shifted.square().mean(-1, keepdim=True).sqrt()
        if torch.allclose(scale[0], scale[1], rtol=0.02, atol=1e-3):
            folded = scale[0].T * weight
            return (folded - folded.mean(0) if centred else folded).detach()
    raise ValueError(f"the final norm must be an RMSNorm or a LayerNorm, got {type(norm).__name__}.")


def attention_window(config: Any, layer: int) -> int | None:
    """Read how many tokens a query of a layer sees, itself counted, off a Hugging Face configuration; None for all."""
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    if kinds is not None:
        return window if kinds[layer] == "sliding_attention" else None
    return window if getattr(config, "use_sliding_window", True) else None


def final_norm(model: nn.Module) -> Any:
    """Find the module that normalises the residual stream before the unembedding, if there is one."""
    return host_of(model).final_norm


@torch.no_grad()
def final_norm_scale(model: nn.Module, residual: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n"]:
    """Measure the divisor of the final norm for rows of the residual stream, epsilon included; 1 without a norm.

    Read off what the module does, like `unembedding`, so that RMSNorm and LayerNorm of any make are handled.
    """
    norm = final_norm(model)
    if norm is None:
        return torch.ones(residual.shape[:-1], dtype=torch.double, device=residual.device)
    rows = residual.reshape(-1, 1, residual.shape[-1])
    bias = norm(torch.zeros_like(rows[:1])).double()
    written = norm(rows).double() - bias
    centred = torch.allclose(norm(rows + rows.abs().mean()).double() - bias, written, rtol=1e-4, atol=1e-5)
    spread = (rows - rows.mean(-1, keepdim=True) if centred else rows).double().square().mean(-1).sqrt()
    # A thousand times the residual leaves the epsilon far below rounding: what is divided by then is its own spread.
    bare = norm(1e3 * rows).double() - bias
    return (spread * bare.norm(dim=-1) / written.norm(dim=-1)).reshape(residual.shape[:-1])


@torch.no_grad()
def capture_mlp(model: nn.Module, tokens: Int[Tensor, "story pos"], layers: Sequence[int]) -> dict[int, MLPActivations]:
    """Capture MLP input and output of some layers, in float32 at least, in a pass that ends after the last of them."""
    blocks = model_blocks(model)
    captured: dict[int, MLPActivations] = {}

    def keep(layer: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            captured[layer] = MLPActivations(full_precision(args[0].detach()), full_precision(output.detach()))
            if len(captured) == len(set(layers)):
                raise _StopForwardError

        return hook

    with hooked([(blocks[layer].mlp, keep(layer)) for layer in set(layers)]):
        try:
            host_of(model).logits(tokens)
        except _StopForwardError:
            pass
    return captured


@contextmanager
def hooked(hooks: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Attach forward hooks and take them off again, whatever happens in between."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
