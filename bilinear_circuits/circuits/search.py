"""Finding the circuits a query asks for: rank, choose the best of each sign, prove them on other stories.

1. Run the model over the ranking stories and encode both sides of every layer given.
2. Screen all output features by trigger share and pole shift; decompose and score the best (`rank`).
3. Take the best of either sign over all layers, so that both poles are shown and neither is picked by hand.
4. Remove each of them, and matched controls, on stories that were not used for ranking (`prove`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bilinear_circuits.circuits.prove import CausalProof, prove
from bilinear_circuits.circuits.query import CircuitQuery, QueryTokens
from bilinear_circuits.circuits.rank import Evidence, Screen, rank_features, screen_features
from bilinear_circuits.circuits.settings import SearchSettings
from bilinear_circuits.circuits.target import Target, named
from bilinear_circuits.data.stories import StoryTokens, tokenize_stories
from bilinear_circuits.interactions.activity import LayerActivity, collect_activity
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.interactions.profiles import FeatureProfile, profile_feature
from bilinear_circuits.models.running import context_length, unembedding
from bilinear_circuits.runs import CrossEntropy, Runs, Sites
from bilinear_circuits.utilities.display import Drawn, Result
from bilinear_circuits.utilities.kinds import check_kind
from bilinear_circuits.utilities.progress import Progress, silent


@dataclass(frozen=True, eq=False, repr=False)
class Circuit(Drawn):
    """One circuit found: why it was chosen, what it looks like, what removing it does."""

    evidence: Evidence
    profile: FeatureProfile
    proof: CausalProof

    @property
    def name(self) -> str:
        """Layer and feature, as 4/143."""
        return self.evidence.name

    @property
    def target(self) -> Target:
        """Layer, feature, sign and groups: the circuit's name for a proof or an edit."""
        shape = self.profile.shape
        groups = (tuple(shape.first.tolist()), tuple(shape.second.tolist()))
        return Target(self.evidence.layer, self.evidence.feature, self.evidence.sign, groups)


@dataclass(frozen=True, eq=False, repr=False)
class CircuitSearch(Result):
    """The answer to a query.

    Attributes:
        query: The query.
        missing: Words of the query that are no single token of the vocabulary.
        ranking: Every feature scored in full, best first, over all layers.
        circuits: The proved ones: best first, positive pole before negative.
        decoder_cosine: Cosine between the decoder rows of every two circuits.
        settings: How much was measured.
        n_tokens: Tokens the features were ranked on.
        n_trigger_tokens: Trigger tokens among them.
        n_sites: Trigger sites of the proof.
        seed: Seed of story order and bootstrap.
    """

    query: CircuitQuery
    missing: tuple[str, ...]
    ranking: tuple[Evidence, ...]
    circuits: tuple[Circuit, ...]
    decoder_cosine: Float[Tensor, "circuit circuit"]
    settings: SearchSettings
    n_tokens: int
    n_trigger_tokens: int
    n_sites: int
    seed: int

    @property
    def targets(self) -> tuple[Target, ...]:
        """The circuits by name, for a proof or an edit."""
        return tuple(circuit.target for circuit in self.circuits)

    def only(self, names: str | Sequence[str | tuple[int, int]]) -> "CircuitSearch":
        """Keep some of the circuits, by their names (4/143), or one.

        Raises:
            ValueError: If there is none of that name, or none is asked for.
        """
        kept = named(self.circuits, names)
        places = [self.circuits.index(circuit) for circuit in kept]
        return replace(self, circuits=kept, decoder_cosine=self.decoder_cosine[places][:, places])


