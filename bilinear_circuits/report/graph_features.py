"""Details of the features of an attribution graph, as the pages of circuit-tracer and Neuronpedia read them.

circuit-tracer's page asks for one JSON file for each feature, named by the Cantor pair of its layer and number. Names
beginning with "./data/" are read from the folder that its server opens, and from nowhere else.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.data.token_texts import TokenTexts
from bilinear_circuits.interactions.activity import LayerActivity, Side
from bilinear_circuits.interactions.examples import Band, Example, ExampleFinder, bands, histogram
from bilinear_circuits.report.graph_ids import cantor_pair, shared_index
from bilinear_circuits.report.payload import plain

_N_LOGITS, _N_QUANTILES = 10, 100
_INSIDE = "##"  # WordPiece: the token goes on with a word


def details_scan(name: str) -> str:
    """The scan of a graph whose feature details lie in `features/name` of the folder that circuit-tracer opens."""
    return f"./data/features/{name}"


def neuronpedia_document(document: Mapping[str, Any], model_id: str, source_set: str) -> dict[str, Any]:
    """Change a graph for an upload to Neuronpedia, whose page looks for dashboards of its own.

    Args:
        document: A graph as `graph_payload` makes it.
        model_id: The model's name on Neuronpedia; it stands where circuit-tracer has the scan.
        source_set: Name of the dictionaries there: features of layer L are looked for under L-source_set.
    """
    details = {"neuronpedia_source_set": source_set}
    return {**document, "metadata": {**document["metadata"], "scan": model_id, "feature_details": details}}


class DetailMaker:
    """Makes the details of the features of one layer."""

    def __init__(self, activity: LayerActivity, unembedding: Float[Tensor, "d_model d_vocab"], tokenizer: Any) -> None:
        """Take in the layer on a corpus.

        Args:
            activity: The layer on a corpus.
            unembedding: Unembedding with the final norm weight folded in.
            tokenizer: Gives token ids their text.
        """
        self._activity, self._texts = activity, TokenTexts(tokenizer)
        self._unembedding = unembedding

    @torch.no_grad()
    def detail(self, feature: int, side: Side) -> tuple[int, dict[str, Any]]:
        """The number of a feature's file, and what is in it."""
        interactions = self._activity.interactions
        dictionary, active = self._activity.of_side(side)
        token, value = active[feature]
        finder = ExampleFinder(self._activity, token, value, self._texts)
        index = shared_index(feature, side, interactions.sae_out.d_sae)
        document = {
            "transcoder_id": dictionary.name,
            "index": index,
            "examples_quantiles": [_quantile(band) for band in bands(finder, value)] if len(token) else [],
            **self._logits(dictionary.W_dec[feature], side),
            **_distribution(value),
            "activation_frequency": len(token) / max(1, len(self._activity.x)),
        }
        return cantor_pair(interactions.mlp.layer, index), plain(document)

    def _logits(self, row: Float[Tensor, " d_model"], side: Side) -> dict[str, list[str]]:
        """Tokens promoted and suppressed; none for an input feature, from which no direct path leads to the logits."""
        if side == "in":
            return {"top_logits": [], "bottom_logits": []}
        logits = row @ self._unembedding.to(row)
        n = min(_N_LOGITS, len(logits))
        ends = {"top_logits": logits.topk(n).indices, "bottom_logits": (-logits).topk(n).indices}
        return {name: [self._texts(token_id) for token_id in ids.tolist()] for name, ids in ends.items()}


def _quantile(band: Band) -> dict[str, Any]:
    name = f"activation {band.least:.3g} to {band.most:.3g} ({100 * band.share:.0f} % of active tokens)"
    return {"quantile_name": name, "examples": [_example(example) for example in band.examples]}


def _example(one: Example) -> dict[str, Any]:
    return {
        "tokens": _spaced(one.tokens),
        "tokens_acts_list": list(one.values),
        "train_token_ind": one.centre,
        "is_repeated_datapoint": False,
    }


def _spaced(tokens: Sequence[str]) -> list[str]:
    """Tokens that read as text one after the other, as the page writes them: with spaces between words."""
    if any(token.startswith(" ") for token in tokens):
        return list(tokens)
    return [token[len(_INSIDE) :] if token.startswith(_INSIDE) else f" {token}" for token in tokens]


def _distribution(value: Float[Tensor, " n"]) -> Mapping[str, Any]:
    """Ends and histogram of the activations; nothing where there are none, for which the page has defaults."""
    if len(value) == 0:
        return {}
    counts = histogram(value)
    share = torch.arange(1, _N_QUANTILES + 1, dtype=torch.double) / _N_QUANTILES
    return {
        "act_min": counts.low,
        "act_max": counts.high,
        "quantile_values": value.double().cpu().quantile(share).tolist(),
        "histogram": list(counts.counts),
    }
