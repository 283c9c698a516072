"""What is said of any feature of a dictionary: when it is active, what it writes, which others are near."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.data.token_texts import TokenTexts
from bilinear_circuits.interactions.activity import LayerActivity, Side
from bilinear_circuits.interactions.examples import ExampleFinder, bands, histogram
from bilinear_circuits.interactions.naming import all_top_tokens
from sae.report.results import DENSE, RARE, FeatureSummary, State

_N_TOKENS, _N_TOP_TOKENS, _N_NEIGHBOURS = 10, 6, 10
_TOGETHER = 64


class SummaryMaker:
    """Makes the summaries of one dictionary: tokens of all features at once, the rest a group at a time."""

    @torch.no_grad()
    def __init__(
        self,
        activity: LayerActivity,
        side: Side,
        texts: TokenTexts,
        unembedding: Float[Tensor, "d_model d_vocab"],
        labels: Sequence[str],
    ) -> None:
        """Find the tokens of all features.

        Args:
            activity: The layer on a corpus.
            side: Input or output dictionary.
            texts: Texts of token ids.
            unembedding: Unembedding with the final norm weight folded in; read for the output side only.
            labels: Names of all features.
        """
        self._activity, self._side, self._texts = activity, side, texts
        dictionary, self._active = activity.of_side(side)
        self._W_dec = dictionary.W_dec
        self._unit = self._W_dec / self._W_dec.norm(dim=1, keepdim=True).clamp_min(torch.finfo(self._W_dec.dtype).tiny)
        self._unembedding = unembedding.to(self._W_dec)
        token_ids = activity.token_ids
        self._labels = labels
        ids, shares = all_top_tokens(self._active, token_ids, _N_TOP_TOKENS)
        self._top_ids, self._top_shares = ids.tolist(), shares.tolist()

    @torch.no_grad()
    def summaries(self, features: Sequence[int]) -> Iterator[FeatureSummary]:
        """Cards of some features, in their order."""
        for start in range(0, len(features), _TOGETHER):
            some = torch.tensor(list(features[start : start + _TOGETHER]), device=self._W_dec.device)
            near = self._neighbours(some)
            written = self._written(some)
            for index, feature in enumerate(some.tolist()):
                yield self._card(feature, near[index], *written[index])

    def _card(self, feature: int, near: tuple, promoted: tuple, suppressed: tuple) -> FeatureSummary:
        token, value = self._active[feature]
        n_active, n_tokens = len(token), len(self._activity.x)
        tops = zip(self._top_ids[feature], self._top_shares[feature], strict=True)
        return FeatureSummary(
            feature=feature,
            label=self._labels[feature],
            top_tokens=tuple((self._texts(token_id), share) for token_id, share in tops if token_id >= 0),
            n_active=n_active,
            n_tokens=n_tokens,
            mean=value.mean().item() if n_active else 0.0,
            strongest=value[value.abs().argmax()].item() if n_active else 0.0,
            state=state_of(n_active, n_tokens),
            histogram=histogram(value),
            promoted=promoted,
            suppressed=suppressed,
            neighbours=near,
            bands=bands(ExampleFinder(self._activity, token, value, self._texts), value) if n_active else (),
        )

    def _neighbours(self, features: Tensor) -> list[tuple[tuple[int, float], ...]]:
        cosine = self._unit[features] @ self._unit.T
        cosine[torch.arange(len(features)), features] = 0
        best = cosine.abs().topk(min(_N_NEIGHBOURS, len(self._unit) - 1)).indices
        rows = zip(best.tolist(), cosine.gather(1, best).tolist(), strict=True)
        return [tuple(zip(*row, strict=True)) for row in rows]

    def _written(self, features: Tensor) -> list[tuple[tuple, tuple]]:
        """Tokens promoted and suppressed; none on the input side, where no direct path leads to the logits."""
        if self._side == "in":
            return [((), ())] * len(features)
        logits = self._W_dec[features] @ self._unembedding
        n = min(_N_TOKENS, logits.shape[1])
        ends = []
        for sign in (1, -1):
            best = (sign * logits).topk(n)
            rows = zip(best.indices.tolist(), (sign * best.values).tolist(), strict=True)
            ends.append([tuple((self._texts(one), logit) for one, logit in zip(*row, strict=True)) for row in rows])
        return list(zip(*ends, strict=True))


def state_of(n_active: int, n_tokens: int) -> State:
    """Classify a feature as dead, rare or dense on a corpus."""
    if n_active == 0:
        return "dead"
    if n_active > DENSE * n_tokens:
        return "dense"
    return "rare" if n_active <= RARE else ""
