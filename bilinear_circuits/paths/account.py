"""The account of one prompt as one result: its flow on a map, the largest nodes, pairs, degrees, effects and scores.

The flow is an account, never a prediction: beside it stand what removals of heads and MLPs are predicted to do with
norms alive, and what they do in the model.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.paths.degrees import Degrees
from bilinear_circuits.paths.edges import Flows
from bilinear_circuits.paths.effects import Effects
from bilinear_circuits.paths.flow import Flow, cut_flows
from bilinear_circuits.paths.frozen import Frozen
from bilinear_circuits.paths.graph import PromptGraph
from bilinear_circuits.paths.nodes import Node
from bilinear_circuits.paths.pair_matrix import PairMatrix, pair_matrix
from bilinear_circuits.paths.run import FrozenRun
from bilinear_circuits.paths.target import Target
from bilinear_circuits.paths.why import AttentionLedger
from bilinear_circuits.utilities.display import Brief, Result

MOST_GATED = 8  # MLPs up to which all degrees are computed
_FEW_DEGREES = 8


@dataclass(frozen=True)
class AccountSettings:
    """How much of an account is kept.

    Attributes:
        n_nodes: Nodes kept, the largest.
        n_matrices: MLPs at a token whose pairs are made, those of largest flow.
        n_pairs: Pairs kept of each.
        n_removed: Heads and MLPs removed, those of largest flow.
        n_why: Messages of heads whose attention score is divided, those of largest flow.
    """

    n_nodes: int = 1000
    n_matrices: int = 6
    n_pairs: int = 20
    n_removed: int = 200
    n_why: int = 6


@dataclass(frozen=True, eq=False, repr=False)
class FlowMap(Brief):
    """The flow of a target over tokens and layers.

    Attributes:
        residual: Flow in the residual stream of each token, before every block and between its attention and its MLP,
            and so on to the target.
        messages: Flow that the attention of each layer moves, all heads together.
        mlps: Flow of each MLP.
    """

    residual: Float[Tensor, "cut pos"]
    messages: Float[Tensor, "layer query_pos key_pos"]
    mlps: Float[Tensor, "layer pos"]


@dataclass(frozen=True, eq=False, repr=False)
class PathAccount(Result):
    """Where a logit, a difference of logits or a feature comes from in one prompt.

    Attributes:
        token_ids: The prompt.
        target: What is explained, as text.
        position: Token at which it is read.
        weights: Weight of each token's logit, by its id as text; empty for a feature.
        total: Value of the target.
        cuts: Sum of the flow over every cut: the value, each time.
        map: The flow over tokens and layers.
        nodes: The nodes of largest flow.
        n_nodes: All nodes there are.
        share_of_nodes: What of the magnitude of all flows the nodes kept hold.
        matrices: Pairs of the MLPs of largest flow; none where MLPs have no gate.
        degrees: The target by degrees in the embeddings.
        effects: Heads and MLPs removed, each at all tokens: predicted with norms alive, and real.
        flows: Flow of each part removed: its share of the account.
        n_removable: Heads and MLPs with a flow.
        ledgers: Why the heads of the largest messages look where they do.
    """

    token_ids: Int[Tensor, " pos"]
    target: str
    position: int
    weights: dict[str, float]
    total: float
    cuts: Float[Tensor, " cut"]
    map: FlowMap
    nodes: Flows
    n_nodes: int
    share_of_nodes: float
    matrices: tuple[PairMatrix, ...]
    degrees: Degrees
    effects: Effects
    flows: Float[Tensor, " run"]
    n_removable: int
    ledgers: tuple[AttentionLedger, ...]

    @property
    def worst_cut(self) -> float:
        """Largest difference between the sum over a cut and the value."""
        return (self.cuts - self.total).abs().max().item()

    def table(self) -> dict[str, list[Any]]:
        """Nodes and flows as columns."""
        return self.nodes.table()


@torch.no_grad()
def account_for(run: FrozenRun, graph: PromptGraph, settings: AccountSettings | None = None) -> PathAccount:
    """Gather the account of a graph. Cost: pairs of a few MLPs, degrees, and two passes for each part removed.

    Args:
        run: The run.
        graph: Its graph for a target.
        settings: How much is kept.

    Raises:
        ValueError: If an MLP has too many parts to be held.
    """
    asked = settings or AccountSettings()
    target, every = graph.target, graph.nodes()
    kept = every.top(asked.n_nodes)
    removed, flows, n_removable = _removed(graph, asked.n_removed)
    gated = [one.W_in is not None for one in run.frozen.weights.layers]
    return PathAccount(
        token_ids=run.tokens,
        target=target.name,
        position=target.position,
        weights={str(token): float(weight) for token, weight in target.logits.items()},
        total=graph.total,
        cuts=graph.flow.cuts,
        map=flow_map(run.frozen, graph.flow, target),
        nodes=kept,
        n_nodes=len(every.nodes),
        share_of_nodes=(kept.value.abs().sum() / every.value.abs().sum().clamp_min(1e-30)).item(),
        matrices=tuple(pair_matrix(graph, node, asked.n_pairs) for node in _mlps(graph, gated, asked.n_matrices)),
        degrees=run.degrees(target, max_degree=None if sum(gated) <= MOST_GATED else _FEW_DEGREES),
        effects=run.effect(target, removed, target.position),
        flows=flows,
        n_removable=n_removable,
        ledgers=tuple(run.why(*place) for place in _messages(graph, asked.n_why)),
    )


def flow_map(frozen: Frozen, flow: Flow, target: Target) -> FlowMap:
    """Sum the flow over tokens and layers."""
    residual = cut_flows(frozen, flow.c_pre, flow.c_mid, target)
    last = len(residual) // 2
    return FlowMap(residual, flow.heads.sum(1)[:last], flow.mlps[:last])


def _removed(graph: PromptGraph, n: int) -> tuple[list[Node], Tensor, int]:
    """The heads and MLPs of largest flow at all tokens together, and these flows; how many there are."""
    frozen, flow = graph.frozen, graph.flow
    nodes = [Node("head", layer, head=head) for layer in range(frozen.n_layers) for head in range(frozen.n_heads)]
    nodes += [Node("mlp", layer) for layer in range(frozen.n_layers)]
    flows = torch.cat([flow.heads.sum((-1, -2)).flatten(), flow.mlps.sum(-1)])
    best = flows.abs().argsort(descending=True, stable=True)
    n_removable = max(1, int(flows.count_nonzero()))
    best = best[: min(n, n_removable)].sort().values  # in the order of the model
    return [nodes[i] for i in best.tolist()], flows[best], n_removable


def _mlps(graph: PromptGraph, gated: list[bool], n: int) -> list[Node]:
    """The MLPs with a gate, at single tokens, of largest flow."""
    flow = graph.flow.mlps * torch.tensor(gated).unsqueeze(1).to(graph.flow.mlps)
    best = flow.flatten().abs().argsort(descending=True, stable=True)[: min(n, int(flow.count_nonzero()))]
    return [Node("mlp", i // graph.frozen.n_pos, i % graph.frozen.n_pos) for i in best.tolist()]


def _messages(graph: PromptGraph, n_kept: int) -> list[tuple[int, int, int, int]]:
    """Layer, head, query and key of the messages of largest flow; a token that sees one key alone has no choice."""
    flow = graph.flow.heads.clone()
    flow[:, :, 0] = 0
    best = flow.flatten().abs().argsort(descending=True, stable=True)[: min(n_kept, int(flow.count_nonzero()))]
    _, n_heads, n, _ = flow.shape
    return [(at // n**2 // n_heads, at // n**2 % n_heads, at // n % n, at % n) for at in best.tolist()]