@torch.no_grad()
def find_circuits(
    model: nn.Module,
    interactions: Sequence[FeatureInteractions],
    query: CircuitQuery,
    stories: Sequence[str] | StoryTokens,
    tokenizer: Any = None,
    settings: SearchSettings | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> CircuitSearch:
    """Find and prove the circuits of a model that act at trigger words and move the model between two poles.

    Args:
        model: A TransformerBridge, a HookedTransformer or a Hugging Face Llama.
        interactions: One or more of its layers between dictionaries.
        query: Triggers and poles.
        stories: Texts, or their tokens. A random part ranks the features, the rest proves them.
        tokenizer: The model's own (`model.tokenizer`) by default.
        settings: How much is measured.
        seed: Seed of story order and bootstrap.
        progress: Wraps the loops.

    Raises:
        TypeError: If the query is none.
        ValueError: If words or stories are too few for the query: no single-token word, no feature active at the
            triggers, no trigger in the stories kept for the proof.
    """
    check_kind("query", query, CircuitQuery, "circuits.query_file.read_query reads one from a file, or by its name.")
    settings = SearchSettings() if settings is None else settings
    check_kind("settings", settings, SearchSettings, "Leave it out for the defaults.")
    tokenizer = _tokenizer_of(model, tokenizer)
    tokens = QueryTokens.resolve(query, tokenizer)
    d_in = min((one.mlp.tensor.d_in for one in interactions), default=settings.rank)
    if settings.rank > d_in:
        raise ValueError(f"rank must be at most d_in={d_in}, got {settings.rank}.")
    context = min(settings.context, context_length(model))
    ranking_stories, loss_stories, proof_stories = story_parts(stories, tokenizer, settings, context, seed)
    sites = _trigger_sites(query, tokens, proof_stories, settings)
    activity = collect_activity(model, interactions, ranking_stories, progress)
    directions = unembedding(model).to(activity[0].x)
    screens = [screen_features(layer_activity, tokens, directions) for layer_activity in activity]
    ranking = _rank(activity, screens, settings, seed, progress)
    chosen = [e for sign in (1, -1) for e in [e for e in ranking if e.sign == sign][: settings.circuits]]
    if not chosen:
        raise ValueError(
            f"stories must make features fire on the triggers, got no output feature active on more than ten trigger"
            f" tokens in {len(ranking_stories)} stories. Use more stories."
        )
    proofs: dict[str, CausalProof] = {}
    for layer_activity, screen in zip(activity, screens, strict=True):
        layer = layer_activity.interactions.mlp.layer
        if here := [evidence for evidence in chosen if evidence.layer == layer]:
            at_sites = Runs(model, layer, sites, tokens)
            losses = Runs(model, layer, Sites.everywhere(loss_stories), CrossEntropy())
            found = prove(here, layer_activity, at_sites, losses, screen, settings, seed, progress)
            proofs |= {evidence.name: proof for evidence, proof in zip(here, found, strict=True)}
    circuits = tuple(
        Circuit(e, profile_feature(_of_layer(activity, e.layer), e.feature, directions, tokenizer), proofs[e.name])
        for e in chosen
    )
    n_trigger = int(tokens.is_trigger(activity[0].token_ids).sum())
    return CircuitSearch(
        query, tokens.missing, tuple(ranking), circuits, _decoder_cosine(activity, chosen), settings,
        len(activity[0].x), n_trigger, len(sites), seed,
    )  # fmt: skip


def _tokenizer_of(model: nn.Module, tokenizer: Any) -> Any:
    """The one given, or the model's own."""
    tokenizer = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(f"tokenizer must be given for a {type(model).__name__}, which carries none.")
    return tokenizer


def _trigger_sites(query: CircuitQuery, tokens: QueryTokens, stories: StoryTokens, settings: SearchSettings) -> Sites:
    """Sites of the proof, one at least."""
    sites = tokens.sites(stories, settings.sites, settings.site_position)
    if len(sites) == 0:
        raise ValueError(
            f"stories must hold triggers ({', '.join(query.triggers)}) within their first"
            f" {settings.site_position} tokens, got none in the {len(stories)} kept for the proof. Use more stories."
        )
    return sites


def _rank(
    activity: Sequence[LayerActivity],
    screens: Sequence[Screen],
    settings: SearchSettings,
    seed: int,
    progress: Progress,
) -> list[Evidence]:
    """The rankings of all layers as one."""
    ranking: list[Evidence] = []
    for layer_activity, screen in zip(activity, screens, strict=True):
        ranking += rank_features(layer_activity, screen, settings.shortlist, settings.baseline, seed, progress)
    return sorted(ranking, key=lambda evidence: -evidence.score)


def story_parts(
    stories: Sequence[str] | StoryTokens, tokenizer: Any, settings: SearchSettings, context: int, seed: int
) -> tuple[StoryTokens, StoryTokens, StoryTokens]:
    """Stories to rank, for the loss and for the proof, drawn without overlap: the same ones for the same arguments.

    Raises:
        ValueError: If the stories are too few to leave any for the proof, or tokens that were not cut.
    """
    ranking, loss = settings.ranking_stories, settings.loss_stories
    if len(stories) <= ranking + loss:
        raise ValueError(
            f"stories must be more than {ranking + loss} ({ranking} to rank, {loss} for the loss, the rest for the"
            f" proof), got {len(stories)}."
        )
    tokens = stories if isinstance(stories, StoryTokens) else tokenize_stories(stories, tokenizer, context)
    if tokens.ids.shape[1] > context:
        raise ValueError(f"stories must be tokens cut at the context, {context}, got rows of {tokens.ids.shape[1]}.")
    tokens = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))]
    held_out, width = tokens[ranking : ranking + loss], settings.loss_tokens
    return tokens[:ranking], StoryTokens(held_out.ids[:, :width], held_out.mask[:, :width]), tokens[ranking + loss :]


def _of_layer(activity: Sequence[LayerActivity], layer: int) -> LayerActivity:
    return next(layer_activity for layer_activity in activity if layer_activity.interactions.mlp.layer == layer)


def _decoder_cosine(activity: Sequence[LayerActivity], chosen: Sequence[Evidence]) -> Tensor:
    rows = [_of_layer(activity, e.layer).interactions.sae_out.W_dec[e.feature] for e in chosen]
    unit = torch.nn.functional.normalize(torch.stack(rows), dim=1)
    return unit @ unit.T
