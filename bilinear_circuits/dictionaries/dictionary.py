"""Dictionaries: any SAELens SAE as four plain tensors and an activation rule, proved equal to the SAE."""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.dictionaries.names import read_names
from bilinear_circuits.utilities.display import Brief, Shown
from bilinear_circuits.utilities.folders import by_library, check_safetensors, read_json

if TYPE_CHECKING:
    from sae_lens import SAE

_FOLD_TOLERANCE = 1e-8
_INPUT_DEPENDENT = ("layer_norm", "constant_norm_rescale")
_FOLDABLE = {
    "expected_average_only_in": "sae.fold_activation_norm_scaling_factor(factor)",
    "covariance_whitening": "sae.fold_activation_whitening(mean, whitening_matrix, unwhitening_matrix)",
}


class UnsupportedSAEError(ValueError):
    """The SAE is not one affine encoder, a sparsity rule and one affine decoder."""


@dataclass(frozen=True, eq=False, repr=False)
class Activation(Brief):
    """The sparsity rule of a dictionary, applied to pre-activations.

    Attributes:
        kind: "relu"; "jumprelu" (ReLU above `threshold`, else 0); "topk" (ReLU of the k largest of a row);
            "abstopk" (the k largest in magnitude, sign kept).
        k: Number kept per row, for the two top-k rules.
        threshold: Threshold of each feature, for "jumprelu".
    """

    kind: Literal["relu", "jumprelu", "topk", "abstopk"]
    k: int | None = None
    threshold: Float[Tensor, " d_sae"] | None = None

    def __post_init__(self) -> None:
        needed = {"relu": None, "jumprelu": "threshold", "topk": "k", "abstopk": "k"}
        if self.kind not in needed:
            raise ValueError(f"kind must be one of {', '.join(needed)}, got {self.kind!r:.40}.")
        for name in ("k", "threshold"):
            if (getattr(self, name) is not None) != (needed[self.kind] == name):
                must = "be given" if needed[self.kind] == name else "be left out"
                raise ValueError(f"{name} must {must} for the kind {self.kind}, got {getattr(self, name)!r:.60}.")
        if self.k is not None and (isinstance(self.k, bool) or self.k < 1):
            raise ValueError(f"k must be at least 1, got {self.k}.")

    def __call__(self, pre: Float[Tensor, "*n d_sae"]) -> Float[Tensor, "*n d_sae"]:
        """Zero what the rule drops."""
        if self.kind == "relu":
            return pre.relu()
        if self.kind == "jumprelu":
            assert self.threshold is not None
            return pre.relu() * (pre > self.threshold)
        assert self.k is not None
        indices = (pre.abs() if self.kind == "abstopk" else pre).topk(self.k, dim=-1, sorted=False).indices
        values = pre.gather(-1, indices)
        return torch.zeros_like(pre).scatter(-1, indices, values if self.kind == "abstopk" else values.relu())


