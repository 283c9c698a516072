"""Directions that a model names itself: its tokens, its logits and its neurons, as dictionaries.

Each is a `Dictionary` of the rule "identity", so that everything that reads dictionaries reads them too. Their signs
and sizes are those of the weights; the scale of a norm, one positive number per token, is not in them.
"""

from typing import Any

import torch
from torch import nn

from bilinear_circuits.data.token_texts import token_text
from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.models.bilinear_mlp import BilinearMLP
from bilinear_circuits.models.running import embedding, unembedding


@torch.no_grad()
def token_directions(model: nn.Module, layer: int = 0, tokenizer: Any = None) -> Dictionary:
    """Name the directions in which the embedding writes tokens into the input of an MLP, past everything between.

    Args:
        model: A model whose layer is bilinear and has an RMSNorm in front.
        layer: Layer of the MLP.
        tokenizer: Gives tokens their texts; the model's own by default.

    Returns:
        d_vocab directions: the embedding times the weight of the norm.

    Raises:
        NotBilinearError: If the layer is not bilinear.
        ValueError: If it has no RMSNorm.
    """
    mlp = BilinearMLP.from_model(model, layer)
    rows = embedding(model) * _norm_weight(mlp)
    return Dictionary.from_directions(
        rows, names=_texts(model, tokenizer, len(rows)), hook_name=mlp.hook_in, name="tokens"
    )


@torch.no_grad()
def logit_directions(model: nn.Module, tokenizer: Any = None) -> Dictionary:
    """Name the directions in which logits read the residual stream, the weight of the final norm folded in.

    On the output of an MLP, the pre-activation of a token is what the MLP adds to its logit past the layers after it,
    but for the scale of the final norm.

    Args:
        model: nn.Module of the three kinds of model.
        tokenizer: Gives tokens their texts; the model's own by default.

    Returns:
        d_vocab directions.

    Raises:
        ValueError: If the final norm is neither an RMSNorm nor a LayerNorm.
    """
    rows = unembedding(model).T
    return Dictionary.from_readouts(rows, names=_texts(model, tokenizer, len(rows)), name="logits")


@torch.no_grad()
def neuron_directions(model: nn.Module, layer: int, read_by: int | None = None) -> Dictionary:
    """Name the directions in which the neurons of an MLP write.

    Args:
        model: A model whose layer is bilinear.
        layer: Layer of the neurons.
        read_by: Layer of the MLP at whose input they are read, past everything between; by default they are read at
            the output of their own.

    Returns:
        d_mlp directions: the rows of W_out, times the weight of the norm of the reading layer.

    Raises:
        NotBilinearError: If one of the layers is not bilinear.
        ValueError: If the reading layer is not above, or has no RMSNorm.
    """
    mlp = BilinearMLP.from_model(model, layer)
    rows, hook_name = mlp.tensor.W_out, mlp.hook_out
    if read_by is not None:
        if read_by <= layer:
            raise ValueError(f"read_by must be a layer above {layer}, that of the neurons, got {read_by}.")
        reading = BilinearMLP.from_model(model, read_by)
        rows, hook_name = rows * _norm_weight(reading), reading.hook_in
    names = [f"neuron {layer}/{m}" for m in range(len(rows))]
    return Dictionary.from_directions(rows, names=names, hook_name=hook_name, name=f"neurons of layer {layer}")


def _norm_weight(mlp: BilinearMLP) -> torch.Tensor:
    if mlp.norm is None:
        raise ValueError(
            f"layer {mlp.layer} must have an RMSNorm in front of its MLP for directions of the residual stream to be"
            " directions of its input, but none was found."
        )
    return mlp.norm.weight


def _texts(model: nn.Module, tokenizer: Any, n: int) -> list[str]:
    """Texts of all tokens, those of white space as Python writes them; none without a tokenizer."""
    tokenizer = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
    if tokenizer is None:
        return []
    texts = [token_text(tokenizer, token_id) for token_id in range(n)]
    return [text if text.strip() else repr(text) for text in texts]
