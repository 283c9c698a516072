"""What all graphs in the format of circuit-tracer and Neuronpedia share: nodes, links, what they say of themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import bilinear_circuits

GRAPH_VERSION = 1
GENERATOR = "bilinear-circuits"
FEATURE_TYPE = "cross layer transcoder"
# The one type of MLPs that neither viewer takes for a feature, and that Neuronpedia's scores do not take for a logit,
# as they do every type they have no place for.
NO_FEATURE = "mlp reconstruction error"


@dataclass(frozen=True)
class GraphSource:
    """What a graph says of where it comes from.

    Attributes:
        prompt: The prompt as it was written.
        slug: Short name of the graph, for file names and addresses.
        scan: Where circuit-tracer's page looks for feature details.
        dictionaries: Names of the dictionaries.
        creator: Who made the graph, if that should be told.
        provenance: What it was computed with; kept as it is.
    """

    prompt: str
    slug: str
    scan: str
    dictionaries: tuple[str, ...] = ()
    creator: str | None = None
    provenance: Mapping[str, Any] | None = None


class GraphNode(NamedTuple):
    """What is said of a node.

    Attributes:
        node_id: Its id: layer, number and token.
        layer: Layer as text; "E" for embeddings.
        feature: Its number.
        position: Token.
        feature_type: Its type in the format.
        clerp: Its text.
        activation: Activation of a feature, where it is known.
    """

    node_id: str
    layer: str
    feature: int
    position: int
    feature_type: str
    clerp: str
    activation: float | None = None


class GraphDraft:
    """Nodes and links of a graph in the making.

    Attributes:
        nodes: Nodes by their id.
        links: Links.
    """

    def __init__(self, n_tokens: int) -> None:
        """Begin.

        Args:
            n_tokens: Tokens of the prompt.
        """
        self.nodes: dict[str, dict[str, Any]] = {}
        self.links: list[dict[str, Any]] = []
        self._n_tokens = n_tokens

    def add(self, node: GraphNode) -> str:
        """Add a node, unless it is there; its id."""
        if node.node_id not in self.nodes:
            self.nodes[node.node_id] = self.described(node)
        return node.node_id

    def add_logit(
        self, layer: int, token_id: int, position: int, text: str, probability: float, is_target: bool
    ) -> str:
        """Add a logit; its id. One layer is to be left free behind the last, as circuit-tracer does."""
        # Viewers read the probability from behind the first "(p=".
        clerp = f"Output {text.replace('(p=', '(p =')} (p={probability:.3f})"
        name = self.add(GraphNode(f"{layer}_{token_id}_{position}", str(layer), token_id, position, "logit", clerp))
        self.nodes[name] |= {"token_prob": probability, "is_target_logit": is_target}
        return name

    def described(self, node: GraphNode) -> dict[str, Any]:
        """Describe a node without adding it."""
        first, number, _ = node.node_id.split("_")
        reverse = self._n_tokens - 1 - node.position
        return {
            "node_id": node.node_id,
            "feature": node.feature,
            "layer": node.layer,
            "ctx_idx": node.position,
            "feature_type": node.feature_type,
            "token_prob": 0.0,
            "is_target_logit": False,
            "run_idx": 0,
            "reverse_ctx_idx": reverse,
            "jsNodeId": f"{'L' if node.feature_type == 'logit' else first}_{number}-{reverse}",
            "clerp": node.clerp,
            "influence": None,
            "activation": node.activation,
        }

    def link(self, source: str, target: str, weight: float, *, removal: float | None = None) -> None:
        """Add a link, and what the removal of its source does where that is known."""
        removed = {} if removal is None else {"removal": removal}
        self.links.append({"source": source, "target": target, "weight": weight, **removed})

    def share_out(self, weight: Mapping[str, float]) -> None:
        """Set the influence of nodes: viewers hide those above a threshold of the cumulated share, largest first."""
        total, so_far = sum(weight.values()), 0.0
        for node_id in sorted(weight, key=lambda one: -weight[one]):
            so_far += weight[node_id]
            self.nodes[node_id]["influence"] = min(1.0, round(so_far / total, 6)) if total else 0.0


def graph_metadata(
    source: GraphSource, texts: Sequence[str], caps: Mapping[str, int], description: str
) -> dict[str, Any]:
    """Say what a graph is, whose, and of which prompt.

    Args:
        source: What it says of itself.
        texts: Texts of the tokens.
        caps: Settings of its making.
        description: How it is to be read.
    """
    info: dict[str, Any] = {
        "description": description,
        "generator": {"name": GENERATOR, "version": bilinear_circuits.__version__},
    }
    if source.creator:
        info["creator_name"] = source.creator
    return {
        "slug": source.slug,
        "scan": source.scan,
        "transcoder_list": list(source.dictionaries),
        "prompt_tokens": list(texts),
        "prompt": source.prompt,
        "node_threshold": 1.0,
        "schema_version": GRAPH_VERSION,
        "info": info,
        "generation_settings": dict(caps),
    }
