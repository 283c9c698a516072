"""Everything a page about one output feature shows: spectrum, input groups, scatter, examples, completeness."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.algebra.forms import QuadraticForms
from bilinear_circuits.algebra.spectra import Spectrum
from bilinear_circuits.algebra.tensor import QuadraticForm
from bilinear_circuits.data.token_texts import TokenTexts
from bilinear_circuits.interactions.active import top_token_ids
from bilinear_circuits.interactions.active_features import ActiveFeatures
from bilinear_circuits.interactions.activity import LayerActivity
from bilinear_circuits.interactions.examples import Example, ExampleFinder, evenly
from bilinear_circuits.interactions.ledger import Ledger
from bilinear_circuits.interactions.naming import all_labels, made_label
from bilinear_circuits.interactions.shape import AndShape, and_shape
from bilinear_circuits.statistics.correlations import pearson
from bilinear_circuits.utilities.display import Brief, Drawn
from bilinear_circuits.utilities.feature import OfFeature

_TOKENS_PER_CHUNK = 8192
_SCATTER_POINTS = 400
_LEDGER_TOKENS = 400
_FORMS_TOGETHER = 32


@dataclass(frozen=True, eq=False, repr=False)
class FeatureProfile(OfFeature, Drawn):
    """One output feature of a layer, measured on a corpus.

    Attributes:
        layer: Layer of the MLP.
        feature: Output feature.
        frequency: Share of tokens at which it is active.
        top_tokens: Tokens that tell most about its activation.
        promoted: Tokens its decoder row raises most through the unembedding, with logits.
        suppressed: Tokens it lowers most.
        spectrum: Full spectrum of its form on the MLP input.
        shape: Its two groups of input features.
        input_labels: Names of the input features of the two groups, by their top tokens, first group then second.
        projections: Every input feature's decoder row on the two leading eigenvectors, which are turned so that the
            activation-weighted mean of the MLP input has positive products with them.
        eigenvector_labels: For each of the two eigenvectors, the input features with the largest |d . v| x usage:
            (feature, label, d . v).
        predicted: Rank-2 form at a sample of the active tokens.
        actual: Activation at the same tokens.
        rank2_correlation: Over all active tokens.
        terms: Mean of every term of the ledger over a sample of at most 400 active tokens.
        completeness: Median over the same sample of the share of the pre-activation that pairs of input features
            explain.
        examples: From the whole range of activation, strongest first.
        label: Its name: the one fixed for it, or by default made of its top tokens.
    """

    layer: int
    feature: int
    frequency: float
    top_tokens: tuple[str, ...]
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    spectrum: Spectrum
    shape: AndShape
    input_labels: tuple[str, ...]
    projections: Float[Tensor, "d_sae_in 2"]
    eigenvector_labels: tuple[tuple[tuple[int, str, float], ...], ...]
    predicted: Float[Tensor, " n"]
    actual: Float[Tensor, " n"]
    rank2_correlation: float
    terms: dict[str, float]
    completeness: float
    examples: tuple[Example, ...]
    label: str = ""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", made_label(self.top_tokens))


@torch.no_grad()
def profile_feature(
    activity: LayerActivity,
    feature: int,
    unembedding: Float[Tensor, "d_model d_vocab"],
    tokenizer: Any,
    n_tokens: int = 10,
    n_examples: int = 9,
) -> FeatureProfile:
    """Measure one output feature. For many, one `Profiler` computes once what they share.

    Args:
        activity: Its layer on a corpus.
        feature: Output feature.
        unembedding: Unembedding with the final norm weight folded in.
        tokenizer: Gives token ids their text.
        n_tokens: Tokens listed as promoted and suppressed.
        n_examples: Examples shown.

    Raises:
        ValueError: If there is no such feature, or it is active at fewer than two tokens of the corpus.
    """
    activity.interactions.check_feature(feature)
    check_active(activity, feature)
    profiler = Profiler(activity, unembedding, TokenTexts(tokenizer), [feature])
    (form,) = profiler.forms([feature])
    return profiler.profile(form, n_tokens, n_examples)


def check_active(activity: LayerActivity, feature: int) -> None:
    """Refuse a feature that a correlation cannot be measured of.

    Raises:
        ValueError: If it is active at fewer than two tokens.
    """
    if (n_active := int(activity.outputs.counts[feature])) < 2:
        raise ValueError(
            f"feature must be active at two tokens of the corpus or more, got {feature} of layer"
            f" {activity.interactions.mlp.layer}, active at {n_active} of {len(activity.x)}. Use a larger corpus."
        )


@dataclass(frozen=True, eq=False, repr=False)
class FeatureForm(Brief):
    """The quadratic form of one output feature, dense, and its spectrum.

    Attributes:
        feature: Output feature.
        Q: Interaction matrix of its encoder direction.
        spectrum: All eigenpairs of Q.
    """

    feature: int
    Q: Float[Tensor, "d_in d_in"]
    spectrum: Spectrum


class Profiler:
    """Measures many output features of a layer.

    Input labels, activations in rows and the forms' common parts are computed once; each feature then takes one
    decomposition of its form and work in proportion to its active tokens.

    Attributes:
        activity: The layer on a corpus.
        texts: Texts of token ids.
        rows: Activations of the input dictionary by token.
    """

    @torch.no_grad()
    def __init__(
        self,
        activity: LayerActivity,
        unembedding: Float[Tensor, "d_model d_vocab"],
        texts: TokenTexts,
        features: Sequence[int],
    ) -> None:
        """Prepare what the features share.

        Args:
            activity: Their layer on a corpus.
            unembedding: Unembedding with the final norm weight folded in.
            texts: Texts of token ids.
            features: Output features that may be asked for.
        """
        self.activity, self.texts = activity, texts
        interactions = activity.interactions
        self._unembedding = unembedding.to(interactions.sae_out.W_dec.dtype)
        self._place = {feature: place for place, feature in enumerate(features)}
        directions = interactions.sae_out.W_enc[:, list(features)]
        self._forms = QuadraticForms(interactions.mlp.tensor, directions)
        self._token_ids = activity.token_ids
        self.rows = ActiveFeatures.of(activity.inputs, len(activity.x))

    @cached_property
    def input_labels(self) -> tuple[str, ...]:
        """Names of all input features."""
        return all_labels(self.activity, self.texts, "in")

    @torch.no_grad()
    def forms(self, features: Sequence[int]) -> Iterator[FeatureForm]:
        """Forms of some of the features, decomposed a group at a time."""
        for start in range(0, len(features), _FORMS_TOGETHER):
            some = features[start : start + _FORMS_TOGETHER]
            device = self.activity.x.device
            Q = self._forms(torch.tensor([self._place[feature] for feature in some], device=device)).Q
            spectra = Spectrum.of_dense(Q)
            for index, feature in enumerate(some):
                yield FeatureForm(feature, Q[index], spectra[index])

    @torch.no_grad()
    def profile(self, form: FeatureForm, n_tokens: int = 10, n_examples: int = 9) -> FeatureProfile:
        """Measure one feature, active at two tokens or more.

        Args:
            form: Its form.
            n_tokens: Tokens listed as promoted and suppressed.
            n_examples: Examples shown.

        Raises:
            ValueError: If it is active at fewer than two tokens.
        """
        activity, interactions, feature = self.activity, self.activity.interactions, form.feature
        check_active(activity, feature)
        token, value = activity.outputs[feature]
        x = activity.x[token]
        spectrum = _turned_to(value @ x, form.spectrum)
        usage = self.rows.mean_magnitudes(token).to(interactions.sae_in.W_dec.dtype)
        shape = and_shape(activity, feature, spectrum, usage=usage)
        own = interactions.mlp.tensor.quadratic_form(interactions.sae_out.W_enc[:, feature])
        predicted = spectrum.truncate(2)(x) + x @ own.linear
        sample = evenly(len(token), _SCATTER_POINTS)
        ledger = self._ledger(form.Q, own, token[evenly(len(token), _LEDGER_TOKENS)], feature)
        projections = interactions.sae_in.W_dec @ spectrum.eigenvectors[:, :2]
        logits = interactions.sae_out.W_dec[feature] @ self._unembedding
        top_tokens = tuple(map(self.texts, top_token_ids(activity.outputs, self._token_ids, feature, 5)))
        return FeatureProfile(
            layer=interactions.mlp.layer,
            feature=feature,
            label=interactions.sae_out.names.get(feature) or made_label(top_tokens),
            frequency=len(token) / len(activity.x),
            top_tokens=top_tokens,
            promoted=self._extreme_tokens(logits, n_tokens),
            suppressed=self._extreme_tokens(-logits, n_tokens, -1),
            spectrum=spectrum,
            shape=shape,
            input_labels=tuple(self.input_labels[one] for one in torch.cat([shape.first, shape.second]).tolist()),
            projections=projections,
            eigenvector_labels=tuple(self._eigenvector_labels(usage, column) for column in projections.T),
            predicted=predicted[sample],
            actual=value[sample],
            rank2_correlation=pearson(predicted.unsqueeze(1), value).item(),
            terms={name: term.mean().item() for name, term in ledger.terms.items()},
            completeness=ledger.completeness.median().item(),
            examples=self._examples(token, value, n_examples),
        )

    def _ledger(self, Q: Tensor, own: QuadraticForm, token: Tensor, feature: int) -> Ledger:
        """The account of a pre-activation, as `FeatureInteractions.ledger` gives it, from the dense form.

        Forms are dense here and the dictionary's activations are known: d_in^2 operations per token instead of d_in
        d_mlp and an encoding.
        """
        interactions, sae_in = self.activity.interactions, self.activity.interactions.sae_in
        fitted = interactions.mlp.approximation is not None
        matrix, linear = Q.double(), own.linear.double()
        x = self.activity.x[token].double()
        features = self.rows.decoded(token, self._decoder)
        bias = sae_in.b_dec.double()
        error = x - features - bias
        along_bias, of_features, of_error = matrix @ bias, features @ matrix, error @ matrix
        constant = own.constant + interactions.sae_out.b_enc[feature]
        return Ledger(
            feature_feature=(of_features * features).sum(1),
            feature_bias=2 * features @ along_bias,
            feature_error=2 * (of_features * error).sum(1),
            bias_bias=(bias @ along_bias).expand(len(x)),
            bias_error=2 * error @ along_bias,
            error_error=(of_error * error).sum(1),
            feature_linear=features @ linear,
            bias_linear=(bias @ linear).expand(len(x)),
            error_linear=error @ linear,
            constant=constant.double().expand(len(x)),
            active=torch.ones(len(x), dtype=torch.bool, device=x.device),
            gate_remainder=self._missed[token] @ interactions.sae_out.W_enc[:, feature].double() if fitted else None,
        )

    @cached_property
    def _missed(self) -> Float[Tensor, "token d_out"]:
        """What the MLP writes at every token more than the layer fitted to it."""
        parts = self.activity.x.split(_TOKENS_PER_CHUNK)
        return torch.cat([self.activity.interactions.missed(part) for part in parts])

    @cached_property
    def _decoder(self) -> Float[Tensor, "d_sae_in d_in"]:
        return self.activity.interactions.sae_in.W_dec.double()

    def _extreme_tokens(self, logits: Tensor, n: int, sign: int = 1) -> tuple[tuple[str, float], ...]:
        best = logits.topk(min(n, len(logits)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return tuple((self.texts(token_id), sign * logit) for token_id, logit in pairs)

    def _eigenvector_labels(self, usage: Tensor, projection: Tensor, n: int = 10) -> tuple[tuple[int, str, float], ...]:
        """Input features that move along an eigenvector most while the output feature is active."""
        best = (usage * projection.abs()).topk(min(n, len(projection))).indices.tolist()
        return tuple((one, self.input_labels[one], projection[one].item()) for one in best)

    def _examples(self, token: Tensor, value: Tensor, n: int) -> tuple[Example, ...]:
        """Examples at evenly spaced quantiles of activation, strongest first."""
        return ExampleFinder(self.activity, token, value, self.texts).find(n) if n else ()


def _turned_to(centre: Float[Tensor, " d"], spectrum: Spectrum) -> Spectrum:
    """Turn eigenvectors, whose sign is arbitrary, to have a positive product with a direction."""
    signs = torch.where(centre @ spectrum.eigenvectors < 0, -1, 1)
    return replace(spectrum, eigenvectors=spectrum.eigenvectors * signs)
