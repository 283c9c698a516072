"""Feature interactions: the interaction tensor carried into the dictionaries at the input and output of an MLP."""

from collections.abc import Sequence
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.algebra.forms import QuadraticForms
from bilinear_circuits.algebra.matrix import InteractionMatrix
from bilinear_circuits.algebra.spectra import Spectrum
from bilinear_circuits.algebra.tensor import InteractionTensor, QuadraticForm
from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.interactions.fit import LEAST_RECOVERED, check_recovered, described, sides_of
from bilinear_circuits.interactions.ledger import Ledger, PairContributions, account
from bilinear_circuits.interactions.pairs import coefficients
from bilinear_circuits.models.bilinear_mlp import BilinearMLP
from bilinear_circuits.sweep import (
    InteractionStatistics,
    LeadingSpectra,
    Order,
    Precision,
    Products,
    Statistics,
    TopInteractions,
    TopSearch,
    leading_spectra,
    sweep,
)
from bilinear_circuits.utilities.kinds import check_kind
from bilinear_circuits.utilities.progress import Progress, silent

if TYPE_CHECKING:
    from sae_lens import SAE


class FeatureInteractions:
    """An MLP between two dictionaries: every output feature as a quadratic form of the input features.

    The dictionaries may be of SAEs or of any named directions: coordinates, principal components, tokens, logits,
    neurons; see `Dictionary` and `models.directions`.

    The pre-activation of output feature f is p_f(x) = x^T Q_f x + ..., with Q_f the interaction matrix of its encoder
    direction. With x = sum_a z_a d_a (+ bias + error) its feature part is sum_ab T_ab z_a z_b, T = W_dec Q_f W_dec^T.

    Attributes:
        mlp: The bilinear MLP.
        sae_in: Dictionary of the MLP input.
        sae_out: Dictionary of the MLP output.
    """

    def __init__(
        self,
        mlp: BilinearMLP,
        sae_in: "Dictionary | SAE[Any] | None",
        sae_out: "Dictionary | SAE[Any] | None",
        *,
        least_recovered: float = LEAST_RECOVERED,
    ) -> None:
        """Fold the dictionaries and check that they belong to this layer.

        All three are brought to the widest dtype among them, on the device of the MLP.

        Args:
            mlp: The bilinear MLP.
            sae_in: Dictionary of its input; None for its coordinates.
            sae_out: Dictionary of its output; None for its coordinates.
            least_recovered: For a layer fitted to an MLP that is not bilinear, the least share of the variance of the
                MLP output that it must recover.

        Raises:
            TypeError: If `mlp` is none.
            ValueError: If a dictionary has another width than its side of the MLP, or was trained at another hook; if
                the MLP is read on the residual stream, before the norm; if a fitted layer recovers too little.
            UnsupportedSAEError: If an SAE cannot be folded; see `Dictionary.from_sae`.
        """
        check_kind(
            "mlp",
            mlp,
            BilinearMLP,
            "BilinearMLP.from_model(model, layer) reads one, GatedMLP(...).bilinear(inputs) fits one.",
        )
        if mlp.reads_residual:
            raise ValueError(
                f"mlp must read an activation after the norm, got layer {mlp.layer} on the residual stream, where"
                " pre-activations would lack the norm's scale. Use the MLP as from_model gives it."
            )
        check_recovered(mlp.approximation, mlp.layer, least_recovered)
        self.sae_in, self.sae_out = sides_of(mlp, mlp.tensor, sae_in, sae_out)
        self.mlp = mlp.to(self.sae_in.W_enc.dtype)

    def __repr__(self) -> str:
        return described("FeatureInteractions", self.mlp, self.sae_in, self.sae_out)

    @cached_property
    def pre_activation_tensor(self) -> InteractionTensor:
        """The MLP followed by the output encoder: its outputs are feature pre-activations."""
        return self.mlp.tensor.write_to(self.sae_out.W_enc, self.sae_out.b_enc)

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor]:
        tensor = self.mlp.tensor
        return self.sae_in.W_dec @ tensor.W_gate, self.sae_in.W_dec @ tensor.W_in

    def form(self, feature: int) -> QuadraticForm:
        """The pre-activation of an output feature as a polynomial of the MLP input, biases and encoder bias included.

        Raises:
            ValueError: If there is no such feature.
        """
        self.check_feature(feature)
        form = self.mlp.tensor.quadratic_form(self.sae_out.W_enc[:, feature])
        return QuadraticForm(form.matrix, form.linear, form.constant + self.sae_out.b_enc[feature])

    def matrix(self, feature: int) -> InteractionMatrix:
        """Interaction matrix T = W_dec Q W_dec^T between input features, (d_sae_in, d_sae_in), factored.

        T_ab z_a z_b, summed over both orders, is what features a and b add to the pre-activation of `feature`.

        Raises:
            ValueError: If there is no such feature.
        """
        self.check_feature(feature)
        left, right = self._factors
        return InteractionMatrix(left, right, self.pre_activation_tensor.W_out[:, feature])

    def spectrum(self, feature: int, k: int | None = None) -> Spectrum:
        """Spectrum of Q, the feature's quadratic form on the MLP input (d_in x d_in).

        An eigenvector v is read in input features as `sae_in.W_dec @ v`. The spectrum of the (d_sae_in, d_sae_in)
        matrix itself, which depends on the overlaps of decoder rows, is `matrix(feature).eigh()`.

        Args:
            feature: Output feature.
            k: Number of leading eigenpairs; all by default.

        Raises:
            ValueError: If there is no such feature.
        """
        return self.form(feature).matrix.eigh(k)

    @torch.no_grad()
    def top(
        self,
        k: int = 20,
        features: int | Sequence[int] | None = None,
        *,
        per_feature: bool = False,
        order: Order = "magnitude",
        moments: Float[Tensor, "d_sae_in d_sae_in"] | None = None,
        precision: Precision | None = None,
        progress: Progress = silent,
    ) -> TopInteractions:
        """The k largest interactions, self and cross, each pair once: exact, over the whole tensor or a part of it.

        Coarse products find candidates, a bound on their error makes sure that none is missed, and what is returned
        was computed in the precision of the layer. Memory: 256 MB of coarse numbers (4 GB on a
        GPU) and 1 GB of forms, or what one output feature takes.

        Args:
            k: How many.
            features: Output features to search; all by default.
            per_feature: The k largest of each output feature, instead of the k largest of all.
            order: Largest by "magnitude", or only "positive" or "negative" coefficients.
            moments: E[z_a z_b], such as `LayerActivity.second_moments`: weighs each interaction by how much its two
                inputs are active together.
            precision: Precision of the coarse products, "bfloat16" or "float32"; by default the faster one here.
            progress: Wraps the blocks.

        Raises:
            ValueError: If there is no such feature, `k` is not positive, or `moments` does not fit.
        """
        products = self.products(
            features, precision="float32" if precision is None and moments is not None else precision
        )
        search = TopSearch(products, k, per_feature, order, moments)
        sweep(products, [search], progress)
        return search.result()

    @torch.no_grad()
    def spectra(
        self, k: int = 4, features: Sequence[int] | None = None, *, full: bool = False, progress: Progress = silent
    ) -> LeadingSpectra:
        """The k leading eigenpairs of the forms on the MLP input of many output features, with their residuals.

        By Lanczos iterations in step; see `algebra.leading.leading_spectra`.

        Args:
            k: Eigenpairs of each, largest magnitude first, signs kept.
            features: Output features; all by default.
            full: Decompose every form in full instead, which checks the iterations and takes several times longer.
            progress: Wraps the groups of features.

        Raises:
            ValueError: If there is no such feature, or `k` is not between 1 and d_in.
        """
        products = self.products(features)
        # Eigenvalues to 1e-6 need no more; a full decomposition is the check.
        sums = torch.float64 if full else torch.float32
        forms = QuadraticForms(self.mlp.tensor, self.sae_out.W_enc[:, products.outputs], sums)
        iterate = False if full else None
        groups = progress(products.groups, "spectra")
        return LeadingSpectra.cat([leading_spectra(forms(group).Q, k, iterate=iterate) for group in groups])

    @torch.no_grad()
    def statistics(
        self, features: Sequence[int] | None = None, *, precision: Precision | None = None, progress: Progress = silent
    ) -> InteractionStatistics:
        """Moments, histograms and mass of all interactions, from one sweep.

        Raises:
            ValueError: If there is no such feature.
        """
        products = self.products(features, precision)
        statistics = Statistics(products)
        sweep(products, [statistics], progress)
        return statistics.result()

    def products(self, features: int | Sequence[int] | None = None, precision: Precision | None = None) -> Products:
        """Prepare what a sweep over the whole tensor reads; see `bilinear_circuits.sweep`.

        Raises:
            ValueError: If there is no such feature.
        """
        chosen = [features] if isinstance(features, int) else features
        if chosen is not None and len(chosen) == 0:
            raise ValueError("features must name at least one output feature, got none.")
        for feature in () if chosen is None else chosen:
            self.check_feature(feature)
        outputs = None if chosen is None else torch.tensor(list(chosen), dtype=torch.long)
        return Products(self.mlp.tensor, self.sae_in.W_dec, self.sae_out.W_enc, outputs, precision)

    @torch.no_grad()
    def ledger(self, x: Float[Tensor, "*n d_in"], feature: int) -> Ledger:
        """The complete account of a feature's pre-activation at MLP inputs x: every term, in float64.

        Args:
            x: Activations at `mlp.hook_in`.
            feature: Output feature.

        Returns:
            Named terms; `.total` is the pre-activation before TopK or ReLU, `.active` whether these let it through.

        Raises:
            ValueError: If there is no such feature, or the rows of x do not have d_in entries.
        """
        self._check_input(x)
        z = self.sae_in.encode(x.to(self.sae_in.W_enc.dtype))
        features = z.double() @ self.sae_in.W_dec.double()
        form = self.form(feature)
        if self.mlp.approximation is not None:  # its remainder is exact to the last digit of float64
            whole = self._wide_mlp.tensor.quadratic_form(self.sae_out.W_enc[:, feature].double())
            form = QuadraticForm(whole.matrix, whole.linear, whole.constant + self.sae_out.b_enc[feature].double())
        active = self.sae_out.encode(self.mlp(x.to(self.sae_out.W_enc.dtype)))[..., feature] != 0
        remainder = None if self.mlp.approximation is None else self.gate_remainder(x, feature)
        return account(form, x, features, self.sae_in.b_dec, active, remainder)

    @torch.no_grad()
    def gate_remainder(self, x: Float[Tensor, "*n d_in"], feature: int) -> Float[Tensor, "*n"]:
        """What the form of a feature misses at MLP inputs x, in float64: 0 unless the layer is a fit to another.

        The pre-activation that the model's own MLP gives, less that of the fitted layer: summed over neurons, what the
        function on a gate is more than the polynomial in its place.

        Raises:
            ValueError: If there is no such feature, or the rows of x do not have d_in entries.
        """
        self.check_feature(feature)
        return self.missed(x) @ self.sae_out.W_enc[:, feature].double()

    @torch.no_grad()
    def missed(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_out"]:
        """What the model's own MLP writes at inputs x, less what the layer does, in float64: 0 unless it is a fit.

        Raises:
            ValueError: If the rows of x do not have d_in entries.
        """
        self._check_input(x)
        if self.mlp.approximation is None:
            return x.new_zeros((*x.shape[:-1], self.mlp.tensor.d_out), dtype=torch.double)
        mlp, rows = self._wide_mlp, x.double()
        return mlp(rows) - mlp.tensor(rows)

    @cached_property
    def _wide_mlp(self) -> BilinearMLP:
        return self.mlp.to(torch.float64)

    @torch.no_grad()
    def pair_contributions(self, x: Float[Tensor, " d_in"], feature: int) -> PairContributions:
        """Divide what a feature gets at one MLP input among the pairs of active input features.

        O(n^2 d_mlp) for n active input features.

        Raises:
            ValueError: If there is no such feature, or `x` is not one row of d_in entries.
        """
        self._check_input(x)
        if x.ndim != 1:
            raise ValueError(f"x must be one row of d_in={self.mlp.tensor.d_in} entries, got {tuple(x.shape)}.")
        z = self.sae_in.encode(x.to(self.sae_in.W_enc.dtype))
        active = z.nonzero().squeeze(1)
        block = self.matrix(feature).block(active, active).double()
        i, j = torch.triu_indices(len(active), len(active), device=z.device)
        weights = coefficients(block[i, j], i, j)
        contributions = weights * z[active[i]].double() * z[active[j]].double()
        order = contributions.abs().argsort(descending=True)
        return PairContributions(active[i][order], active[j][order], weights[order], contributions[order])

    def check_feature(self, feature: int) -> None:
        """Refuse a feature that the output dictionary does not have.

        Raises:
            ValueError: If there is no such feature.
        """
        if isinstance(feature, bool) or not isinstance(feature, Integral) or not 0 <= feature < self.sae_out.d_sae:
            raise ValueError(
                f"feature must be between 0 and {self.sae_out.d_sae - 1}, one of the output dictionary"
                f" {self.sae_out.name}, got {feature!r}."
            )

    def _check_input(self, x: Tensor) -> None:
        if x.shape[-1:] != (self.mlp.tensor.d_in,):
            raise ValueError(f"x must end in d_in={self.mlp.tensor.d_in} entries, got shape {tuple(x.shape)}.")
