"""What a model loses when other layers stand in the place of its MLPs: one at a time, and all together."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bilinear_circuits.algebra.layer_fits import TranscoderSettings
from bilinear_circuits.data.stories import StoryTokens
from bilinear_circuits.models.approximation import CubicMLP
from bilinear_circuits.models.bilinear_mlp import BilinearMLP, NotBilinearError
from bilinear_circuits.models.fitting import HELD_OUT
from bilinear_circuits.models.gated_mlp import GatedMLP
from bilinear_circuits.models.running import capture_mlp, model_blocks, model_device
from bilinear_circuits.runs.metrics import CrossEntropy
from bilinear_circuits.runs.runs import measure
from bilinear_circuits.runs.sites import Sites
from bilinear_circuits.runs.splice import Side, spliced
from bilinear_circuits.utilities.display import Shown, Tabled
from bilinear_circuits.utilities.kinds import check_kind, check_whole
from bilinear_circuits.utilities.progress import Progress, silent

_STORIES_PER_BATCH = 32
FIT_STORIES = 300
"""Stories that layers are fitted on, unless it is said otherwise."""

Fit = Literal["gates", "output", "transcoder"]
"""How much of a bilinear layer is fitted to one with other gates: the functions on gates, W_out too, or everything."""

Replacement = BilinearMLP | CubicMLP
"""A layer fitted to an MLP that is not bilinear."""


@torch.no_grad()
def mlp_inputs(
    model: nn.Module,
    tokens: StoryTokens,
    layers: Sequence[int],
    bos: bool = True,
    progress: Progress = silent,
) -> dict[int, Float[Tensor, "token d_in"]]:
    """Collect what some MLPs read at every token of stories but padding, story by story.

    Memory: a (token, d_in) array for each layer.

    Args:
        model: The model.
        tokens: The stories.
        layers: The layers.
        bos: Whether [BOS] is among the tokens. A layer that stands in the place of an MLP meets it, too; but it is one
            row, the same in every story, and its output is large in many models: shares are better without it.
        progress: Wraps the batches.

    Raises:
        ValueError: If there is no such layer, or no story.
    """
    check_kind("tokens", tokens, StoryTokens, "tokenize_stories(stories, tokenizer, context) makes them.")
    check_kind("layers", layers, Sequence, "Pass a list, such as [2].")
    n_layers = len(model_blocks(model))
    for layer in layers:
        check_whole("layers", layer, 0, n_layers - 1)
    if not len(tokens):
        raise ValueError("tokens must hold a story or more, got none.")
    mask = tokens.mask.clone()
    mask[:, 0] = bos
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for rows in progress(torch.arange(len(mask)).split(_STORIES_PER_BATCH), "inputs of MLPs"):
        width = int(tokens.mask[rows].sum(1).max()) + 1
        captured = capture_mlp(model, tokens.ids[rows, :width].to(model_device(model)), layers)
        for layer in layers:
            found[layer].append(captured[layer].x[mask[rows, :width]])
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def divided(tokens: StoryTokens) -> tuple[StoryTokens, StoryTokens]:
    """Divide stories into those that layers are fitted on and the last tenth, on which they are measured.

    Raises:
        ValueError: If there is but one.
    """
    if len(tokens) < 2:
        raise ValueError(f"tokens must hold two stories or more to fit on and to measure on, got {len(tokens)}.")
    n = max(1, round(HELD_OUT * len(tokens)))
    return tokens[:-n], tokens[-n:]


def fit_inputs(
    model: nn.Module, tokens: StoryTokens, layers: Sequence[int], progress: Progress = silent
) -> dict[int, tuple[Tensor, Tensor]]:
    """Collect inputs of MLPs to fit layers on, with [BOS], and to measure on, without; see `divided`."""
    first, last = divided(tokens)
    fitted = mlp_inputs(model, first, layers, progress=progress)
    held_out = mlp_inputs(model, last, layers, bos=False, progress=progress)
    return {layer: (fitted[layer], held_out[layer]) for layer in layers}


def read_layers(
    model: nn.Module,
    layers: Sequence[int],
    fit: Fit | None,
    tokens: Callable[[], StoryTokens],
    progress: Progress = silent,
) -> dict[int, BilinearMLP]:
    """Read MLPs of a model: as they are where they are bilinear, and by fits where they have other gates.

    Args:
        model: The model.
        layers: The layers.
        fit: How bilinear layers are fitted to others: affine functions on "gates"; their "output" matrix solved again,
            too; or all matrices by gradient descent, a "transcoder". None refuses such layers.
        tokens: Makes the stories on which they are fitted, where there are such layers.
        progress: Wraps the loops.

    Raises:
        NotBilinearError: If a layer has no gate, or another than a linear one and `fit` is None.
        ValueError: See `BilinearMLP.from_model` and `GatedMLP.from_model`; or for another fit.
    """
    if fit not in (None, *get_args(Fit)):
        raise ValueError(f"approximate must be one of {', '.join(get_args(Fit))}, got {fit!r}.")
    found: dict[int, BilinearMLP] = {}
    others: dict[int, GatedMLP] = {}
    for layer in layers:
        try:
            found[layer] = BilinearMLP.from_model(model, layer)
        except NotBilinearError:
            if fit is None:
                raise
            others[layer] = GatedMLP.from_model(model, layer)
    inputs = fit_inputs(model, tokens(), list(others), progress) if others else {}
    settings = TranscoderSettings() if fit == "transcoder" else None
    for layer, gated in others.items():
        fitted, held_out = inputs.pop(layer)
        found[layer] = gated.bilinear(
            fitted, held_out=held_out, solve_output=fit != "gates", transcoder=settings, progress=progress
        )
    return {layer: found[layer] for layer in layers}


@dataclass(frozen=True, eq=False, repr=False)
class ReplacementLosses(Shown, Tabled):
    """Cross-entropy with MLPs replaced, in nats a token. The last entry of each column is of all of them together.

    Attributes:
        layers: The layers.
        base: Cross-entropy of the model as it is.
        replaced: With the fitted layer in the place of the MLP.
        linear: With the best affine map there: the control.
        without: With nothing there.
        fvu: Fraction of the variance of each MLP's output that is unexplained, on inputs held out of the fit.
    """

    layers: tuple[int, ...]
    base: float
    replaced: Float[Tensor, " layers_and_all"]
    linear: Float[Tensor, " layers_and_all"]
    without: Float[Tensor, " layers_and_all"]
    fvu: Float[Tensor, " layers"]

    @property
    def change(self) -> Float[Tensor, " layers_and_all"]:
        """Cross-entropy added."""
        return self.replaced - self.base

    @property
    def recovered(self) -> Float[Tensor, " layers_and_all"]:
        """Share of what the MLPs do for the cross-entropy that is recovered: 1 is all of it, 0 nothing."""
        return (self.without - self.replaced) / (self.without - self.base)

    @property
    def linear_recovered(self) -> Float[Tensor, " layers_and_all"]:
        """The same of the affine maps."""
        return (self.without - self.linear) / (self.without - self.base)

    def table(self) -> dict[str, list[Any]]:
        """One row for each layer, and one for all."""
        return {
            "layer": [*map(str, self.layers), "all"],
            "change": self.change.tolist(),
            "recovered": self.recovered.tolist(),
            "linear change": (self.linear - self.base).tolist(),
            "linear recovered": self.linear_recovered.tolist(),
            "fvu": [*self.fvu.tolist(), float("nan")],
        }


@torch.no_grad()
def measure_replacements(
    model: nn.Module, tokens: StoryTokens, layers: Sequence[Replacement], progress: Progress = silent
) -> ReplacementLosses:
    """Run a model with fitted layers in the place of its MLPs, with affine maps there, and with nothing.

    Cost: 3 (layers + 1) + 1 passes over the stories, which should not be those of the fits.

    Args:
        model: The model.
        tokens: Stories.
        layers: Layers that were fitted to its MLPs.
        progress: Wraps the passes.

    Raises:
        ValueError: If a layer is no fit, or two are of one block.
    """
    for one in layers:
        check_kind("layers", one, (BilinearMLP, CubicMLP), "GatedMLP.bilinear and GatedMLP.cubic make them.")
    indices = [one.layer for one in layers]
    if not layers or len(set(indices)) < len(indices):
        raise ValueError(f"layers must be of one block or more, each once, got layers {indices}.")
    fits = [one.approximation for one in layers]
    maps: dict[str, dict[int, Callable[[Tensor], Tensor]]] = {"replaced": {}, "linear": {}, "without": {}}
    for one, fit in zip(layers, fits, strict=True):
        if fit is None:
            raise ValueError(f"layers must be fits to MLPs, such as GatedMLP.bilinear makes, got layer {one.layer}.")
        maps["replaced"][one.layer] = one.tensor
        maps["linear"][one.layer] = fit.linear
        maps["without"][one.layer] = torch.zeros_like
    sites, metric = Sites.everywhere(tokens), CrossEntropy()
    cases: list[tuple[str, tuple[int, ...]]] = [("base", ())]
    cases += [(name, chosen) for name in maps for chosen in (*((layer,) for layer in indices), tuple(indices))]
    values: dict[str, list[float]] = {}
    for name, chosen in progress(cases, "cross-entropy"):
        replacements = {layer: maps[name][layer] for layer in chosen}
        values.setdefault(name, []).append(_loss(model, sites, metric, replacements))
    fvu = torch.tensor([fit.fvu for fit in fits if fit is not None], dtype=torch.double)
    columns = {name: torch.tensor(values[name], dtype=torch.double) for name in maps}
    return ReplacementLosses(tuple(indices), values["base"][0], **columns, fvu=fvu)


def _loss(
    model: nn.Module, sites: Sites, metric: CrossEntropy, replacements: Mapping[int, Callable[[Tensor], Tensor]]
) -> float:
    """Mean cross-entropy with MLPs replaced at every token."""
    everywhere = torch.ones(1, 1, dtype=torch.bool)
    seen: dict[int, Tensor] = {}

    def reading(layer: int) -> Callable[[Tensor], Tensor]:
        def read(x: Tensor) -> Tensor:
            seen[layer] = x
            return x

        return read

    def writing(layer: int) -> Callable[[Tensor], Tensor]:
        return lambda y: replacements[layer](seen.pop(layer).to(y)).to(y)

    with ExitStack() as stack:
        for layer in replacements:
            stack.enter_context(spliced(model, Side(layer, "hook_in"), reading(layer), everywhere))
            stack.enter_context(spliced(model, Side(layer, "hook_out"), writing(layer), everywhere))
        return measure(model, sites, metric).mean().item()
