"""Experiments on one MLP of a model: what an edit of its output does at trigger sites, and to the loss.

Whatever comes before the edit runs once, when an experiment is made.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bilinear_circuits.algebra.spectra import Spectrum
from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.data.stories import StoryTokens
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.models.running import Downstream, model_device
from bilinear_circuits.statistics.effects import N_BOOTSTRAP, Effect, effect_of
from bilinear_circuits.utilities.display import Brief

_SITES_PER_BATCH = 32

Edit = Callable[[Tensor, Tensor], Tensor]
"""Maps MLP input and output to what is added to the output."""


@dataclass(frozen=True, eq=False, repr=False)
class Sites(Brief):
    """Stories cut after their first trigger token, sorted by length.

    Attributes:
        ids: Token ids, padded on the right.
        position: Position of the trigger, the last token of each row.
    """

    ids: Int[Tensor, "site pos"]
    position: Int[Tensor, " site"]

    def __len__(self) -> int:
        return len(self.position)

    @property
    def at(self) -> tuple[Int[Tensor, " site"], Int[Tensor, " site"]]:
        """Index of every trigger in a (site, pos) array."""
        return torch.arange(len(self)), self.position

    @classmethod
    def choose(cls, stories: StoryTokens, tokens: QueryTokens, n: int, max_position: int) -> "Sites":
        """The first trigger of each story within `max_position` tokens, for the first n stories that have one."""
        is_trigger = tokens.is_trigger(stories.ids) & stories.mask
        is_trigger = is_trigger[:, : max_position + 1]
        rows = is_trigger.any(1).nonzero().squeeze(1)[:n]
        position = is_trigger[rows].int().argmax(1)
        order = position.argsort()
        rows, position = rows[order], position[order]
        width = int(position.max()) + 1 if len(rows) else 0
        return cls(stories.ids[rows, :width], position)

    def batches(self) -> list["Sites"]:
        """Batches of like length, trimmed to the longest row."""
        batches = []
        for index in torch.arange(len(self)).split(_SITES_PER_BATCH):
            position = self.position[index]
            batches.append(Sites(self.ids[index, : int(position.max()) + 1], position))
        return batches


class SiteExperiment:
    """One layer of a model on trigger sites, ready for edits: everything before the edit runs once."""

    def __init__(self, model: Any, layer: int, sites: Sites, tokens: QueryTokens) -> None:
        device = model_device(model)
        self._tokens, self._batches = tokens, sites.batches()
        self._runs = [Downstream(model, batch.ids.to(device), layer) for batch in self._batches]
        self._base = self._difference(lambda x, y: torch.zeros_like(y))

    def __len__(self) -> int:
        return len(self._base)

    def y_at_sites(self) -> Float[Tensor, "site d_model"]:
        """MLP output at every trigger."""
        return torch.cat([run.y[batch.at] for run, batch in zip(self._runs, self._batches, strict=True)])

    def select(self, chosen: Bool[Tensor, " site"]) -> "SiteExperiment":
        """The same on some of the sites."""
        part = copy.copy(self)
        part._base = self._base[chosen]
        part._batches, part._runs = [], []
        masks = chosen.split([len(batch) for batch in self._batches])
        for batch, run, mask in zip(self._batches, self._runs, masks, strict=True):
            if mask.any():
                rows = mask.nonzero().squeeze(1)
                part._batches.append(Sites(batch.ids[rows], batch.position[rows]))
                part._runs.append(run.select(rows.to(run.y.device)))
        return part

    def effect(self, edit: Edit) -> Float[Tensor, " site"]:
        """Change of the pole logit difference at every site when the edit is added to the MLP output."""
        return self._difference(edit) - self._base

    def _difference(self, edit: Edit) -> Tensor:
        out = [torch.zeros(0, dtype=torch.double)]
        for run, batch in zip(self._runs, self._batches, strict=True):
            logits = run.logits(run.y + edit(run.x, run.y), batch.at).double()
            out.append(self._tokens.difference(logits).cpu())
        return torch.cat(out)


class LossExperiment:
    """Cross-entropy of a model on whole stories, with and without an edit of one layer."""

    def __init__(self, model: Any, layer: int, stories: StoryTokens) -> None:
        self._run = Downstream(model, stories.ids.to(model_device(model)), layer)
        self._ids, self._mask = stories.ids[:, 1:], stories.mask[:, 1:]
        self._base = self._loss(lambda x, y: torch.zeros_like(y))

    @property
    def base(self) -> float:
        """Mean over tokens, nats."""
        return (self._base.sum() / self._mask.sum()).item()

    def change(self, edit: Edit, generator: torch.Generator) -> Effect:
        """Change of the mean, with an interval over stories."""
        change = self._loss(edit) - self._base
        per_story, n_tokens = change.sum(1), self._mask.sum(1)
        draw = torch.randint(len(change), (N_BOOTSTRAP, len(change)), generator=generator)
        means = per_story[draw].sum(1) / n_tokens[draw].sum(1)
        return effect_of(change.sum() / n_tokens.sum(), means, len(change))

    def _loss(self, edit: Edit) -> Tensor:
        logits = self._run.logits(self._run.y + edit(self._run.x, self._run.y))[:, :-1]
        ids = self._ids.to(logits.device)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids.flatten(), reduction="none")
        return (loss.view_as(ids).cpu() * self._mask).double()


def removal_edit(interactions: FeatureInteractions, feature: int, spectrum: Spectrum) -> Edit:
    """Subtract the form of a (truncated) spectrum along the feature's decoder row."""
    row = interactions.sae_out.W_dec[feature]
    return lambda x, y: (-spectrum(x.to(row.dtype)).unsqueeze(-1) * row).to(y.dtype)


def ablation_edit(interactions: FeatureInteractions, feature: int) -> Edit:
    """Subtract the feature's own contribution z_f d_f."""
    row = interactions.sae_out.W_dec[feature]
    return lambda x, y: (-interactions.sae_out.encode(y.to(row.dtype))[..., feature].unsqueeze(-1) * row).to(y.dtype)