@dataclass(frozen=True, eq=False, repr=False)
class Dictionary(Shown):
    """A sparse dictionary: z = activation(x W_enc + b_enc), x ~ z W_dec + b_dec.

    `from_sae` folds everything an SAE does around these (decoder bias on the input, decoder-norm rescaling, gates)
    into the tensors, so that `encode` and `decode` equal the SAE's own. Feature units are therefore the SAE's own
    too; `unit_norm()` gives the equivalent dictionary with decoder rows of norm 1.

    Attributes:
        W_enc: Encoder; column a reads feature a.
        b_enc: Encoder bias, with the contribution of the decoder bias folded in.
        W_dec: Decoder; row a writes feature a.
        b_dec: Decoder bias.
        activation: Sparsity rule.
        hook_name: Where the dictionary was trained, for instance "blocks.3.mlp.hook_in", where known.
        name: A name for reports and error messages.
        names: Fixed names of features, by number: those stored with the dictionary, and those given. The others are
            named by the tokens they are active at.
    """

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]
    activation: Activation
    hook_name: str | None = None
    name: str = "dictionary"
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        d_in, d_sae = self.W_enc.shape
        shapes = {"W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)}
        for field, shape in shapes.items():
            if (got := tuple(getattr(self, field).shape)) != shape:
                raise ValueError(f"{field} must be {shape} to match W_enc, ({d_in=}, {d_sae=}), got {got}.")
        k, threshold = self.activation.k, self.activation.threshold
        if k is not None and k > d_sae:
            raise ValueError(f"k must be at most the {d_sae} features of {self.name}, got {k}.")
        if threshold is not None and threshold.shape != (d_sae,):
            raise ValueError(f"threshold must have d_sae={d_sae} entries, got {tuple(threshold.shape)}.")
        for field in ("W_enc", *shapes):
            if n_bad := int((~getattr(self, field).isfinite()).sum()):
                raise ValueError(f"{field} of {self.name} must be finite, got {n_bad} infinite or undefined entries.")
        if threshold is not None and threshold.isnan().any():
            raise ValueError(f"threshold of {self.name} must be numbers, got {int(threshold.isnan().sum())} undefined.")

    @classmethod
    def from_sae(cls, sae: "SAE[Any]", name: str | None = None) -> "Dictionary":
        """Fold a SAELens SAE into encoder rows, decoder rows and biases, and prove it on random input.

        The result is in the dtype of the SAE, or in float32 where that is half precision: folded biases and thresholds
        are sums that half precision would round.

        Folded exactly: TopK and AbsTopK (with or without `rescale_acts_by_decoder_norm`), ReLU ("standard"), JumpReLU,
        BatchTopK and Matryoshka (through the JumpReLU they are saved as), gated (whose gate, tied to the magnitude
        path, is a threshold on it: theta = b_mag - exp(r_mag) b_gate).

        Args:
            sae: An SAE for inference, or one in training, which is read through its inference form.
            name: Name for reports; the hook name by default.

        Raises:
            UnsupportedSAEError: If the architecture or its input normalisation is not affine, or the folded dictionary
                does not reproduce the SAE.
        """
        sae = _inference_form(sae)
        _refuse_unsupported(sae)
        W_enc, b_enc, W_dec, activation = _fold(sae)
        if sae.cfg.apply_b_dec_to_input:
            b_enc = b_enc - sae.b_dec.detach().double() @ W_enc
        hook_name = sae.cfg.metadata.get("hook_name")
        b_dec = sae.b_dec.detach().double()
        exact = cls(W_enc, b_enc, W_dec, b_dec, activation, hook_name, name or hook_name or "dictionary")
        _prove_folding(exact, sae)
        return exact.to(torch.promote_types(sae.W_enc.dtype, torch.float32))

    @classmethod
    def load(cls, path: str | Path, name: str | None = None, device: str = "cpu") -> "Dictionary":
        """Read a SAELens folder (cfg.json, sae_weights.safetensors) and fold it; see `from_sae`.

        Raises:
            FileNotFoundError: If the folder or one of its two files is missing.
            ValueError: If cfg.json is not a SAELens configuration.
        """
        folder = Path(path)
        for file in ("cfg.json", "sae_weights.safetensors"):
            if not (folder / file).is_file():
                raise FileNotFoundError(f"{folder} must be a SAELens folder, but has no {file}.")
        config = read_json(folder / "cfg.json", "cfg.json")
        check_safetensors(folder / "sae_weights.safetensors")
        with by_library("dictionary must be a SAELens folder that SAELens can load", folder):
            # SAELens drops the metadata of a folder that does not name the version that wrote it.
            hook_name = (config.get("metadata") or {}).get("hook_name") or config.get("hook_name")
            sae = _load_sae(folder, config, device)
        dictionary = cls.from_sae(sae, name or folder.name)
        return replace(dictionary, hook_name=hook_name, names=read_names(folder, dictionary.d_sae))

    @property
    def d_in(self) -> int:
        """Width of the activations the dictionary reads."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.W_enc.shape[1]

    def pre_activations(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_sae"]:
        """Pre-activations x W_enc + b_enc, before the sparsity rule."""
        return x @ self.W_enc + self.b_enc

    def encode(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_sae"]:
        """Feature activations."""
        return self.activation(self.pre_activations(x))

    def decode(self, z: Float[Tensor, "*n d_sae"]) -> Float[Tensor, "*n d_in"]:
        """Reconstruction z W_dec + b_dec."""
        return z @ self.W_dec + self.b_dec

    def unit_norm(self) -> "Dictionary":
        """The same function with decoder rows of norm 1: activations are scaled by the old norms.

        Raises:
            UnsupportedSAEError: For a top-k rule on rows of different norms, where scaling would change the selection.
        """
        norm = self.W_dec.norm(dim=1).clamp_min(torch.finfo(self.W_dec.dtype).tiny)
        if self.activation.k is not None and not torch.allclose(norm, norm.mean().expand_as(norm), rtol=1e-3):
            raise UnsupportedSAEError(
                f"decoder rows of {self.name} must have equal norms for a {self.activation.kind} dictionary to be"
                f" rescaled, got norms from {norm.min():.3g} to {norm.max():.3g}: scaling would change which are kept."
            )
        threshold = None if self.activation.threshold is None else self.activation.threshold * norm
        return replace(
            self,
            W_enc=self.W_enc * norm,
            b_enc=self.b_enc * norm,
            W_dec=self.W_dec / norm.unsqueeze(1),
            activation=replace(self.activation, threshold=threshold),
        )

    def to(self, target: torch.dtype | torch.device) -> "Dictionary":
        """The same dictionary in another dtype or on another device."""
        tensors = {field: getattr(self, field).to(target) for field in ("W_enc", "b_enc", "W_dec", "b_dec")}
        threshold = None if (t := self.activation.threshold) is None else t.to(target)
        return replace(self, **tensors, activation=replace(self.activation, threshold=threshold))


def as_dictionary(sae: "Dictionary | SAE[Any]") -> Dictionary:
    """Pass a Dictionary through; fold a SAELens SAE."""
    return sae if isinstance(sae, Dictionary) else Dictionary.from_sae(sae)


def _load_sae(folder: Path, config: Mapping[str, Any], device: str) -> "SAE[Any]":
    """A SAELens SAE from its folder: its inference form, or the training form of an architecture that has no other."""
    from sae_lens import SAE
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
    from sae_lens.saes.sae import TrainingSAE

    architecture = config.get("architecture", "standard")
    training = architecture not in SAE_CLASS_REGISTRY and architecture in SAE_TRAINING_CLASS_REGISTRY
    return (TrainingSAE if training else SAE).load_from_disk(folder, device=device, dtype="float32")


def _inference_form(sae: "SAE[Any]") -> "SAE[Any]":
    """The SAE that `save_inference_model` would write, for an SAE still in training."""
    from sae_lens import SAE
    from sae_lens.saes.sae import TrainingSAE

    if not isinstance(sae, SAE):
        raise TypeError(f"sae must be a SAELens SAE or a Dictionary, got {type(sae).__name__}.")
    if not isinstance(sae, TrainingSAE):
        return sae
    config = sae.cfg.get_inference_sae_cfg_dict()
    state = {key: value.detach().clone() for key, value in sae.state_dict().items()}
    sae.process_state_dict_for_saving_inference(state)
    inference = SAE.from_dict(config)
    inference.load_state_dict(state)
    return inference


def _refuse_unsupported(sae: "SAE[Any]") -> None:
    architecture, normalisation = sae.cfg.architecture(), sae.cfg.normalize_activations
    supported = ("standard", "topk", "abstopk", "jumprelu", "gated")
    if "transcoder" in architecture:
        raise UnsupportedSAEError(
            f"sae must decode the place it encodes, got a {architecture}: it reads one hook and writes another, so that"
            " what it writes are no directions of what it reads. Train a dictionary on each side of the MLP."
        )
    if architecture not in supported:
        raise UnsupportedSAEError(
            f"sae must be one affine encoder and decoder ({', '.join(supported)}; batchtopk and matryoshka as saved),"
            f" got architecture {architecture!r}, which has no encoder row per feature."
        )
    if normalisation in _INPUT_DEPENDENT:
        raise UnsupportedSAEError(
            f"sae must read activations as they are, got normalize_activations={normalisation!r}, which rescales each"
            " row by its own norm: no fixed encoder row does that. Train with normalize_activations='none'."
        )
    if normalisation in _FOLDABLE:
        raise UnsupportedSAEError(
            f"sae must have its activation scaling folded in, got normalize_activations={normalisation!r}."
            f" Call {_FOLDABLE[normalisation]} first."
        )
    if sae.cfg.reshape_activations != "none":
        raise UnsupportedSAEError(
            f"sae must read flat activations, got reshape_activations={sae.cfg.reshape_activations!r}."
            " Dictionaries on attention heads do not fit an MLP."
        )


def _fold(sae: Any) -> tuple[Tensor, Tensor, Tensor, Activation]:
    """Encoder, encoder bias (decoder bias not yet subtracted), decoder and rule, in float64."""
    architecture = sae.cfg.architecture()
    W_enc, W_dec = sae.W_enc.detach().double(), sae.W_dec.detach().double()
    if architecture == "gated":
        scale = sae.r_mag.detach().double().exp()
        threshold = sae.b_mag.detach().double() - scale * sae.b_gate.detach().double()
        return W_enc * scale, sae.b_mag.detach().double(), W_dec, Activation("jumprelu", threshold=threshold)
    b_enc = sae.b_enc.detach().double()
    if architecture == "standard":
        return W_enc, b_enc, W_dec, Activation("relu")
    if architecture == "jumprelu":
        return W_enc, b_enc, W_dec, Activation("jumprelu", threshold=sae.threshold.detach().double())
    if sae.cfg.rescale_acts_by_decoder_norm:
        norm = W_dec.norm(dim=-1)
        W_enc, b_enc, W_dec = W_enc * norm, b_enc * norm, W_dec / norm.unsqueeze(1)
    return W_enc, b_enc, W_dec, Activation(architecture, k=sae.cfg.k)


@torch.no_grad()
def _prove_folding(dictionary: Dictionary, sae: Any, rows: int = 64) -> None:
    """Compare with the SAE in float64, where rounding cannot change which features a top-k keeps."""
    reference = copy.deepcopy(sae).to(dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    scale = dictionary.b_dec.norm() / dictionary.d_in**0.5 + 1
    x = torch.randn(rows, dictionary.d_in, generator=generator, dtype=torch.float64).to(scale.device) * scale
    expected = reference.encode(x)
    for what, got, want in (
        ("activations", dictionary.encode(x), expected),
        ("reconstructions", dictionary.decode(dictionary.encode(x)), reference.decode(expected)),
    ):
        error = ((got - want).norm() / want.norm().clamp_min(1e-12)).item()
        if not error < _FOLD_TOLERANCE:
            raise UnsupportedSAEError(
                f"{dictionary.name} must fold into encoder rows, decoder rows and biases, but its {what} differ from"
                f" those of the SAE by {error:.2g} relative on random input. Is it a subclass with its own encode?"
            )
