"""Discovery without a query: motifs of all output features, against nulls, with the false-discovery rate controlled."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bilinear_circuits.discovery.blocks import described
from bilinear_circuits.discovery.echoes import echoes
from bilinear_circuits.discovery.motifs import MOTIFS, TEMPLATES
from bilinear_circuits.discovery.results import Block, Discovery, DiscoverySearch, DiscoverySettings
from bilinear_circuits.discovery.scoring import LayerScores, p_values, score_layer
from bilinear_circuits.interactions.active import ActiveTokens
from bilinear_circuits.interactions.activity import FeatureActivity
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.statistics.false_discovery import q_values
from bilinear_circuits.utilities.kinds import check_kind
from bilinear_circuits.utilities.progress import Progress, silent

_MAX_ENDS = 3


@torch.no_grad()
def discover(
    interactions: Sequence[FeatureInteractions],
    activity: Sequence[FeatureActivity],
    settings: DiscoverySettings | None = None,
    seed: int = 0,
    progress: Progress = silent,
    scores: Sequence[LayerScores] | None = None,
) -> DiscoverySearch:
    """Motifs of all output features of some layers, without a query.

    1. Every feature's form is scored against every motif, in the layer and under each null (`score_layer`).
    2. P-values of all features, motifs and layers are judged together (Benjamini and Hochberg 1995).
    3. Of a feature's significant motifs the nearest is kept. It is set aside if its groups never meet.
    4. What a feature repeats of stronger ones, because of superposition, is set aside as an echo.
    5. What remains is judged once more by itself, with what is left of each score and all tests counted: a rate over
       many echoes says little about the few others.

    Args:
        interactions: Layers between their dictionaries.
        activity: Each of them on a corpus.
        settings: How the search is done.
        seed: Seed of the nulls.
        progress: Wraps the long loops.
        scores: Of each layer by `score_layer` with these settings, where they are at hand.

    Raises:
        ValueError: If a layer has no output feature that is active often enough.
    """
    settings = DiscoverySettings() if settings is None else settings
    check_kind("settings", settings, DiscoverySettings, "Leave it out for the defaults.")
    layers = scores or [
        score_layer(one, data, settings, seed, progress) for one, data in zip(interactions, activity, strict=True)
    ]
    flat = q_values(torch.cat([layer.p.flatten() for layer in layers]))
    parts = flat.split([layer.p.numel() for layer in layers])
    q = [part.view_as(layer.p) for part, layer in zip(parts, layers, strict=True)]
    # The smallest significant score of each motif, of all layers.
    lowest = torch.stack(
        [one.scores.score.where(own <= settings.fdr, torch.inf).amin(0) for one, own in zip(layers, q, strict=True)]
    ).amin(0)
    found: list[Discovery] = []
    for one, data, layer, own in zip(interactions, activity, layers, q, strict=True):
        described = _Describer(one, data.inputs, len(data.x), layer, own, settings)
        found += described.found(own <= settings.fdr, lowest)
    found.sort(key=lambda one: -one.score)
    return DiscoverySearch(
        discoveries=_judged(
            [discovery for discovery in found if discovery.meets and discovery.echo_of is None], len(flat), settings.fdr
        ),
        echoes=tuple(discovery for discovery in found if discovery.meets and discovery.echo_of is not None),
        apart=tuple(discovery for discovery in found if not discovery.meets),
        n_features=sum(len(layer.features) for layer in layers),
        n_tests=len(flat),
        cutoffs=dict(zip(MOTIFS, lowest.tolist(), strict=True)),
        high_scores=_high_scores(layers, settings),
        settings=settings,
        seed=seed,
    )


def _high_scores(layers: Sequence[LayerScores], settings: DiscoverySettings) -> dict[str, dict[str, float]]:
    """The 99 % points of the scores of each motif, in the layers and under each null."""
    parts = {"layer": torch.cat([layer.scores.score for layer in layers])}
    parts |= {null: torch.cat([layer.null[i] for layer in layers]) for i, null in enumerate(settings.nulls)}
    return {
        name: dict(
            zip(MOTIFS, (column.sort().values[int(0.99 * len(column))].item() for column in part.T), strict=True)
        )
        for name, part in parts.items()
    }


def _judged(found: Sequence[Discovery], n_tests: int, fdr: float) -> tuple[Discovery, ...]:
    """Those of some discoveries that are significant when nothing else is reported."""
    p = torch.ones(n_tests, dtype=torch.double)
    p[: len(found)] = torch.tensor([discovery.p for discovery in found], dtype=torch.double)
    q = q_values(p)[: len(found)].tolist()
    return tuple(replace(discovery, q=own) for discovery, own in zip(found, q, strict=True) if own <= fdr)


class _Describer:
    """The significant motifs of one layer in words of features."""

    def __init__(
        self,
        interactions: FeatureInteractions,
        inputs: ActiveTokens,
        n_tokens: int,
        layer: LayerScores,
        q: Float[Tensor, "feature motif"],
        settings: DiscoverySettings,
    ) -> None:
        self._interactions, self._inputs, self._n_tokens = interactions, inputs, n_tokens
        self._layer, self._q, self._settings = layer, q, settings

    def found(self, significant: Bool[Tensor, "feature motif"], lowest: Float[Tensor, " motif"]) -> list[Discovery]:
        """The nearest significant motif of every feature that has one; echoes are marked."""
        best, motif = self._layer.scores.score.where(significant, 0).max(1)
        chosen = (best > 0).nonzero().squeeze(1)
        if len(chosen) == 0:
            return []
        found = [self._describe(place, int(motif[place])) for place in chosen.tolist()]
        # A motif whose groups never meet explains nothing.
        explains = torch.tensor([discovery.meets for discovery in found], device=best.device)
        features, sae_out = self._layer.features[chosen], self._interactions.sae_out
        left, source = echoes(
            best[chosen] * explains,
            lowest[motif[chosen]],
            sae_out.W_enc[:, features].T @ sae_out.W_dec[features].T,
            self._layer.norms[chosen],
            *self._templates(chosen, motif[chosen]),
        )
        # What is left, against the null scores of the feature's own motif.
        p = p_values(left.unsqueeze(1).expand(-1, len(MOTIFS)).to(best.device), self._layer.null)
        p = p.gather(1, motif[chosen].unsqueeze(1)).squeeze(1)
        columns = (left.tolist(), p.tolist(), source.tolist())
        for place, (one, corrected, own_p, origin) in enumerate(zip(found, *columns, strict=True)):
            if one.meets:
                echo_of = None if origin < 0 else int(features[origin])
                found[place] = replace(one, corrected=corrected, p=own_p, echo_of=echo_of)
        return found

    def _templates(self, chosen: Tensor, motif: Tensor) -> tuple[Tensor, Tensor]:
        """Directions and coefficients of the templates of some features, padded to three ends."""
        groups = self._layer.scores.groups
        places = self._layer.scores.template[chosen, motif].tolist()
        directions = groups.direction.new_zeros(len(chosen), _MAX_ENDS, groups.direction.shape[-1])
        coefficients = directions.new_zeros(len(chosen), _MAX_ENDS, _MAX_ENDS)
        for row, (feature, place) in enumerate(zip(chosen.tolist(), places, strict=True)):
            blocks = TEMPLATES[place][1]
            ends = sorted({end for first, second, _ in blocks for end in (first, second)})
            directions[row, : len(ends)] = groups.direction[feature, ends]
            for first, second, sign in blocks:
                i, j = ends.index(first), ends.index(second)
                coefficients[row, i, j] = coefficients[row, j, i] = sign
        return directions, coefficients

    def _describe(self, place: int, motif: int) -> Discovery:
        scores = self._layer.scores
        value = scores.score[place, motif].item()
        plus, minus = scores.outliers[place].tolist()
        return Discovery(
            layer=self._interactions.mlp.layer,
            feature=int(self._layer.features[place]),
            motif=MOTIFS[motif],
            score=value,
            corrected=value,
            p=self._layer.p[place, motif].item(),
            q=self._q[place, motif].item(),
            blocks=self._blocks(place, int(scores.template[place, motif])),
            outliers=(plus, minus),
            echo_of=None,
        )

    def _blocks(self, place: int, template: int) -> tuple[Block, ...]:
        scores, feature = self._layer.scores, int(self._layer.features[place])
        _, blocks = TEMPLATES[template]
        ends = sorted({end for first, second, _ in blocks for end in (first, second)})
        groups = {end: scores.groups.members(place, end) for end in ends}
        strengths = {(first, second): scores.blocks[place, first, second].item() for first, second, _ in blocks}
        matrix = self._interactions.matrix(feature)
        return described(matrix, self._inputs, self._n_tokens, groups, strengths, self._settings.min_together)
