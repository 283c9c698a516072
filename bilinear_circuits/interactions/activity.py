"""What a model's MLPs and their dictionaries do on a corpus: the data side of every analysis."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bilinear_circuits.data.samples import FlatTokens, Rows, Samples
from bilinear_circuits.data.stories import StoryTokens
from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.interactions.active import ActiveTokens, active_tokens
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.models.running import capture_mlp, model_device
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.kinds import check_finite, check_kind
from bilinear_circuits.utilities.progress import Progress, silent

Side = Literal["in", "out"]
"""Of an MLP: its input or its output."""

_STORIES_PER_BATCH = 32


@dataclass(frozen=True, eq=False, repr=False)
class FeatureActivity(Brief):
    """What the features on either side of an MLP do on some inputs.

    Attributes:
        x: MLP inputs, one row a sample.
        inputs: Activations of the input dictionary.
        outputs: Activations of the output dictionary.
    """

    x: Float[Tensor, "token d_in"]
    inputs: ActiveTokens
    outputs: ActiveTokens

    @cached_property
    def mean_inputs(self) -> Float[Tensor, " d_sae_in"]:
        """Mean activation of every input feature over all samples."""
        return self.inputs.sum_over_tokens(torch.full((len(self.x),), 1 / max(1, len(self.x)), device=self.x.device))

    def mean_inputs_at(self, token: Int[Tensor, " n"]) -> Float[Tensor, " d_sae_in"]:
        """Mean activation of every input feature over some samples."""
        chosen = torch.zeros(len(self.x), device=self.x.device)
        chosen[token] = 1 / max(1, len(token))
        return self.inputs.sum_over_tokens(chosen)

    @cached_property
    def second_moments(self) -> Float[Tensor, "d_sae_in d_sae_in"]:
        """E[z_a z_b] of the input features over all samples."""
        return self.inputs.second_moments(len(self.x))


@dataclass(frozen=True, eq=False, repr=False)
class LayerActivity(FeatureActivity):
    """One layer between its dictionaries, and what they do on samples: tokens of stories, or any other inputs.

    Attributes:
        interactions: The layer between its dictionaries.
        samples: What the rows of x are.
        x: MLP inputs.
        inputs: Activations of the input dictionary.
        outputs: Activations of the output dictionary, on what the model's own MLP wrote.
    """

    interactions: FeatureInteractions
    samples: Samples

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        interactions: FeatureInteractions,
        x: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"] | None = None,
        samples: Samples | None = None,
    ) -> "LayerActivity":
        """Encode both sides of a layer on given inputs.

        Args:
            interactions: The layer between its dictionaries.
            x: MLP inputs.
            y: What the MLP writes for them; by default computed from its weights.
            samples: What the rows are; by default inputs of which nothing is known.

        Raises:
            TypeError: If x or y is no tensor.
            ValueError: If x, y and samples are not of one length, or x or y is not rows of finite numbers, as wide as
                its side of the MLP.
        """
        check_kind("interactions", interactions, FeatureInteractions, "It is a layer between two dictionaries.")
        mlp, tensor = interactions.mlp, interactions.mlp.tensor
        for name, rows, width in (("x", x, tensor.d_in), ("y", y, tensor.d_out)):
            if rows is not None:
                _check_rows(name, rows, width)
        samples = Rows(len(x)) if samples is None else samples
        if not len(x) == len(x if y is None else y) == len(samples):
            lengths = f"{len(x)} of x, {'none' if y is None else len(y)} of y, {len(samples)} samples"
            raise ValueError(f"x, y and samples must have one row for each input, got {lengths}.")
        written = x if y is None else y
        through = (lambda chunk: mlp(chunk.to(tensor.W_gate)).to(chunk)) if y is None else None
        inputs, outputs = active_tokens(interactions.sae_in, x), active_tokens(interactions.sae_out, written, through)
        return cls(x, inputs, outputs, interactions, samples)

    def of_side(self, side: Side) -> tuple[Dictionary, ActiveTokens]:
        """The dictionary on one side of the MLP, and its activations."""
        if side == "in":
            return self.interactions.sae_in, self.inputs
        return self.interactions.sae_out, self.outputs

    @property
    def story(self) -> Int[Tensor, " token"]:
        """Story of each token, or what else its sample belongs to."""
        return self.samples.group

    @property
    def token_ids(self) -> Int[Tensor, " token"]:
        """Vocabulary id of each token.

        Raises:
            ValueError: If the samples are no tokens.
        """
        if not isinstance(self.samples, FlatTokens):
            raise ValueError(f"activity must be of tokens of stories to have token ids, got {self.samples!r}.")
        return self.samples.ids.to(self.x.device)


def _check_rows(name: str, rows: Tensor, width: int) -> None:
    """Refuse what is not rows of finite numbers of one width."""
    check_kind(name, rows, Tensor, "torch.as_tensor makes one of numbers or of an array.")
    if rows.ndim != 2 or rows.shape[1] != width or len(rows) == 0:
        raise ValueError(f"{name} must be rows of {width} entries, one or more, got shape {tuple(rows.shape)}.")
    check_finite(name, rows)


@torch.no_grad()
def collect_activity(
    model: nn.Module, interactions: Sequence[FeatureInteractions], tokens: StoryTokens, progress: Progress = silent
) -> tuple[LayerActivity, ...]:
    """Run a model over stories once and encode both sides of some of its MLPs.

    Memory: two (token, d_model) arrays per layer, and the sparse activations.

    Raises:
        ValueError: If there are no interactions, two of one layer, or an MLP is read elsewhere than at its input.
    """
    layers = [one.mlp.layer for one in interactions]
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"interactions must be of one layer or more, each once, got layers {layers}.")
    for one in interactions:
        if one.mlp.hook_in != f"blocks.{one.mlp.layer}.mlp.hook_in":
            raise ValueError(
                f"interactions must read the MLP at blocks.{one.mlp.layer}.mlp.hook_in, where the model is captured,"
                f" got {one.mlp.hook_in}."
            )
    device = model_device(model)
    samples = FlatTokens.of(tokens)
    flat = torch.zeros_like(tokens.ids)
    flat[samples.group, samples.position] = torch.arange(len(samples))
    kept = {
        one.mlp.layer: tuple(one.mlp.tensor.W_gate.new_empty(len(samples), width) for width in _widths(one))
        for one in interactions
    }
    # Stories of like length together, so that little is spent on padding.
    for rows in progress(tokens.mask.sum(1).argsort().split(_STORIES_PER_BATCH), "run the model"):
        mask = tokens.mask[rows]
        width = int(mask.sum(1).max()) + 1  # [BOS] comes first
        mask, target = mask[:, :width], flat[rows][:, :width][mask[:, :width]]
        for layer, captured in capture_mlp(model, tokens.ids[rows, :width].to(device), layers).items():
            for store, values in zip(kept[layer], (captured.x, captured.y), strict=True):
                store[target] = values[mask].to(store)
    activity = []
    for one in progress(interactions, "encode features"):
        x, y = kept.pop(one.mlp.layer)
        activity.append(LayerActivity.of(one, x, y, samples))
    return tuple(activity)


def _widths(interactions: FeatureInteractions) -> tuple[int, int]:
    return interactions.mlp.tensor.d_in, interactions.mlp.tensor.d_out
