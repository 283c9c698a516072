"""Where an output feature's pre-activation on one prompt comes from, divided among the parts of the MLP input.

1. The MLP input is x = sum_a z_a d_a + bias + error, and the pre-activation p(x) = x^T Q x + linear . x + constant.
2. Every product of two different parts is split half and half between them: part s gets s^T Q x + linear . s, which is
   its Shapley value. The constant goes to the bias. Shares add up to p(x), to the rounding of float64.
3. Removing a part takes away all of its products, of which its share holds half, but its product with itself only
   once: the pre-activation changes by -(2 share - self-pair - linear . s), the linear term being zero for a Llama.
4. Where the feature stands at the last token, its direct effect on the logits is its decoder row through the
   unembedding, with the scale of the final norm held fixed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.interactions.ledger import Ledger, PairContributions
from bilinear_circuits.models.running import (
    final_norm_scale,
    hooked,
    model_blocks,
    model_device,
    run_logits,
    unembedding,
)
from bilinear_circuits.prompts.accounts import check_prompt, in_float64
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.feature import Feature, OfFeature


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(OfFeature, Brief):
    """One output feature at one token at which it is active. All numbers are float64.

    Attributes:
        layer: Layer of the MLP.
        feature: Output feature.
        position: Token, counted with [BOS] as 0.
        activation: Activation of the feature.
        pre_activation: The shares of all inputs, of the bias, of the error and the remainder add up to it.
        inputs: Active input features, by falling magnitude of their share.
        values: Their activations.
        shares: Their shares z_a (d_a^T Q x + linear . d_a).
        removals: Change of the pre-activation where one of them is taken out of the MLP input, all else as it is.
        bias: Share of the decoder bias of the input dictionary, and the constant of the form.
        error: Share of what the input dictionary misses.
        bias_removal: Change of the pre-activation without the decoder bias of the input dictionary.
        error_removal: Change without what the input dictionary misses.
        pairs: What every pair of active input features adds, before it is split.
        ledger: The same pre-activation by kinds of terms.
        direct: Effect of the activation on the logits of the graph, by the direct path alone; None where the token is
            not the last one.
        d_sae_out: Features of the output dictionary.
        remainder: What the model's own MLP gives more than a layer fitted to it; 0 for a bilinear one.
    """

    layer: int
    feature: int
    position: int
    activation: float
    pre_activation: float
    inputs: Int[Tensor, " n"]
    values: Float[Tensor, " n"]
    shares: Float[Tensor, " n"]
    removals: Float[Tensor, " n"]
    bias: float
    error: float
    bias_removal: float
    error_removal: float
    pairs: PairContributions
    ledger: Ledger
    direct: Float[Tensor, " logit"] | None
    d_sae_out: int
    remainder: float = 0.0

    def joint_removal(self, features: Int[Tensor, " m"]) -> float:
        """Change of the pre-activation where several active input features are taken out of the MLP input together.

        Each pair of two of them goes once, and is counted in both their removals. In a layer that was fitted pairs are
        those of the fit.
        """
        first, second = self.pairs.first, self.pairs.second
        among = torch.isin(first, features) & torch.isin(second, features) & (first != second)
        return (self.removals[torch.isin(self.inputs, features)].sum() + self.pairs.contributions[among].sum()).item()


@dataclass(frozen=True, eq=False, repr=False)
class PromptAttribution(Brief):
    """Output features on one prompt, at every token at which they are active.

    Attributes:
        token_ids: Tokens of the prompt, [BOS] first.
        n_layers: Layers of the model.
        logit_ids: The most likely next tokens of the whole prompt, likeliest first.
        probabilities: Their probabilities.
        features: Layer and output feature of each feature asked for, active or not.
        attributions: One for each feature and token, in the order of the features, then of the tokens.
    """

    token_ids: Int[Tensor, " pos"]
    n_layers: int
    logit_ids: Int[Tensor, " logit"]
    probabilities: Float[Tensor, " logit"]
    features: tuple[tuple[int, int], ...]
    attributions: tuple[Attribution, ...]


@torch.no_grad()
def attribute_prompt(
    model: nn.Module,
    interactions: Sequence[FeatureInteractions],
    features: Sequence[tuple[int, int]],
    token_ids: Int[Tensor, " pos"],
    n_logits: int = 8,
) -> PromptAttribution:
    """Divide the pre-activation of output features among their inputs, at every token at which they are active.

    The model runs once. [BOS] is left out, as it is in training and in all other analyses.

    Args:
        model: The model that the interactions were read from.
        interactions: One for each layer asked for, or more.
        features: Layers and output features.
        token_ids: The prompt, [BOS] first; see `prompt_tokens`.
        n_logits: Next tokens considered.

    Raises:
        ValueError: See `check_prompt`; or if `n_logits` is not positive, or no feature is active anywhere.
    """
    check_prompt(model, interactions, features, token_ids)
    if n_logits < 1:
        raise ValueError(f"n_logits must be at least 1, got {n_logits}.")
    x, y, residual, logits = _capture(model, token_ids, [layer for layer, _ in features])
    best = logits.double().softmax(-1).topk(min(n_logits, len(logits)))
    effect = unembedding(model)[:, best.indices].double() / final_norm_scale(model, residual)
    layers = {one.mlp.layer: in_float64(one) for one in interactions if one.mlp.layer in x}
    found = [
        one
        for layer, feature in features
        for one in _attributions(layers[layer], feature, x[layer].double(), y[layer].double(), effect)
    ]
    if not found:
        asked = ", ".join(str(Feature(*one)) for one in features)
        raise ValueError(
            f"features must be active at one token of the prompt or more, got {asked}, active at none of"
            f" {len(token_ids) - 1}. Try words that `bilinear-circuits inspect` names."
        )
    return PromptAttribution(
        token_ids=token_ids.cpu(),
        n_layers=len(model_blocks(model)),
        logit_ids=best.indices.cpu(),
        probabilities=best.values.cpu(),
        features=tuple(features),
        attributions=tuple(found),
    )


def _capture(
    model: nn.Module, token_ids: Tensor, layers: Sequence[int]
) -> tuple[dict[int, Tensor], dict[int, Tensor], Tensor, Tensor]:
    """MLP inputs and outputs by layer; the last token's residual stream before the final norm, and its logits."""
    x: dict[int, Tensor] = {}
    y: dict[int, Tensor] = {}
    final: list[Tensor] = []
    blocks = model_blocks(model)

    def keep(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x[layer], y[layer] = args[0][0].detach(), output[0].detach()

        return hook

    def keep_final(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        final.append((output if isinstance(output, Tensor) else output[0])[0, -1].detach())

    hooks = [(blocks[layer].mlp, keep(layer)) for layer in set(layers)]
    with hooked([*hooks, (blocks[-1], keep_final)]):
        logits = run_logits(model, token_ids.unsqueeze(0).to(model_device(model)))
    return x, y, final[0], logits[0, -1]


def _attributions(
    interactions: FeatureInteractions, feature: int, x: Tensor, y: Tensor, effect: Tensor
) -> list[Attribution]:
    """One feature at every token but [BOS] at which it is active."""
    form, sae_in, sae_out = interactions.form(feature), interactions.sae_in, interactions.sae_out
    activation = sae_out.encode(y)[:, feature]
    found = []
    for position in (1 + activation[1:].nonzero().squeeze(1)).tolist():
        row, z = x[position], sae_in.encode(x[position])
        remainder = interactions.gate_remainder(row, feature)
        active = z.nonzero().squeeze(1)
        slope = form.matrix @ row + form.linear
        parts = torch.cat([z[active, None] * sae_in.W_dec[active], torch.stack([sae_in.b_dec, row - sae_in.decode(z)])])
        *_, bias, error = shares = parts @ slope
        # p(x - s) - p(x), by the definition of the form: -(2 share - s^T Q s - linear . s).
        removals = form.matrix(parts) + parts @ form.linear - 2 * shares
        if interactions.mlp.approximation is not None:  # what the model's own MLP does, where the form is a fit's
            removals = (interactions.mlp(row - parts) - interactions.mlp(row)) @ sae_out.W_enc[:, feature]
        shares = shares[:-2]
        order = shares.abs().argsort(descending=True)
        last = position == len(x) - 1
        found.append(
            Attribution(
                layer=interactions.mlp.layer,
                feature=feature,
                position=position,
                activation=activation[position].item(),
                pre_activation=(form(row) + remainder).item(),
                inputs=active[order].cpu(),
                values=z[active[order]].cpu(),
                shares=shares[order].cpu(),
                removals=removals[:-2][order].cpu(),
                bias=(bias + form.constant).item(),
                error=error.item(),
                bias_removal=removals[-2].item(),
                error_removal=removals[-1].item(),
                pairs=interactions.pair_contributions(row, feature),
                ledger=interactions.ledger(row, feature),
                direct=(activation[position] * (sae_out.W_dec[feature] @ effect)).cpu() if last else None,
                d_sae_out=sae_out.d_sae,
                remainder=remainder.item(),
            )
        )
    return found
