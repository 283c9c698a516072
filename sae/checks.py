"""What SAELens would say badly or late, said before any heavy work: architecture, options, layers, sizes, stories."""

import copy
import warnings
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any

import sae_lens  # noqa: F401  (fills the registry)
import torch
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class

from bilinear_circuits.data.stories import StoryTokens
from bilinear_circuits.models.running import context_length, model_blocks, model_device
from sae.settings import TrainSettings

_OURS = ("d_in", "d_sae", "dtype", "device", "metadata", "reshape_activations", "normalize_activations")
_UNFOLDABLE = "matching_pursuit"


def check_options(settings: TrainSettings) -> None:
    """Refuse an architecture or an option that cannot be, before a model is loaded.

    Raises:
        ValueError: If SAELens has no such architecture or option, or the architecture does not fold into a Dictionary.
    """
    known = [name for name in SAE_TRAINING_CLASS_REGISTRY if name != _UNFOLDABLE]
    if settings.architecture not in known:
        reason = " It encodes by iteration and has no encoder row per feature."
        raise ValueError(
            f"architecture must be one of {', '.join(sorted(known))}, got {settings.architecture}."
            + (reason if settings.architecture == _UNFOLDABLE else "")
        )
    config_class = get_sae_training_class(settings.architecture)[1]
    names = [field.name for field in fields(config_class) if field.name not in _OURS]
    for key in settings.sae:
        if key not in names:
            raise ValueError(f"sae must hold only options of {settings.architecture}, {', '.join(names)}, got {key!r}.")
    if "k" in names and "k" not in settings.sae:
        raise ValueError(f"sae must hold k, the number of active features, for {settings.architecture}, got none.")


def check_model(model: Any, settings: TrainSettings) -> None:
    """Refuse layers, hooks, sizes and a context that the model does not have.

    Raises:
        ValueError: If there is one.
    """
    n_layers = len(model_blocks(model))
    for layer in settings.layers:
        if not 0 <= layer < n_layers:
            raise ValueError(f"layers must be between 0 and {n_layers - 1}, those of the model, got {layer}.")
    for hook_name in settings.hook_names:
        if hook_name not in getattr(model, "hook_dict", {}):
            raise ValueError(
                f"model must have the hook {hook_name}, got a {type(model).__name__} without it."
                " bilinear_circuits.load_model(path) returns a TransformerBridge that has it."
            )
    if settings.context > context_length(model):
        raise ValueError(f"context must be at most {context_length(model)}, the model's, got {settings.context}.")
    sae_config(settings, model, check=True)


def check_tokens(tokens: StoryTokens, settings: TrainSettings) -> None:
    """Refuse stories that cannot fill the buffer, or rows that are longer than the context.

    Raises:
        ValueError: If they are too few or too long.
    """
    n_tokens = int(tokens.mask.sum())
    if n_tokens < settings.buffer_tokens:
        raise ValueError(
            "corpus must hold enough tokens for one buffer of activations, buffer_rows * context ="
            f" {settings.buffer_tokens}, got {n_tokens} in {len(tokens)} stories."
            " Read more stories (n_stories), or lower buffer_rows."
        )
    if tokens.ids.shape[1] > settings.context:
        raise ValueError(
            f"tokens must be rows of at most context={settings.context}, got {tokens.ids.shape[1]}."
            " tokenize_stories(stories, tokenizer, context) cuts them."
        )


def sae_config(settings: TrainSettings, model: Any, check: bool = False) -> Any:
    """SAELens' configuration of one dictionary; with `check` an SAE is made of it, which SAELens checks."""
    sae_class, config_class = get_sae_training_class(settings.architecture)
    d_in = model.cfg.d_model
    device = model_device(model)
    own = {"d_in": d_in, "d_sae": settings.expansion * d_in, "device": str(device)}
    scaling = "expected_average_only_in" if settings.scale_inputs else "none"
    # SAELens would take any k, and fail at the first step.
    k, kinds = settings.sae.get("k", 1), (int, float) if "batchtopk" in settings.architecture else (int,)
    if isinstance(k, bool) or not isinstance(k, kinds) or not 0 < k <= own["d_sae"]:
        kind = "number" if float in kinds else "whole number"
        raise ValueError(f"k must be a {kind} above 0, at most expansion * d_in = {own['d_sae']}, got {k!r}.")
    try:
        # A copy: SAELens appends to the list of widths it is given.
        config = config_class(**own, normalize_activations=scaling, **copy.deepcopy(dict(settings.sae)))
        if check:
            # What it warns of, such as a width it adds, is another dictionary than the one asked for.
            with forked_generators(device), warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                sae_class(config)
    except (TypeError, ValueError, UserWarning) as error:
        raise ValueError(
            f"sae must hold options that SAELens accepts for {settings.architecture}, got {dict(settings.sae)}: {error}"
        ) from error
    return config


def forked_generators(device: torch.device) -> AbstractContextManager[None]:
    """Leaves torch's own generators as they were; with several GPUs torch warns unless the one meant is named."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
