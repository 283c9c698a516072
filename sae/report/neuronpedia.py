"""Features in the JSON that SAEDashboard writes and Neuronpedia reads: batches of features; see docs/formats.md."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.interactions.activity import Side
from bilinear_circuits.interactions.examples import Band
from bilinear_circuits.report.graph_ids import shared_index
from bilinear_circuits.report.payload import plain
from sae.report.results import FeatureSummary

BATCH = 128
_N_LOGIT_BINS = 50
_TOP = -1.0  # what the format writes in place of the ends of the bin of the strongest examples
_ABSENT = (
    "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
    "correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson",
    "correlated_features_indices", "correlated_features_l1", "correlated_features_pearson",
    "decoder_weights_dist",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """What a batch says of where its features come from.

    Attributes:
        model_id: Name of the model.
        layer: Layer of the MLP.
        sae_set: Name of the set of dictionaries.
        side: Which dictionary of the layer; both share the numbers of one source, as in `report.graph_ids`.
        d_sae_out: Features of the output dictionary.
        dataset: Name of the corpus.
        n_prompts: Stories read.
        n_tokens_in_prompt: Longest of them, in tokens.
    """

    model_id: str
    layer: int
    sae_set: str
    side: Side
    d_sae_out: int
    dataset: str
    n_prompts: int
    n_tokens_in_prompt: int


def batch(source: Source, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A file of features."""
    return {
        "model_id": source.model_id,
        "layer": source.layer,
        "sae_set": source.sae_set,
        "sae_id_suffix": None,
        "features": list(features),
    }


def skipped(source: Source, features: Sequence[int]) -> dict[str, Any]:
    """The list of features without examples, which Neuronpedia shows as such; they are in no batch."""
    return {
        "model_id": source.model_id,
        "layer": str(source.layer),
        "sae_set": source.sae_set,
        "log_sparsity": None,
        "skipped_indexes": [shared_index(one, source.side, source.d_sae_out) for one in features],
    }


def feature(
    source: Source, summary: FeatureSummary, vector: Float[Tensor, " d_model"], logits: Float[Tensor, " d_vocab"] | None
) -> dict[str, Any]:
    """One feature of a batch.

    Args:
        source: Where it comes from.
        summary: The feature.
        vector: Its decoder row, along which Neuronpedia steers.
        logits: What its decoder row adds to the logits; None for an input feature, where no direct path leads there.
    """
    histogram = summary.histogram
    heights, values = ([], []) if logits is None else _bars(logits)
    document = {
        "feature_index": shared_index(summary.feature, source.side, source.d_sae_out),
        "vector": vector.tolist(),
        **{name: [] for name in _ABSENT},
        "neg_str": [token for token, _ in summary.suppressed],
        "neg_values": [value for _, value in summary.suppressed],
        "pos_str": [token for token, _ in summary.promoted],
        "pos_values": [value for _, value in summary.promoted],
        "frac_nonzero": summary.frequency,
        "freq_hist_data_bar_heights": list(histogram.counts),
        "freq_hist_data_bar_values": _centres(histogram.low, histogram.high, len(histogram.counts)),
        "logits_hist_data_bar_heights": heights,
        "logits_hist_data_bar_values": values,
        "n_prompts_total": source.n_prompts,
        "n_tokens_in_prompt": source.n_tokens_in_prompt,
        "dataset": source.dataset,
        "activations": [one for index, band in enumerate(summary.bands) for one in _activations(band, index == 0)],
    }
    return plain(document)


def _activations(band: Band, strongest: bool) -> list[dict[str, Any]]:
    ends = (_TOP, band.most, _TOP) if strongest else (band.least, band.most, band.share)
    named = dict(zip(("bin_min", "bin_max", "bin_contains"), ends, strict=True))
    return [
        {
            **named,
            "qualifying_token_index": example.centre,
            "tokens": list(example.tokens),
            "values": list(example.values),
        }
        for example in band.examples
    ]


def _bars(logits: Tensor) -> tuple[list[int], list[float]]:
    low, high = logits.min().item(), logits.max().item()
    counts = torch.histc(logits.float().cpu(), _N_LOGIT_BINS, low, high)
    return [int(count) for count in counts.tolist()], _centres(low, high, _N_LOGIT_BINS)


def _centres(low: float, high: float, n: int) -> list[float]:
    width = (high - low) / max(1, n)
    return [low + (index + 0.5) * width for index in range(n)]
