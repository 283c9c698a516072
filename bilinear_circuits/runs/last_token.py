"""Many last tokens of one story in one run: what a change of its last token does, for all changes at once.

A change of the residual stream at the last token moves nothing before it. So the story is run once, with one more token
for every change: all at the position of the last one, each blind to it and to each other. A run of P + V tokens takes
the place of V runs of P.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bilinear_circuits.models.host import host_of

_TOLERANCE = 1e-4

Tail = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps residual stream, attention mask and positions to what the final norm returns."""


class LastTokenRuns:
    """The blocks after one layer of a Hugging Face Llama, or of a bridge over one, on stories with many last tokens."""

    def __init__(self, body: Tail, unembed: Callable[[Tensor], Tensor]) -> None:
        """Keep the two halves; `of_model` makes them."""
        self._body, self._unembed = body, unembed

    @classmethod
    def of_model(cls, model: nn.Module, layer: int) -> "LastTokenRuns | None":
        """The blocks after a layer; None where the model cannot be entered there."""
        parts = host_of(model).later_blocks(layer)
        if parts is None:
            return None
        body, unembed = parts

        def run(residual: Tensor, mask: Tensor, position: Tensor) -> Tensor:
            out = body(inputs_embeds=residual, attention_mask=mask, position_ids=position, use_cache=False)
            return out.last_hidden_state

        return cls(run, unembed)

    @torch.no_grad()
    def __call__(
        self, residual: Float[Tensor, "pos d_model"], change: Float[Tensor, "variant d_model"]
    ) -> Float[Tensor, "variant d_vocab"]:
        """Logits at the last token for every change of the residual stream there.

        Args:
            residual: Residual stream after the layer, up to the last token.
            change: What is added to it at the last token.
        """
        n, n_variants = len(residual), len(change)
        tokens = torch.cat([residual, residual[-1] + change])
        position = torch.arange(n + n_variants, device=residual.device).clamp_max(n - 1)
        mask = _mask(n, n_variants).to(residual)
        hidden = self._body(tokens.unsqueeze(0), mask.unsqueeze(0).unsqueeze(0), position.unsqueeze(0))
        return self._unembed(hidden[0, n:])

    def agrees(
        self,
        residual: Float[Tensor, "pos d_model"],
        change: Float[Tensor, " d_model"],
        expected: Float[Tensor, " d_vocab"],
    ) -> bool:
        """Check that a change gives the model's own logits, and that another last token beside it moves nothing."""
        other = torch.stack([-change, change])
        try:
            found = self(residual, other)[1]
        except (TypeError, ValueError, RuntimeError):  # a body that takes no mask of this kind
            return False
        return bool((found - expected).abs().max() < _TOLERANCE * expected.abs().max())


def _mask(n: int, n_variants: int) -> Float[Tensor, "token token"]:
    """Zero where a token may look, the lowest number elsewhere: causal, and last tokens see the story less its last."""
    size = n + n_variants
    allowed = torch.zeros(size, size, dtype=torch.bool)
    allowed[:n, :n] = torch.ones(n, n, dtype=torch.bool).tril()
    allowed[n:, : n - 1] = True
    allowed |= torch.eye(size, dtype=torch.bool)
    return torch.zeros(size, size).masked_fill(~allowed, torch.finfo(torch.float32).min)
