"""Models whose layers `approximate` fits: loaded as a whole, or read block by block."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilinear_circuits import zoo
from bilinear_circuits.command_line import common

if TYPE_CHECKING:
    from torch import Tensor

    from bilinear_circuits.algebra.tensor import InteractionTensor
    from bilinear_circuits.data.stories import StoryTokens
    from bilinear_circuits.models.approximation import Approximation
    from bilinear_circuits.models.gated_mlp import GatedMLP
    from bilinear_circuits.runs.replacement import Replacement, ReplacementLosses

FITS = "fits"


@dataclass(frozen=True)
class Asked:
    """What is fitted, and how: the options of `approximate` of the same names."""

    model: str
    layers: list[int] | None
    order: str
    fit: str
    steps: int
    seed: int
    device: str
    out: str


class Work(ABC):
    """A model whose layers are fitted.

    Attributes:
        tokenizer: Its tokenizer.
        config: Its configuration.
        context: Longest row of tokens.
        first: What the first fit is.
    """

    tokenizer: Any
    config: Any
    context: int
    first: "Approximation | None" = None

    def __init__(self, asked: Asked) -> None:
        """Keep what is asked for."""
        self._asked = asked

    @abstractmethod
    def measure(self, fitted: "StoryTokens", held_out: "StoryTokens") -> "ReplacementLosses":
        """Fit the layers on some stories, and measure on others."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the stock Llama of the fits."""

    def _fit(self, gated: "GatedMLP", inputs: "Tensor", held_out: "Tensor") -> "Replacement":
        """Fit one layer and write it, or read what a run that was killed has written."""
        from safetensors.torch import save_file

        file = Path(self._asked.out) / FITS / f"layer-{gated.layer}.safetensors"
        if self._asked.order == "1" and file.is_file():
            from bilinear_circuits.models.fitting import METHODS

            tensor = read_fit(file.parent, gated.layer, str(inputs.device))
            fit: Replacement = gated.approximated_by(tensor, inputs, METHODS[self._asked.fit], held_out)
        else:
            fit, values = self._new_fit(gated, inputs, held_out)
            with common.written_whole(file.parent) as whole:
                save_file(values, whole / file.name)
        if self.first is None and gated.gate == "linear":
            common.note(f"layer {gated.layer} is bilinear as it is: there is nothing to fit")
        self.first = self.first or fit.approximation
        return fit

    def _new_fit(
        self, gated: "GatedMLP", inputs: "Tensor", held_out: "Tensor"
    ) -> "tuple[Replacement, dict[str, Tensor]]":
        """A fit, and the tensors that are kept of it."""
        from bilinear_circuits.algebra.layer_fits import TranscoderSettings

        asked = self._asked
        if asked.order == "2":
            cubic = gated.cubic(inputs, held_out=held_out)
            return cubic, {"coefficients": cubic.tensor.coefficients.contiguous()}
        settings = TranscoderSettings(steps=asked.steps, seed=asked.seed) if asked.fit == "transcoder" else None
        solve = asked.fit != "gates"
        fit = gated.bilinear(inputs, held_out=held_out, solve_output=solve, transcoder=settings, progress=common.bar)
        found = {field.name: getattr(fit.tensor, field.name) for field in fields(fit.tensor)}
        return fit, {name: value.contiguous() for name, value in found.items() if value is not None}


class Loaded(Work):
    """A model that is loaded as a whole: every layer is measured alone, too."""

    def __init__(self, asked: Asked) -> None:
        """Load it."""
        from bilinear_circuits.models.running import context_length, model_blocks

        super().__init__(asked)
        self._model, self.tokenizer = common.quietly_load(zoo.load_plain_model, asked.model, asked.device)
        self.config, self.context = self._model.config, context_length(self._model)
        self._layers = _chosen(asked.layers, len(model_blocks(self._model)), asked.model)
        self._fits: list[Replacement] = []

    def measure(self, fitted: "StoryTokens", held_out: "StoryTokens") -> "ReplacementLosses":
        """Fit the layers, and measure each alone and all together."""
        from bilinear_circuits.models.gated_mlp import GatedMLP
        from bilinear_circuits.runs.replacement import fit_inputs, measure_replacements

        gated = {layer: GatedMLP.from_model(self._model, layer) for layer in self._layers}
        inputs = fit_inputs(self._model, fitted, self._layers, common.bar)
        self._fits = [self._fit(gated[layer], *inputs.pop(layer)) for layer in self._layers]
        return measure_replacements(self._model, held_out, self._fits, common.bar)

    def save(self, folder: Path) -> None:
        """Write the stock Llama of the fits."""
        from bilinear_circuits.models.bilinear_mlp import BilinearMLP
        from bilinear_circuits.surgery.bilinear_llama import bilinear_llama

        layers = {one.layer: one for one in self._fits if isinstance(one, BilinearMLP)}
        bilinear_llama(self._model, layers).save_pretrained(folder)


class Streamed(Work):
    """A model that is read block by block, never more than one in memory: all layers are measured together."""

    def __init__(self, asked: Asked) -> None:
        """Find its weights."""
        from bilinear_circuits.models.streaming import StreamedModel

        super().__init__(asked)
        folder = zoo.checked_folder(asked.model)
        self._model, self.tokenizer = StreamedModel(folder, asked.device), zoo.load_tokenizer(asked.model)
        self.config, self.context = self._model.config, self._model.config.max_position_embeddings

    def measure(self, fitted: "StoryTokens", held_out: "StoryTokens") -> "ReplacementLosses":
        """Fit one block after the other, and measure."""
        from bilinear_circuits.runs.streamed import StreamedRun

        return StreamedRun(self._model, fitted, held_out).measure(self._said, common.bar)

    def _said(self, gated: "GatedMLP", inputs: "Tensor", held_out: "Tensor") -> "Replacement":
        fit = self._fit(gated, inputs, held_out)
        common.note(f"layer {gated.layer}: {fit.approximation}")
        return fit

    def save(self, folder: Path) -> None:
        """Write the stock Llama of the fits."""
        from bilinear_circuits.surgery.bilinear_llama import write_streamed

        fits = Path(self._asked.out) / FITS
        write_streamed(self._model, lambda layer: read_fit(fits, layer), folder)


def _chosen(layers: Sequence[int] | None, n_layers: int, model: str) -> list[int]:
    """Layers asked for, by default all.

    Raises:
        ValueError: If there is no such layer.
    """
    chosen = list(dict.fromkeys(layers or range(n_layers)))
    for layer in chosen:
        if not 0 <= layer < n_layers:
            raise ValueError(f"layers must be between 0 and {n_layers - 1}, those of {model}, got {layer}.")
    return chosen


def read_fit(folder: Path, layer: int, device: str = "cpu") -> "InteractionTensor":
    """Read a bilinear layer that was fitted."""
    from safetensors.torch import load_file

    from bilinear_circuits.algebra.tensor import InteractionTensor

    return InteractionTensor(**load_file(folder / f"layer-{layer}.safetensors", device=device))
