"""Layers fitted to the MLPs of a model that is too large for memory, while it is read block by block."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bilinear_circuits.data.stories import StoryTokens
from bilinear_circuits.models.gated_mlp import GatedMLP
from bilinear_circuits.models.running import hooked
from bilinear_circuits.models.streaming import StreamedModel
from bilinear_circuits.runs.replacement import Replacement, ReplacementLosses, divided
from bilinear_circuits.utilities.progress import Progress, silent

_CASES = ("replaced", "linear", "without")


@dataclass
class StreamedRun:
    """A model read once: fitted block by block on some stories, and measured on others.

    Four streams of the stories held out go through it together: the model as it is, and with fitted layers, affine maps
    and nothing in the place of all MLPs so far.

    Attributes:
        model: The model.
        fitted: Stories of the fits.
        held_out: Stories that are measured on.
    """

    model: StreamedModel
    fitted: StoryTokens
    held_out: StoryTokens

    @torch.no_grad()
    def measure(
        self, fit: Callable[[GatedMLP, Tensor, Tensor], Replacement], progress: Progress = silent
    ) -> ReplacementLosses:
        """Read and fit one block after the other, and measure the model with all fits.

        Memory: one block, and the residual streams: (stories fitted + 4 held out) x context x d_model numbers.

        Args:
            fit: Makes a layer from an MLP, inputs to fit on and inputs to measure on; it is not kept.
            progress: Wraps the blocks.
        """
        n = len(divided(self.fitted)[0])
        fitted_on, measured_on = self.fitted.mask.clone(), self.fitted.mask.clone()
        fitted_on[:, 0] = True
        fitted_on[n:], measured_on[:n] = False, False
        stream = self.model.embed(self.fitted.ids)
        streams = dict.fromkeys(("base", *_CASES), self.model.embed(self.held_out.ids))
        fvu = []
        for layer in progress(range(self.model.n_layers), "blocks"):
            with self.model.block(layer) as block:
                stream, inputs = self.model.run_and_keep(block, layer, stream, [fitted_on, measured_on])
                found = fit(GatedMLP.from_inputs(self.model.host, layer, inputs[0]), *inputs)
                assert found.approximation is not None
                fvu.append(found.approximation.fvu)
                functions = {
                    "replaced": found.tensor,
                    "linear": found.approximation.linear,
                    "without": torch.zeros_like,
                }
                streams["base"] = self.model.run(block, layer, streams["base"])
                for name, function in functions.items():
                    with hooked([(block.mlp, _instead(function))]):
                        streams[name] = self.model.run(block, layer, streams[name])
        return self._losses(streams, fvu)

    def _losses(self, streams: dict[str, Tensor], fvu: list[float]) -> ReplacementLosses:
        """Mean cross-entropy of each stream; of single layers nothing is known."""
        means = {
            name: self.model.losses(one, self.held_out.ids, self.held_out.mask).mean().item()
            for name, one in streams.items()
        }
        unknown = [float("nan")] * len(fvu)
        columns = {name: torch.tensor([*unknown, means[name]], dtype=torch.double) for name in _CASES}
        return ReplacementLosses(
            tuple(range(len(fvu))), means["base"], **columns, fvu=torch.tensor(fvu, dtype=torch.double)
        )


def _instead(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """A hook that writes another function of the MLP's input."""
    return lambda module, args, output: function(args[0]).to(output)
