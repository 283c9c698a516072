"""Edits of several layers at trigger sites: their effect predicted with hooks and measured, and matched controls."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bilinear_circuits.circuits.experiments import SiteExperiment, Sites
from bilinear_circuits.circuits.prove import control_sets, matched
from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.circuits.rank import Screen
from bilinear_circuits.interactions.activity import LayerActivity
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.models.running import capture_mlp, hooked, model_blocks, model_device, run_logits
from bilinear_circuits.surgery.edits import FormEdit


class EditSites:
    """A model at trigger sites, ready for edits of some of its layers: what comes before the first of them runs once.

    Edits of the first layer go through `SiteExperiment`, those of later ones are added by hooks in the same pass.
    """

    def __init__(self, model: Any, layers: Sequence[int], sites: Sites, tokens: QueryTokens) -> None:
        self._model, self._first = model, min(layers)
        self._experiment = SiteExperiment(model, self._first, sites, tokens)

    def __len__(self) -> int:
        return len(self._experiment)

    def select(self, chosen: Bool[Tensor, " site"]) -> "EditSites":
        """The same at some of the sites."""
        part = object.__new__(EditSites)
        part._model, part._first = self._model, self._first
        part._experiment = self._experiment.select(chosen)
        return part

    def effect(self, edits: Sequence[FormEdit]) -> Float[Tensor, " site"]:
        """Change of the pole logit difference at every site when all edits are made at once.

        Raises:
            ValueError: If an edit is of an earlier layer than those given at the start.
        """
        by_layer = {edit.layer: [other for other in edits if other.layer == edit.layer] for edit in edits}
        if min(by_layer, default=self._first) < self._first:
            raise ValueError(f"edits must be of layer {self._first} or later, got one of layer {min(by_layer)}.")
        first = _sum_of(by_layer.pop(self._first, []))
        blocks = model_blocks(self._model)
        with hooked([(blocks[layer].mlp, _adds(_sum_of(some))) for layer, some in by_layer.items()]):
            return self._experiment.effect(first)


def _sum_of(edits: Sequence[FormEdit]) -> Callable[[Tensor, Tensor], Tensor]:
    def added(x: Tensor, y: Tensor) -> Tensor:
        total = torch.zeros_like(y)
        for edit in edits:
            total = total + edit(x, y)
        return total

    return added


def _adds(added: Callable[[Tensor, Tensor], Tensor]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda module, args, output: output + added(args[0], output)


@torch.no_grad()
def pole_difference(model: Any, sites: Sites, tokens: QueryTokens) -> Float[Tensor, " site"]:
    """Mean logit of the positive pole less that of the negative at every site, by whole forward passes of a model."""
    differences = [torch.zeros(0, dtype=torch.double)]
    for batch in sites.batches():
        logits = run_logits(model, batch.ids.to(model_device(model)))[batch.at]
        differences.append(tokens.difference(logits.double()).cpu())
    return torch.cat(differences)


@torch.no_grad()
def active_at(
    model: Any, interactions: Sequence[FeatureInteractions], sites: Sites, edits: Sequence[FormEdit]
) -> Bool[Tensor, "edit site"]:
    """At which sites the feature of each edit is active, in the model as it is."""
    by_layer = {one.mlp.layer: one for one in interactions}
    active: list[list[Tensor]] = [[] for _ in edits]
    for batch in sites.batches():
        captured = capture_mlp(model, batch.ids.to(model_device(model)), sorted({edit.layer for edit in edits}))
        for layer, activations in captured.items():
            dictionary = by_layer[layer].sae_out
            z = dictionary.encode(activations.y[batch.at].to(dictionary.W_enc.dtype))
            for index, edit in enumerate(edits):
                if edit.layer == layer:
                    active[index].append((z[:, edit.feature] != 0).cpu())
    return torch.stack([torch.cat(parts) for parts in active])


def control_edits(
    edits: Sequence[FormEdit], activity: Sequence[LayerActivity], screens: Sequence[Screen], n: int
) -> tuple[list[list[FormEdit]], list[list[FormEdit]]]:
    """The same edits of other features: two kinds of controls, n sets of each, one feature for each feature edited.

    The kinds are those of `circuits.prove.control_sets`: features that act at triggers no more than chance, and
    features that act at triggers but point to no pole. Each feature is matched by its own frequency and norm; no
    feature is used twice, and fewer sets are returned where fewer features are eligible.
    """
    places = {one.interactions.mlp.layer: place for place, one in enumerate(activity)}
    kinds: tuple[list[list[FormEdit]], list[list[FormEdit]]] = ([], [])
    for kind, sets in enumerate(kinds):
        candidates = [control_sets(one, screen)[kind] for one, screen in zip(activity, screens, strict=True)]
        left = [eligible.clone() for eligible, _ in candidates]
        for edit in edits:
            left[places[edit.layer]][edit.feature] = False
        for _ in range(n):
            controls = []
            for edit in edits:
                place = places[edit.layer]
                nearest = matched(screens[place], left[place], candidates[place][1], edit.feature, 1)
                left[place][nearest] = False
                interactions = activity[place].interactions
                controls += [FormEdit.of(interactions, one, edit.rank, edit.factor) for one in nearest]
            if len(controls) == len(edits):
                sets.append(controls)
    return kinds
