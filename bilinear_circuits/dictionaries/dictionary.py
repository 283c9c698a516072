"""Dictionaries: named directions of an activation, with an encoder, an activation rule and a decoder."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bilinear_circuits.dictionaries.activation import Activation
from bilinear_circuits.dictionaries.folders import check_folder, read_directions, write_folder
from bilinear_circuits.dictionaries.folding import (
    UnsupportedSAEError,
    check_architecture,
    fold,
    inference_form,
    load_sae,
    prove_folding,
)
from bilinear_circuits.dictionaries.names import drop_names, read_names, write_names
from bilinear_circuits.statistics.components import principal_components
from bilinear_circuits.utilities.display import Shown
from bilinear_circuits.utilities.folders import by_library
from bilinear_circuits.utilities.kinds import check_kind

if TYPE_CHECKING:
    from sae_lens import SAE

IDENTITY = Activation("identity")


@dataclass(frozen=True, eq=False, repr=False)
class Dictionary(Shown):
    """Named directions of an activation: z = activation(x W_enc + b_enc), x ~ z W_dec + b_dec.

    A SAELens SAE is one: `from_sae` folds everything it does around these tensors (decoder bias on the input,
    decoder-norm rescaling, gates) into them, so that `encode` and `decode` equal the SAE's own, in its own units;
    `unit_norm()` gives the equivalent dictionary with decoder rows of norm 1.

    Directions that no SAE found are others, with the rule "identity": coordinates, principal components, and those
    that `models.directions` reads out of a model, its tokens, logits and neurons.

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
        sae = inference_form(sae)
        hook_name = sae.cfg.metadata.get("hook_name")
        exact = cls(*fold(sae), hook_name=hook_name, name=name or hook_name or "dictionary")
        prove_folding(exact, sae)
        return exact.to(torch.promote_types(sae.W_enc.dtype, torch.float32))

    @classmethod
    def load(cls, path: str | Path, name: str | None = None, device: str = "cpu") -> "Dictionary":
        """Read a SAELens folder (cfg.json, sae_weights.safetensors) and fold it, or a folder of `save`.

        Raises:
            FileNotFoundError: If the folder or one of its two files is missing.
            ValueError: If cfg.json is not a SAELens configuration.
        """
        folder = Path(path)
        config = check_folder(folder)
        if config.get("architecture") == IDENTITY.kind:
            hook_name, tensors = read_directions(folder, config, device)
            names = read_names(folder, tensors["W_enc"].shape[1])
            return cls(
                tensors["W_enc"],
                tensors["b_enc"],
                tensors["W_dec"],
                tensors["b_dec"],
                IDENTITY,
                hook_name,
                name or folder.name,
                names,
            )
        check_architecture(folder, config)
        with by_library("dictionary must be a SAELens folder that SAELens can load", folder):
            # SAELens drops the metadata of a folder that does not name the version that wrote it.
            hook_name = (config.get("metadata") or {}).get("hook_name") or config.get("hook_name")
            sae = load_sae(folder, config, device)
        dictionary = cls.from_sae(sae, name or folder.name)
        return replace(dictionary, hook_name=hook_name, names=read_names(folder, dictionary.d_sae))

    @classmethod
    def from_directions(
        cls,
        directions: Float[Tensor, "d_sae d_in"],
        centre: Float[Tensor, " d_in"] | None = None,
        *,
        names: Sequence[str] = (),
        hook_name: str | None = None,
        name: str = "directions",
    ) -> "Dictionary":
        """Make a dictionary of directions that are written: z = (x - centre) D^+, least squares of least norm.

        Decoding gives the projection of x - centre on their span back, and so all of x where they span the space. A
        direction of zeros, such as the embedding of a token that was never trained, is always at z = 0.
        Cost: a singular value decomposition of the directions, in float64.

        Args:
            directions: D, one row a direction.
            centre: What is subtracted first, and added again; zero by default.
            names: Name of each direction; none by default.
            hook_name: Where they are directions, if of one place.
            name: A name for reports.

        Raises:
            ValueError: If a direction is not finite, or `centre` or `names` do not fit.
        """
        _check_directions(directions, names)
        centre = directions.new_zeros(directions.shape[1]) if centre is None else centre
        if centre.shape != directions.shape[1:]:
            raise ValueError(
                f"centre must be of the width of the directions, {directions.shape[1]}, got {tuple(centre.shape)}."
            )
        W_enc = torch.linalg.pinv(directions.double())
        b_enc = -(centre.double() @ W_enc)
        exact = cls(W_enc, b_enc, directions, centre, IDENTITY, hook_name, name, dict(enumerate(names)))
        return exact.to(torch.promote_types(directions.dtype, torch.float32))

    @classmethod
    def from_readouts(
        cls,
        readouts: Float[Tensor, "d_sae d_in"],
        *,
        names: Sequence[str] = (),
        hook_name: str | None = None,
        name: str = "readouts",
    ) -> "Dictionary":
        """Make a dictionary of directions that are read: z = x R^T, with the pseudo-inverse of R^T as decoder.

        Args:
            readouts: R, one row a direction.
            names: Name of each direction; none by default.
            hook_name: Where they are directions, if of one place.
            name: A name for reports.

        Raises:
            ValueError: If a direction is not finite, or `names` do not fit.
        """
        _check_directions(readouts, names)
        d_sae, d_in = readouts.shape
        W_enc, W_dec = readouts.T.contiguous(), torch.linalg.pinv(readouts.double().T)
        b_enc, b_dec = readouts.new_zeros(d_sae), readouts.new_zeros(d_in)
        exact = cls(W_enc, b_enc, W_dec, b_dec, IDENTITY, hook_name, name, dict(enumerate(names)))
        return exact.to(torch.promote_types(readouts.dtype, torch.float32))

    @classmethod
    def coordinates(cls, d_in: int, hook_name: str | None = None) -> "Dictionary":
        """Make a dictionary of the coordinates of an activation of width d_in: encode and decode change nothing.

        Raises:
            ValueError: If there is no coordinate.
        """
        if d_in < 1:
            raise ValueError(f"d_in must be at least 1, got {d_in}.")
        names = [f"coordinate {i}" for i in range(d_in)]
        return cls.from_directions(torch.eye(d_in), names=names, hook_name=hook_name, name="coordinates")

    @classmethod
    def pca(cls, x: Float[Tensor, "n d_in"], k: int | None = None, hook_name: str | None = None) -> "Dictionary":
        """Make a dictionary of the k leading principal components of some activations, all by default.

        Raises:
            ValueError: If there are fewer than two rows, or `k` is not between 1 and d_in.
        """
        rows, mean, shares = principal_components(x, k)
        names = [f"component {i} ({share:.2g} of the variance)" for i, share in enumerate(shares.tolist())]
        return cls.from_directions(rows, mean, names=names, hook_name=hook_name, name="principal components")

    @classmethod
    def stack(cls, *dictionaries: "Dictionary") -> "Dictionary":
        """Make one dictionary of the directions of several, encoded together by least squares.

        Args:
            *dictionaries: Of the rule "identity", on one hook, with one decoder bias.

        Raises:
            ValueError: If there are none, or their rules, widths, hooks or decoder biases do not fit.
        """
        if not dictionaries or any(dictionary.activation.kind != "identity" for dictionary in dictionaries):
            kinds = ", ".join(dictionary.activation.kind for dictionary in dictionaries) or "none"
            raise ValueError(f"dictionaries must be of the rule identity to be stacked, got {kinds}.")
        first = dictionaries[0]
        for other in dictionaries[1:]:
            if (other.d_in, other.hook_name) != (first.d_in, first.hook_name):
                raise ValueError(
                    f"dictionaries must be of one place, got {first.name} of width {first.d_in} at {first.hook_name}"
                    f" and {other.name} of width {other.d_in} at {other.hook_name}."
                )
            if not torch.equal(other.b_dec, first.b_dec):
                raise ValueError(
                    f"dictionaries must have one decoder bias, got others in {first.name} and {other.name}."
                )
        names = [
            dictionary.names.get(a, f"{dictionary.name} {a}")
            for dictionary in dictionaries
            for a in range(dictionary.d_sae)
        ]
        name = " and ".join(dictionary.name for dictionary in dictionaries)
        rows = torch.cat([dictionary.W_dec for dictionary in dictionaries])
        return cls.from_directions(rows, first.b_dec, names=names, hook_name=first.hook_name, name=name)

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

    def is_active(self, x: Float[Tensor, "*n d_in"], feature: int) -> Bool[Tensor, "*n"]:
        """Say where one feature is active."""
        return self.encode(x.to(self.W_enc.dtype))[..., feature] != 0

    def decode(self, z: Float[Tensor, "*n d_sae"]) -> Float[Tensor, "*n d_in"]:
        """Reconstruction z W_dec + b_dec."""
        return z @ self.W_dec + self.b_dec

    def save(
        self,
        folder: str | Path,
        metadata: Mapping[str, Any] = MappingProxyType({}),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Write a folder that `load` reads; SAELens reads it too, but for the rule "identity", which it does not have.

        The decoder bias is already folded into the encoder's, and no rescaling is left to do, so that SAELens computes
        the same activation(x W_enc + b_enc) W_dec + b_dec. Names go with the rule "identity"; those of an SAE are made
        on stories, by the command `names`. Names of other weights in the folder are removed.

        Args:
            folder: Where to write; made if missing.
            metadata: Further entries for the SAELens metadata.
            dtype: Precision of the weights. Loaded, they are float32.

        Raises:
            ValueError: If a weight is too large for `dtype`.
        """
        tensors = {field: getattr(self, field) for field in ("W_enc", "b_enc", "W_dec", "b_dec")}
        write_folder(folder, self.activation, tensors, {"hook_name": self.hook_name, **metadata}, dtype, self.name)
        if self.activation.kind == "identity" and self.names:
            write_names(folder, self.names)
        else:
            drop_names(folder)

    def unit_norm(self) -> "Dictionary":
        """Scale decoder rows to norm 1 and activations by the old norms: the function stays.

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

    def to(self, target: torch.dtype | torch.device | str) -> "Dictionary":
        """Copy the dictionary in another dtype or to another device."""
        tensors = {field: getattr(self, field).to(target) for field in ("W_enc", "b_enc", "W_dec", "b_dec")}
        threshold = None if (t := self.activation.threshold) is None else t.to(target)
        return replace(self, **tensors, activation=replace(self.activation, threshold=threshold))


def as_dictionary(sae: "Dictionary | SAE[Any]") -> Dictionary:
    """Pass a Dictionary through; fold a SAELens SAE."""
    return sae if isinstance(sae, Dictionary) else Dictionary.from_sae(sae)


def _check_directions(directions: Tensor, names: Sequence[str]) -> None:
    check_kind("directions", directions, Tensor, "torch.as_tensor makes one of an array.")
    if directions.ndim != 2 or len(directions) == 0:
        raise ValueError(f"directions must be rows of a matrix, one or more, got shape {tuple(directions.shape)}.")
    if bad := int((~directions.isfinite().all(dim=1)).sum()):
        raise ValueError(f"directions must be finite, got {bad} of {len(directions)} that are not.")
    if names and len(names) != len(directions):
        raise ValueError(f"names must be one for each of the {len(directions)} directions, got {len(names)}.")
