"""Layers fitted to what another layer writes: affine maps by least squares, bilinear layers by gradient descent."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.kinds import check_whole
from bilinear_circuits.utilities.progress import Progress, silent

_RIDGE = 1e-9  # of the mean square of an input: what inputs have in common is solved to that
_TINY = 1e-300


@dataclass(frozen=True, eq=False, repr=False)
class AffineMap(Brief):
    """A map x -> x weight + bias.

    Attributes:
        weight: Its matrix.
        bias: Its constant.
    """

    weight: Float[Tensor, "d_in d_out"]
    bias: Float[Tensor, " d_out"]

    def __call__(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_out"]:
        """Apply the map."""
        return x @ self.weight.to(x) + self.bias.to(x)


@torch.no_grad()
def fit_affine(batches: Iterable[tuple[Float[Tensor, "_ d_in"], Float[Tensor, "_ d_out"]]]) -> AffineMap:
    """Fit the affine map from inputs to outputs of least mean square error, in float64.

    Cost: d_in (d_in + d_out) for each input, and d_in^3; memory d_in (d_in + d_out).

    Args:
        batches: Inputs and outputs, some at a time.

    Raises:
        ValueError: If there is no input.
    """
    sums: list[Tensor] = []
    n = 0
    for x, y in batches:
        x, y = x.double(), y.double()
        new = [x.sum(0), y.sum(0), x.T @ x, x.T @ y]
        sums = [old + one for old, one in zip(sums, new, strict=True)] if sums else new
        n += len(x)
    if n == 0:
        raise ValueError("batches must hold one input or more, got none.")
    mean_x, mean_y = sums[0] / n, sums[1] / n
    gram = sums[2] / n - torch.outer(mean_x, mean_x)
    crossed = sums[3] / n - torch.outer(mean_x, mean_y)
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean() + _TINY)
    weight = torch.linalg.solve(gram, crossed)
    return AffineMap(weight, mean_y - mean_x @ weight)


@dataclass(frozen=True)
class TranscoderSettings:
    """How a bilinear layer is fitted by gradient descent.

    Attributes:
        steps: Steps of Adam.
        batch: Inputs of each.
        learning_rate: At the start; it falls to zero along a half cosine.
        seed: Seed of the draws of inputs.

    Raises:
        ValueError: If one of them is out of range.
    """

    steps: int = 2000
    batch: int = 1024
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("steps", self.steps)
        check_whole("batch", self.batch)
        check_whole("seed", self.seed, least=0)
        if isinstance(self.learning_rate, bool) or not isinstance(self.learning_rate, int | float):
            raise TypeError(f"learning_rate must be a number, got {self.learning_rate!r:.40}.")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"learning_rate must be between 0 and 1, got {self.learning_rate!r}.")


def fit_transcoder(
    start: InteractionTensor,
    x: Float[Tensor, "n d_in"],
    target: Callable[[Tensor], Tensor],
    settings: TranscoderSettings | None = None,
    progress: Progress = silent,
) -> InteractionTensor:
    """Fit all matrices and biases of a bilinear layer to another function, from a layer that is near already.

    Minimises the mean square error by Adam, in the precision of the layer. Cost: 6 d_mlp (2 d_in + d_out) operations
    for each input of each step.

    Args:
        start: Where it begins.
        x: Inputs.
        target: What is fitted: gives the outputs for some inputs.
        settings: How it is fitted.
        progress: Wraps the steps.

    Raises:
        ValueError: If there is no input.
    """
    settings = TranscoderSettings() if settings is None else settings
    if len(x) == 0:
        raise ValueError("x must hold one input or more, got none.")
    parameters = nn.ParameterDict({name: nn.Parameter(value.clone()) for name, value in _with_biases(start).items()})
    optimizer = torch.optim.Adam(parameters.values(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.no_grad():
        scale = target(x[: settings.batch]).double().var(0, correction=0).sum().clamp_min(_TINY)
    with torch.enable_grad():
        for _ in progress(range(settings.steps), "fit the layer"):
            rows = torch.randint(len(x), (settings.batch,), generator=generator).to(x.device)
            inputs = x[rows].to(start.W_gate)
            gate = inputs @ parameters["W_gate"] + parameters["b_gate"]
            other = inputs @ parameters["W_in"] + parameters["b_in"]
            written = (gate * other) @ parameters["W_out"] + parameters["b_out"]
            with torch.no_grad():
                wanted = target(x[rows]).to(written)
            loss = (written - wanted).square().sum(1).mean() / scale.to(written)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return InteractionTensor(**{name: value.detach() for name, value in parameters.items()})


def _with_biases(tensor: InteractionTensor) -> dict[str, Tensor]:
    """All six parameters, biases that are not there as zeros."""
    sizes = {"b_gate": tensor.d_mlp, "b_in": tensor.d_mlp, "b_out": tensor.d_out}
    values = {field.name: getattr(tensor, field.name) for field in fields(tensor)}
    return {name: tensor.W_gate.new_zeros(sizes[name]) if one is None else one for name, one in values.items()}
