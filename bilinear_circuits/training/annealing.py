"""A gated model made bilinear while it is trained: its gates become linear little by little.

act(beta g) / beta is the gate itself at beta 1, and g / 2 at beta 0, for SiLU and GELU, whose slope at zero is 1/2. In
the end the half goes into W_out, and hidden_act is "linear".
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.activations import ACT2FN

from bilinear_circuits.models.gated_mlp import GatedMLP
from bilinear_circuits.models.gates import GATES
from bilinear_circuits.models.running import model_blocks

SLOPE = 0.5
SMOOTH = ("SiLU", "GELU", "tanh-GELU")
"""Gates with a slope of 1/2 at zero."""


class AnnealedGate(nn.Module):
    """act(beta g) / beta.

    Attributes:
        beta: 1 for the function itself, 0 for g / 2.
    """

    def __init__(self, act: Callable[[Tensor], Tensor], beta: float = 1.0) -> None:
        """Take a function with a slope of 1/2 at zero."""
        super().__init__()
        self._act, self.beta = act, beta

    def forward(self, g: Tensor) -> Tensor:
        """Apply it."""
        return SLOPE * g if self.beta == 0 else self._act(self.beta * g) / self.beta


class Annealing(TrainerCallback):
    """Lowers beta of all gates of a model from 1 to 0 over a share of the steps, and holds it there."""

    def __init__(self, gates: list[AnnealedGate], share: float) -> None:
        """Take the gates and the share of the steps after which they are linear; 0 makes them so at once."""
        self._gates, self._share = gates, share

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse trainings too short, and set beta, also of a training that has no step left.

        Raises:
            ValueError: If there are fewer than two steps: gates would not be linear in any.
        """
        if state.max_steps < 2:
            raise ValueError(f"optim.epochs must make two steps or more, got {state.max_steps}.")
        self._set(state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set beta for a step."""
        self._set(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the gates linear."""
        for gate in self._gates:
            gate.beta = 0.0

    def _set(self, state: TrainerState) -> None:
        # In the last step at least gates are linear.
        last = min(self._share * state.max_steps, state.max_steps - 1)
        for gate in self._gates:
            gate.beta = max(0.0, 1.0 - state.global_step / last) if last > 0 else 0.0


def annealed_gates(model: Any) -> list[AnnealedGate]:
    """Put gates that can be annealed in the place of a model's own, at beta 1, where they compute the same.

    Raises:
        ValueError: If a gate is none of SiLU, GELU and tanh-GELU.
    """
    gates = []
    for layer, block in enumerate(model_blocks(model)):
        found = GatedMLP.from_model(model, layer).gate
        if found not in SMOOTH:
            raise ValueError(
                f"layer {layer} must have one of the gates {', '.join(SMOOTH)} to be made linear little by little, got"
                f" {found}."
            )
        block.mlp.act_fn = AnnealedGate(GATES[found])
        gates.append(block.mlp.act_fn)
    return gates


@torch.no_grad()
def make_linear(model: Any) -> None:
    """Make a model whose gates have been annealed a stock one with hidden_act="linear": W_out takes the slope of 1/2.

    Raises:
        ValueError: If a gate has not reached the end.
    """
    for layer, block in enumerate(model_blocks(model)):
        gate = block.mlp.act_fn
        if not isinstance(gate, AnnealedGate) or gate.beta != 0:
            raise ValueError(f"layer {layer} must have a gate that was annealed to the end, got {gate!r:.60}.")
        block.mlp.down_proj.weight.mul_(SLOPE)
        block.mlp.act_fn = ACT2FN["linear"]
    for name in ("hidden_act", "hidden_activation"):  # Gemma reads the second
        if hasattr(model.config, name):
            setattr(model.config, name, "linear")
