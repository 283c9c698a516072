"""What the weights predict of an intervention: the direct path from an MLP's output to the logits."""

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.models.running import final_norm, final_norm_scale, hooked, model_device, run_logits
from bilinear_circuits.runs import Runs


def pole_direction(directions: Float[Tensor, "d_model d_vocab"], tokens: QueryTokens) -> Float[Tensor, " d_model"]:
    """Direction of the normalised residual stream that moves the positive pole against the negative, in float64."""
    return tokens.difference(directions.double())


@torch.no_grad()
def final_scale(runs: Runs[QueryTokens]) -> Float[Tensor, " site"]:
    """Measure what the final norm divides the residual stream by at every site, in the model as it is."""
    norm = final_norm(runs.model)
    if norm is None:
        return torch.ones(len(runs), dtype=torch.double)
    seen: list[Tensor] = []
    batches = runs.sites.batches()
    with hooked([(norm, lambda module, args, output: seen.append(args[0].detach()))]):
        for batch in batches:
            run_logits(runs.model, batch.ids.to(model_device(runs.model)))
    residual = torch.cat([one[batch.at] for one, batch in zip(seen, batches, strict=True)])
    return final_norm_scale(runs.model, residual).cpu()
