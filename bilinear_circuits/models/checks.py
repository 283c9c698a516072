"""What is checked of a model's tensors before and after it is loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn


def refuse_tensors(folder: Path, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Refuse tensors that transformers would fill with random numbers, and those that it would leave out."""
    for key in unexpected:
        for prefix in ("_orig_mod.", "module."):
            if key.startswith(prefix):
                reason = {"_orig_mod.": "torch.compile", "module.": "a parallel wrapper"}[prefix]
                raise ValueError(
                    f"model must hold its tensors by their own names, got {folder} with {key}: it was saved from inside"
                    f" {reason}. Take the prefix {prefix} off the names of the tensors."
                )
    if missing:
        raise ValueError(
            f"model must hold all of its tensors, but {folder} lacks {len(missing)}: {some(missing)}. Save or download"
            " it again."
        )
    if unexpected:
        hint = " config.json says that the model has no such bias." if unexpected[0].endswith(".bias") else ""
        raise ValueError(
            f"model must hold only tensors that its config.json has a place for, but {folder} holds {len(unexpected)}"
            f" more, which would be left out: {some(unexpected)}.{hint} Correct config.json, or remove them."
        )


def some(names: Sequence[str]) -> str:
    """Name the first three, and how many others there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def finite(model: nn.Module, folder: Path) -> Any:
    """Pass a model through whose weights are all finite."""
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and (n_bad := int((~weight.isfinite()).sum())):
            raise ValueError(
                f"{name} must be finite, got {n_bad} infinite or undefined entries in {folder}. Training may have"
                " diverged, or the file is damaged."
            )
    return model
