"""How a model of another architecture is refused: by what was found in it, and the other way where there is one."""

from typing import Any

from torch import Tensor

from bilinear_circuits.models.host import host_of


class OtherModelError(ValueError):
    """A model of another architecture."""

    def __init__(self, must: str, got: str) -> None:
        """Say what it must have, and what was found."""
        super().__init__(f"model must have {must} for a graph of a prompt, got {got}.")


def way_out(model: Any) -> str:
    """Name the other way where the model's layers can be bilinear: the first MLP has the three matrices."""
    try:
        found = host_of(model).weights(0)
    except (TypeError, AttributeError):
        return ""
    if not all(isinstance(found[name], Tensor) for name in ("W_gate", "W_in", "W_out")):
        return ""
    return " Single bilinear layers of any host are read by bilinear_circuits.attribute_prompt."
