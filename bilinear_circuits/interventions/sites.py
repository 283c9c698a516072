"""Rerunning a model with changes of one MLP's output at chosen tokens: the measuring device of every intervention.

A change is written at the site alone, the last token of its row, so that what is measured there is the effect of that
one change and of nothing before it. Blocks before the layer run once.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bilinear_circuits.circuits.experiments import Edit, Sites
from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.interventions.endings import Endings
from bilinear_circuits.models.running import Downstream, capture_mlp, hooked, model_blocks, model_device, run_logits

_ROWS_PER_RUN = 64
_FEWEST_ENDINGS, _ENDINGS_PER_RUN = 4, 128  # variants of a site that are worth a run of its own; most of one run


class SiteRuns:
    """One layer of a model at sites, to be rerun with changes of its MLP output.

    Attributes:
        model: The model.
        layer: Layer of the MLP.
        tokens: The query whose poles are measured.
        x: MLP input at every site.
        y: MLP output of the model as it is.
        logits: Its logits.
    """

    @torch.no_grad()
    def __init__(self, model: Any, layer: int, sites: Sites, tokens: QueryTokens) -> None:
        """Run the model once.

        Raises:
            ValueError: If there is no site.
        """
        if len(sites) == 0:
            raise ValueError("sites must hold at least one token, got none. Use more stories.")
        self.model, self.layer, self.tokens = model, layer, tokens
        self._batches = sites.batches()
        device = model_device(model)
        self._runs = [Downstream(model, batch.ids.to(device), layer) for batch in self._batches]
        ats = [batch.at for batch in self._batches]
        self.x = torch.cat([run.x[at] for run, at in zip(self._runs, ats, strict=True)])
        self.y = torch.cat([run.y[at] for run, at in zip(self._runs, ats, strict=True)])
        self.logits = torch.cat([run.logits(run.y, at) for run, at in zip(self._runs, ats, strict=True)])
        self._endings = Endings.of_model(model, layer)
        if self._endings is not None:
            change = torch.linspace(-1, 1, self.y.shape[1]).to(self.y) * self.y[0].abs().mean()
            ((_, _, expected),) = self._stacked(0, change.view(1, 1, -1), *torch.zeros(2, 1, dtype=torch.long))
            residual = self._runs[0].residual[0, : int(self._batches[0].position[0]) + 1]
            if not self._endings.agrees(residual, change, expected[0]):
                self._endings = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def rows(self) -> list[tuple[Int[Tensor, " pos"], int]]:
        """Token ids up to the site, and its position, of every site."""
        pairs = [(ids, int(p)) for batch in self._batches for ids, p in zip(batch.ids, batch.position, strict=True)]
        return [(ids[: position + 1], position) for ids, position in pairs]

    def select(self, chosen: Bool[Tensor, " site"]) -> "SiteRuns":
        """The same at some of the sites.

        Raises:
            ValueError: If none is chosen.
        """
        if not chosen.any():
            raise ValueError("chosen must hold at least one site, got none.")
        part = copy.copy(self)
        part._batches, part._runs = [], []
        masks = chosen.cpu().split([len(batch) for batch in self._batches])
        for batch, run, mask in zip(self._batches, self._runs, masks, strict=True):
            if mask.any():
                kept = mask.nonzero().squeeze(1)
                part._batches.append(Sites(batch.ids[kept], batch.position[kept]))
                part._runs.append(run.select(kept.to(run.y.device)))
        where = chosen.to(self.x.device)
        part.x, part.y, part.logits = self.x[where], self.y[where], self.logits[where]
        return part

    @torch.no_grad()
    def run_whole(self) -> list[tuple[Int[Tensor, " row"], Int[Tensor, " row"]]]:
        """Run the whole model, for hooks that watch it; the place of the sites in every batch that it is given."""
        for batch in self._batches:
            run_logits(self.model, batch.ids.to(model_device(self.model)))
        return [batch.at for batch in self._batches]

    def difference(self, logits: Float[Tensor, "*n d_vocab"]) -> Float[Tensor, "*n"]:
        """Mean logit of the positive pole less that of the negative, in float64."""
        return self.tokens.difference(logits.double())

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
            variants, rows = here.ne(0).any(-1).nonzero(as_tuple=True)
            many = self._endings is not None and len(rows) >= _FEWEST_ENDINGS * len(batch)
            for variant, row, logits in (self._one_by_one if many else self._stacked)(index, here, variants, rows):
                yield variant, row + first, logits
            first += len(batch)

    def _one_by_one(
        self, index: int, change: Tensor, variants: Tensor, rows: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Site by site, all its variants as endings of one run."""
        assert self._endings is not None
        position = self._batches[index].position.tolist()
        for row in rows.unique().tolist():
            residual = self._runs[index].residual[row, : position[row] + 1]
            for chosen in variants[rows == row].split(_ENDINGS_PER_RUN):
                logits = self._endings(residual, change[chosen, row].to(residual))
                yield chosen, torch.full_like(chosen, row), logits

    def _stacked(
        self, index: int, change: Tensor, variants: Tensor, rows: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All sites and variants of a batch in stacked rows."""
        batch, run = self._batches[index], self._runs[index]
        order = rows.argsort(stable=True)  # rows are sorted by length
        for chosen in order.split(_ROWS_PER_RUN):
            if len(chosen) == 0:
                continue
            variant, row = variants[chosen], rows[chosen]
            part = run.select(row)
            at = torch.arange(len(row), device=row.device), batch.position.to(row.device)[row]
            y = part.y.clone()
            y[at] += change[variant, row].to(y)
            yield variant, row, part.logits(y, at)

    def effects(self, change: Float[Tensor, "variant site d_model"]) -> Float[Tensor, "variant site"]:
        """Change of the pole logit difference at every site under every variant."""
        effect = torch.zeros(change.shape[:2], dtype=torch.double)
        base = self.difference(self.logits)
        for variant, site, logits in self.rerun(change):
            effect[variant.cpu(), site.cpu()] = (self.difference(logits) - base[site]).cpu()
        return effect

    def changed_logits(self, change: Float[Tensor, "site d_model"]) -> Float[Tensor, "site d_vocab"]:
        """Logits at every site under one change."""
        changed = self.logits.clone()
        for _, site, logits in self.rerun(change.unsqueeze(0)):
            changed[site] = logits
        return changed

    @torch.no_grad()
    def effect_everywhere(self, edit: Edit, at_site: bool = True) -> Float[Tensor, " site"]:
        """Change of the pole logit difference when an edit acts at every token of the row, as a weight edit would.

        Args:
            edit: Maps MLP input and output to what is added to the output.
            at_site: Whether it acts at the site too, or only before it.
        """
        changed = []
        for run, batch in zip(self._runs, self._batches, strict=True):
            change = edit(run.x, run.y).clone()
            if not at_site:
                change[batch.at] = 0
            changed.append(run.logits(run.y + change, batch.at))
        return (self.difference(torch.cat(changed)) - self.difference(self.logits)).cpu()

    @torch.no_grad()
    def later(
        self, change: Float[Tensor, "site d_model"], layers: Sequence[int]
    ) -> dict[int, tuple[Float[Tensor, "site d_model"], Float[Tensor, "site d_model"]]]:
        """What some MLPs, this one or later ones, read and write at the sites in a forward pass with the change."""
        seen: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
        module = model_blocks(self.model)[self.layer].mlp
        device = model_device(self.model)
        parts = change.split([len(batch) for batch in self._batches])
        for batch, part in zip(self._batches, parts, strict=True):
            at = batch.at
            with hooked([(module, _changes(at, None, part))]):
                captured = capture_mlp(self.model, batch.ids.to(device), layers)
            for layer, one in captured.items():
                seen[layer].append((one.x[at], one.y[at]))
        return {
            layer: (torch.cat([x for x, _ in some]), torch.cat([y for _, y in some])) for layer, some in seen.items()
        }

    @torch.no_grad()
    def mlp_output(
        self,
        site: Int[Tensor, " row"],
        input_change: Float[Tensor, "row d_model"] | None = None,
        output_change: Float[Tensor, "row d_model"] | None = None,
    ) -> Float[Tensor, "row d_model"]:
        """What the model's MLP writes at some sites in forward passes with its input or output changed there.

        Args:
            site: Site of every row; a site may come more than once.
            input_change: Added to the MLP input at the site, before the model's own MLP runs.
            output_change: Added to its output.
        """
        module, rows = model_blocks(self.model)[self.layer].mlp, self.rows
        device = model_device(self.model)
        out = torch.empty(len(site), self.y.shape[1], dtype=self.y.dtype, device=device)
        position = torch.tensor([rows[one][1] for one in site.tolist()])
        for chunk in position.argsort().split(_ROWS_PER_RUN):
            ids = [rows[one][0] for one in site[chunk.to(site.device)].tolist()]
            tokens = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(device)
            at = torch.arange(len(chunk)), position[chunk]
            changes = [None if one is None else one[chunk.to(one.device)] for one in (input_change, output_change)]
            with hooked([(module, _changes(at, *changes))]):
                out[chunk.to(device)] = capture_mlp(self.model, tokens, [self.layer])[self.layer].y[at]
        return out


def _changes(
    at: tuple[Tensor, Tensor], input_change: Tensor | None, output_change: Tensor | None
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A hook that runs a module on a changed input, and changes its output, at some places."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if input_change is not None:
            x = args[0].clone()
            x[at] += input_change.to(x)
            output = module.forward(x)
        output = output.clone()
        if output_change is not None:
            output[at] += output_change.to(output)
        return output

    return hook
