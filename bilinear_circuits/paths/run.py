"""One prompt in one model, frozen and proved equal to the model: where graphs, effects, degrees and ledgers start."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.paths.degrees import Degrees, IntegratedGradients, degree_spectrum, integrated_gradients
from bilinear_circuits.paths.effects import Effects, measure_effects
from bilinear_circuits.paths.frozen import Frozen, freeze
from bilinear_circuits.paths.graph import PromptGraph, prompt_graph
from bilinear_circuits.paths.nodes import Node
from bilinear_circuits.paths.removal import Pair, Removed
from bilinear_circuits.paths.target import Asked, target_of
from bilinear_circuits.paths.why import AttentionLedger, explain_attention


class FrozenRun:
    """A prompt's pass through a Llama-type model, with attention patterns, norm scales and gate factors kept.

    It computes its own forward pass and is made only if its logits are the model's. A model in half precision is
    computed as its float32 upcast, and so are all numbers; its own logits, being rounded, need be no nearer than 2 %
    (float16) or 5 % (bfloat16) of the largest.

    Attributes:
        frozen: All that is kept.

    Examples:
        >>> import bilinear_circuits as bc
        >>> model = bc.load_model()
        >>> run = bc.FrozenRun(model, bc.prompt_tokens("he was not", model.tokenizer, 256))
        >>> graph = run.graph(int(run.logits[-1].argmax()))
        >>> abs(graph.cut(0) - graph.total) < 1e-3  # everything comes from the embeddings
        True
    """

    def __init__(
        self,
        host: Any,
        tokens: Int[Tensor, " pos"],
        dtype: torch.dtype | None = None,
        dictionaries: Mapping[int, Dictionary] | None = None,
    ) -> None:
        """Run a prompt.

        Args:
            host: A host, a TransformerBridge of a Llama-type model, or such a model of Hugging Face.
            tokens: Token ids of the prompt, such as `prompt_tokens` makes; no more than the model's context.
            dtype: float32 or float64; the model's own by default. float64 makes sums exact to 1e-12.
            dictionaries: Dictionaries of MLP outputs by layer, whose features become nodes.

        Raises:
            ValueError: See `freeze`, which raises TypeErrors too.
        """
        self.frozen: Frozen = freeze(host, tokens, dtype, dictionaries)

    def __repr__(self) -> str:
        return f"FrozenRun({self.frozen.n_pos} tokens, {self.frozen.n_layers} layers, {self.frozen.n_heads} heads)"

    @property
    def tokens(self) -> Int[Tensor, " pos"]:
        """The prompt."""
        return self.frozen.tokens

    @property
    def logits(self) -> Float[Tensor, "pos d_vocab"]:
        """Logits of the run, equal to the model's."""
        return self.frozen.logits

    @property
    def patterns(self) -> Float[Tensor, "layer head query_pos key_pos"]:
        """Attention of each query to each key."""
        return self.frozen.patterns

    @property
    def sigma(self) -> Float[Tensor, "layer pos d_mlp"]:
        """Gate factors act(g) / g; ones for a bilinear MLP."""
        return self.frozen.sigma

    def graph(self, target: Asked, position: int = -1, sources: bool = True) -> PromptGraph:
        """Account for a target: its flow through every head, MLP and feature. See `prompt_graph`.

        Args:
            target: A token, two tokens for a difference, weights by token, poles of a query, or a `Feature`.
            position: Token at which it is read.
            sources: Whether a head's messages from different tokens are different parts.

        Raises:
            ValueError: See `target_of`.
        """
        return prompt_graph(self.frozen, target, position, sources)

    def effect(self, target: Asked, remove: Sequence[Removed] | Node | Pair, position: int = -1) -> Effects:
        """Remove nodes, pairs or sets of them: what is predicted with norms alive, beside what the model does.

        Cost: two forward passes for each.

        Args:
            target: See `graph`.
            remove: `Node`, `Pair`, or sequences of them that go together; one alone need not be in a list.
            position: Token at which the target is read.

        Raises:
            ValueError: See `target_of` and `removal_of`, which raise TypeErrors too.
        """
        return measure_effects(self.frozen, target, remove, position)

    def degrees(self, target: Asked, position: int = -1, max_degree: int | None = None) -> Degrees:
        """Divide a target by degrees in the embeddings. See `degree_spectrum`.

        Raises:
            ValueError: If the model is too deep for all degrees and no `max_degree` is given.
        """
        return degree_spectrum(self.frozen, target_of(self.frozen, target, position), max_degree)

    def integrated_gradients(
        self, target: Asked, position: int = -1, n_nodes: int | None = None
    ) -> IntegratedGradients:
        """Divide a target among the tokens, exactly. See the function of the same name.

        Raises:
            ValueError: If the model is too deep for an exact integral and no `n_nodes` is given.
        """
        return integrated_gradients(self.frozen, target_of(self.frozen, target, position), n_nodes)

    def why(self, layer: int, head: int, query_pos: int, key_pos: int) -> AttentionLedger:
        """Divide an attention score into products of parts at the query and at the key. See `explain_attention`.

        Raises:
            ValueError: If there is no such head or token, or the query does not see the key.
        """
        return explain_attention(self.frozen, layer, head, query_pos, key_pos)
