"""Rerunning a model with changes of MLP outputs: the one measuring device of every proof, edit and account.

A change is made in one of two ways. A *change* is a vector for every site, written at the site alone, so that what is
measured is the effect of that one change. An *edit* is a function of what an MLP reads and writes, as an edit of the
weights is; it acts at every token, at the sites alone, or everywhere but there. Blocks before the layer run once.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Generic, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.models.running import (
    MLPActivations,
    capture_mlp,
    hooked,
    model_blocks,
    model_device,
    model_width,
    run_logits,
    vocabulary_size,
)
from bilinear_circuits.runs.downstream import Downstream
from bilinear_circuits.runs.edits import Edit, Where, add_edits, by_layer, change_at, sum_of_edits
from bilinear_circuits.runs.last_token import LastTokenRuns
from bilinear_circuits.runs.metrics import Metric
from bilinear_circuits.runs.sites import Sites

_ROWS_PER_RUN = 64
_FEWEST_VARIANTS, _ENDINGS_PER_RUN = 4, 128  # variants of a site that are worth a run of its own; most of one run

M = TypeVar("M", bound=Metric)


@torch.no_grad()
def measure(model: nn.Module, sites: Sites, metric: Metric) -> Float[Tensor, " site"]:
    """Read a metric at every site by whole forward passes of a model."""
    values = [torch.zeros(0, dtype=torch.double)]
    for batch in sites.batches():
        logits = run_logits(model, batch.ids.to(model_device(model)))[batch.at]
        values.append(metric(logits, batch.following).cpu())
    return torch.cat(values)


class Runs(Generic[M]):
    """A model at sites, to be rerun with changes of the output of one MLP, or of that and later ones.

    Attributes:
        model: The model.
        layer: Layer of the MLP.
        sites: Where the metric is read.
        metric: The metric.
        x: MLP input at every site.
        y: MLP output of the model as it is.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, layer: int, sites: Sites, metric: M) -> None:
        self.model, self.layer, self.sites, self.metric = model, layer, sites, metric
        self._batches = sites.batches()
        self._runs = [Downstream(model, batch.ids.to(model_device(model)), layer) for batch in self._batches]
        self.x, self.y = (self._at_sites(name) for name in ("x", "y"))

    def _at_sites(self, name: Literal["x", "y"]) -> Float[Tensor, "site d_model"]:
        found = [getattr(run, name)[batch.at] for run, batch in zip(self._runs, self._batches, strict=True)]
        return torch.cat(found) if found else next(self.model.parameters()).new_zeros(0, model_width(self.model))

    def __len__(self) -> int:
        return len(self.sites)

    @cached_property
    def logits(self) -> Float[Tensor, "site d_vocab"]:
        """Logits of the model as it is."""
        return self.edited_logits([])

    @cached_property
    def values(self) -> Float[Tensor, " site"]:
        """The metric in the model as it is."""
        return self._edited([], "everywhere")

    @cached_property
    def _last_token_runs(self) -> LastTokenRuns | None:
        """Many changes of one site in one run, where the model gives the same for them as in a run of each."""
        runs = LastTokenRuns.of_model(self.model, self.layer)
        if runs is None or not len(self):
            return None
        change = torch.linspace(-1, 1, self.y.shape[1]).to(self.y) * self.y[0].abs().mean()
        ((_, _, expected),) = self._stacked(0, change.view(1, 1, -1), *torch.zeros(2, 1, dtype=torch.long))
        row, position = (int(index[0]) for index in self._batches[0].at)
        residual = self._runs[0].residual[row, : position + 1]
        return runs if runs.agrees(residual, change, expected[0]) else None

    def select(self, chosen: Bool[Tensor, " site"]) -> "Runs[M]":
        """Keep some of the sites."""
        part = copy.copy(self)
        part.sites, part._batches, part._runs = self.sites.select(chosen.cpu()), [], []
        masks = chosen.cpu().split([len(batch) for batch in self._batches])
        for batch, run, mask in zip(self._batches, self._runs, masks, strict=True):
            if mask.any():
                part._batches.append(batch.select(mask))
                part._runs.append(run.select(batch.row[mask].unique().to(run.y.device)))
        for name in {"x", "y", "logits", "values"} & set(vars(part)):
            one = getattr(self, name)
            setattr(part, name, one[chosen.to(one.device)])
        return part

    def active(self, dictionary: Dictionary, feature: int) -> Bool[Tensor, " site"]:
        """Say at which sites a feature of a dictionary on the MLP output is active in the model as it is."""
        return dictionary.is_active(self.y, feature).cpu()

    def effect(self, edits: Edit | Sequence[tuple[int, Edit]], where: Where = "everywhere") -> Float[Tensor, " site"]:
        """Change of the metric at every site under edits.

        Args:
            edits: An edit of the layer's MLP, or pairs of a layer and an edit: those of one MLP see the same input and
                output and add up, those of a later one see what it reads in the edited run.
            where: At every token, as an edit of the weights acts; at the sites alone; or everywhere but there.

        Raises:
            ValueError: If an edit is of an earlier layer.
        """
        return self._edited(edits, where) - self.values

    def edited_logits(self, edits: Edit | Sequence[tuple[int, Edit]], where: Where = "everywhere") -> Tensor:
        """Logits at every site under edits, (site, d_vocab); see `effect`."""
        found = [logits for _, logits in self._edited_batches(edits, where)]
        return torch.cat(found) if found else self.y.new_zeros(0, vocabulary_size(self.model))

    def _edited(self, edits: Edit | Sequence[tuple[int, Edit]], where: Where) -> Float[Tensor, " site"]:
        values = [torch.zeros(0, dtype=torch.double)]
        for batch, logits in self._edited_batches(edits, where):
            values.append(self.metric(logits, batch.following).cpu())
        return torch.cat(values)

    @torch.no_grad()
    def _edited_batches(
        self, edits: Edit | Sequence[tuple[int, Edit]], where: Where
    ) -> Iterator[tuple[Sites, Float[Tensor, "site d_vocab"]]]:
        """Every batch with its logits in the edited run."""
        layers = by_layer([(self.layer, edits)] if callable(edits) else edits)
        if min(layers, default=self.layer) < self.layer:
            raise ValueError(f"edits must be of layer {self.layer} or later, got one of layer {min(layers)}.")
        first = layers.pop(self.layer, [])
        blocks = model_blocks(self.model)
        for run, batch in zip(self._runs, self._batches, strict=True):
            later = [(blocks[layer].mlp, add_edits(some, batch.at, where)) for layer, some in layers.items()]
            with hooked(later):
                logits = run.logits(run.y + sum_of_edits(first, run.x, run.y, batch.at, where), batch.at)
            yield batch, logits

    @torch.no_grad()
    def rerun(
        self, change: Float[Tensor, "variant site d_model"]
    ) -> Iterator[tuple[Int[Tensor, " row"], Int[Tensor, " row"], Float[Tensor, "row d_vocab"]]]:
        """Logits at the site for every variant of a change of the MLP output there, in stacked rows.

        Sites that a variant leaves as they are do not run: their logits are `logits`.

        Args:
            change: What is added to the MLP output at each site.

        Yields:
            Variant, site and logits of some rows.
        """
        first = 0
        for index, batch in enumerate(self._batches):
            here = change[:, first : first + len(batch)]
            variants, sites = here.ne(0).any(-1).nonzero(as_tuple=True)
            many = len(sites) >= _FEWEST_VARIANTS * len(batch) and self._last_token_runs is not None
            for variant, site, logits in (self._one_by_one if many else self._stacked)(index, here, variants, sites):
                yield variant, site + first, logits
            first += len(batch)

    def _one_by_one(
        self, index: int, change: Tensor, variants: Tensor, sites: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Site by site, all its variants as last tokens of one run."""
        assert self._last_token_runs is not None
        row, position = (one.tolist() for one in self._batches[index].at)
        for site in sites.unique().tolist():
            residual = self._runs[index].residual[row[site], : position[site] + 1]
            for chosen in variants[sites == site].split(_ENDINGS_PER_RUN):
                logits = self._last_token_runs(residual, change[chosen, site].to(residual))
                yield chosen, torch.full_like(chosen, site), logits

    def _stacked(
        self, index: int, change: Tensor, variants: Tensor, sites: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All sites and variants of a batch in stacked rows."""
        batch, run = self._batches[index], self._runs[index]
        order = sites.argsort(stable=True)  # rows are sorted by length
        for chosen in order.split(_ROWS_PER_RUN):
            if len(chosen) == 0:
                continue
            variant, site = variants[chosen], sites[chosen]
            part = run.select(batch.row.to(site.device)[site])
            at = torch.arange(len(site), device=site.device), batch.position.to(site.device)[site]
            y = part.y.clone()
            y[at] += change[variant, site].to(y)
            yield variant, site, part.logits(y, at)

    def effects(self, change: Float[Tensor, "variant site d_model"]) -> Float[Tensor, "variant site"]:
        """Change of the metric at every site under every variant of a change there."""
        effect = torch.zeros(change.shape[:2], dtype=torch.double)
        for variant, site, logits in self.rerun(change):
            following = None if self.sites.following is None else self.sites.following[site.cpu()]
            effect[variant.cpu(), site.cpu()] = self.metric(logits, following).cpu() - self.values[site.cpu()]
        return effect

    def changed_logits(self, change: Float[Tensor, "site d_model"]) -> Float[Tensor, "site d_vocab"]:
        """Logits at every site under one change."""
        changed = self.logits.clone()
        for _, site, logits in self.rerun(change.unsqueeze(0)):
            changed[site] = logits
        return changed

    @torch.no_grad()
    def mlps(
        self, layers: Sequence[int], change: Float[Tensor, "site d_model"] | None = None
    ) -> dict[int, MLPActivations]:
        """Capture what some MLPs read and write at the sites, in a forward pass with a change if given."""
        seen: Mapping[int, list[MLPActivations]] = {layer: [] for layer in layers}
        module = model_blocks(self.model)[self.layer].mlp
        parts = [None] * len(self._batches) if change is None else change.split([len(one) for one in self._batches])
        for batch, part in zip(self._batches, parts, strict=True):
            with hooked([] if part is None else [(module, change_at(batch.at, None, part))]):
                captured = capture_mlp(self.model, batch.ids.to(model_device(self.model)), layers)
            for layer, one in captured.items():
                seen[layer].append(MLPActivations(one.x[batch.at], one.y[batch.at]))
        return {
            layer: MLPActivations(torch.cat([one.x for one in some]), torch.cat([one.y for one in some]))
            for layer, some in seen.items()
        }

    @torch.no_grad()
    def mlp_output(
        self,
        site: Int[Tensor, " row"],
        input_change: Float[Tensor, "row d_model"] | None = None,
        output_change: Float[Tensor, "row d_model"] | None = None,
    ) -> Float[Tensor, "row d_model"]:
        """Capture what the model's MLP writes at some sites in forward passes with its input or output changed there.

        Args:
            site: Site of every row; a site may come more than once.
            input_change: Added to the MLP input at the site, before the model's own MLP runs.
            output_change: Added to its output.
        """
        module, device = model_blocks(self.model)[self.layer].mlp, model_device(self.model)
        out = torch.empty(len(site), self.y.shape[1], dtype=self.y.dtype, device=device)
        row, position = (one[site.cpu()] for one in self.sites.at)
        for chunk in position.argsort().split(_ROWS_PER_RUN):
            tokens = self.sites.ids[row[chunk], : int(position[chunk].max()) + 1].to(device)
            at = torch.arange(len(chunk)), position[chunk]
            changes = [None if one is None else one[chunk.to(one.device)] for one in (input_change, output_change)]
            with hooked([(module, change_at(at, *changes))]):
                out[chunk.to(device)] = capture_mlp(self.model, tokens, [self.layer])[self.layer].y[at]
        return out
