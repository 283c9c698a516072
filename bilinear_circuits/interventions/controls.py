"""Negative controls: what the same kind of edit does for other features, at other tokens, and to words of no meaning.

- Other features: a circuit of as many edges of a feature matched in frequency and norm, removed at the same sites.
- Other tokens: the same rule at tokens that are no triggers; and at all tokens before the trigger but not at it.
- A nonsense task: the same edit, measured between random poles: as many words of like frequency, drawn many times.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bilinear_circuits.circuits.prove import control_sets, matched
from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.circuits.rank import Screen
from bilinear_circuits.data.stories import StoryTokens
from bilinear_circuits.interactions.activity import LayerActivity
from bilinear_circuits.interventions.ablations import circuit_sum
from bilinear_circuits.interventions.edges import top_edges, write_direction, written
from bilinear_circuits.runs import Runs, Sites
from bilinear_circuits.statistics.effects import Effect, bootstrap
from bilinear_circuits.utilities.display import Brief

_LIKE = 40  # tokens closest in frequency that a nonsense word is drawn from


@dataclass(frozen=True)
class OtherFeature:
    """An intervention on another feature than the circuit's.

    Attributes:
        feature: Output feature of the same layer.
        kind: "inert": acts at triggers no more than chance; "trigger": acts there, but its decoder row points to no
            pole.
        effect: Effect of removing as many of its largest edges.
    """

    feature: int
    kind: str
    effect: Effect


@torch.no_grad()
def other_features(
    runs: Runs[QueryTokens],
    corpus: LayerActivity,
    screen: Screen,
    feature: int,
    reference: Float[Tensor, "n d_in"],
    n_edges: int,
    n: int,
    seed: int,
) -> tuple[OtherFeature, ...]:
    """Remove the largest edges of matched features at the sites of another; see `circuits.prove.control_sets`.

    Args:
        runs: The layer at the sites where the feature is active.
        corpus: The layer on other stories.
        screen: What is known of every output feature of the layer.
        feature: The feature they are matched to.
        reference: MLP inputs that edges are chosen at.
        n_edges: Pairs removed of each.
        n: Features of either kind.
        seed: Seed of the bootstrap.
    """
    generator = torch.Generator().manual_seed(seed)
    interactions, found, changes = corpus.interactions, [], []
    for kind, (eligible, frequency) in zip(("inert", "trigger"), control_sets(corpus, screen), strict=True):
        for other in matched(screen, eligible, frequency, feature, n):
            total = circuit_sum(runs, interactions, top_edges(interactions, other, reference, n_edges))
            found.append((other, kind))
            changes.append(written(-total, write_direction(interactions, other)))
    if not found:
        return ()
    effects = runs.effects(torch.stack(changes))
    return tuple(
        OtherFeature(other, kind, bootstrap(effect, generator))
        for (other, kind), effect in zip(found, effects, strict=True)
    )


def other_sites(stories: StoryTokens, tokens: QueryTokens, n: int, max_position: int, seed: int) -> Sites:
    """Draw one random token that is no trigger in each of the first n stories, and at most `max_position` in."""
    return Sites.random(stories, ~tokens.is_trigger(stories.ids), n, max_position, seed)


@dataclass(frozen=True, eq=False, repr=False)
class NonsenseTask(Brief):
    """The effect of an edit between random poles, against that between the poles of the query.

    Attributes:
        draws: Mean effect at the sites for each draw of poles.
        effect: Mean effect between the poles of the query.
        p_value: (1 + draws with an effect at least as large) / (1 + draws).
        spread: Standard deviation of the draws.
    """

    draws: Float[Tensor, " draw"]
    effect: float
    p_value: float
    spread: float


def nonsense_task(
    change: Float[Tensor, " d_vocab"], tokens: QueryTokens, frequency: Int[Tensor, " d_vocab"], n: int, seed: int
) -> NonsenseTask:
    """Measure an edit between random poles.

    Args:
        change: Mean change of every logit under the edit.
        tokens: The query.
        frequency: How often each token comes in the corpus. Every word of a pole is replaced by a random one of the 40
            tokens closest in frequency, neither of the query nor drawn before.
        n: Number of draws.
        seed: Seed of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    change = change.double().cpu()
    own = torch.cat([tokens.positive, tokens.negative, tokens.triggers])
    eligible = frequency.cpu() > 0
    eligible[own] = False
    draws = torch.stack([_draw(change, tokens, frequency.cpu(), eligible, generator) for _ in range(n)])
    effect = tokens.difference(change).item()
    as_large = int((draws.abs() >= abs(effect)).sum())
    return NonsenseTask(draws, effect, (1 + as_large) / (1 + n), draws.std(correction=0).item())


def _draw(
    change: Tensor,
    tokens: QueryTokens,
    frequency: Tensor,
    eligible: Bool[Tensor, " d_vocab"],
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """Effect between one pair of random poles."""
    free, means = eligible.clone(), []
    log_frequency = frequency.clamp_min(1).double().log()
    for pole in (tokens.positive, tokens.negative):
        drawn = []
        for token in pole.tolist():
            distance = torch.where(free, (log_frequency - log_frequency[token]).abs(), torch.inf)
            closest = distance.argsort(stable=True)[: min(_LIKE, int(free.sum()))]
            if len(closest):
                drawn.append(closest[torch.randint(len(closest), (), generator=generator)])
                free[drawn[-1]] = False
        means.append(change[torch.stack(drawn)].mean() if drawn else change.new_zeros(()))
    return means[0] - means[1]
