"""Necessity, sufficiency, the worst subset, controls and later layers, on a tiny model."""

import itertools
import math

import pytest
import torch
from helpers import refused
from planted import interactions_of, random_stories, word_tokenizer
from test_interventions_edges import FEATURE, World, close

from bilinear_circuits.circuits.prove import control_sets, matched
from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.circuits.rank import screen_features
from bilinear_circuits.circuits.target import Target
from bilinear_circuits.data.stories import tokenize_stories
from bilinear_circuits.interventions import (
    ProofSettings,
    Terms,
    complement_tests,
    later_effects,
    nonsense_task,
    other_features,
    other_sites,
    prove_interventions,
    terms_at,
    top_edges,
    worst_subset,
)
from bilinear_circuits.interventions.edges import write_direction, written
from bilinear_circuits.interventions.proof import ProofPlace, removal_of
from bilinear_circuits.models.running import unembedding
from bilinear_circuits.runs import Runs


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def tests(world):
    sets = {"four": top_edges(world.interactions, FEATURE, world.runs.x, 4)}
    sets["all"] = top_edges(world.interactions, FEATURE, world.runs.x, 400)
    return sets, complement_tests(world.runs, world.interactions, FEATURE, sets, (0.1, 0.8), 3, seed=0)


def test_necessity_and_sufficiency_are_edits_of_the_form(world, tests):
    sets, found = tests
    row = world.interactions.sae_out.W_dec[FEATURE]
    form = world.interactions.form(FEATURE)
    whole = (form(world.runs.x) - form.constant).double()
    inside = sets["four"].contributions(world.z).sum(1)
    rest = whole - inside

    def effect(delta):
        return world.effect(delta.unsqueeze(1).float() * row)

    one = found.sets[0]
    assert (one.name, one.n_edges) == ("four", 4)
    assert found.form == pytest.approx(whole.mean().item(), rel=1e-4)
    close(found.whole.mean, effect(-whole).mean())
    close(one.removed.mean, effect(-inside).mean())
    close(one.alone.mean, effect(-rest).mean())
    close(one.alone_mean.mean, effect(rest.mean() - rest).mean())
    assert one.share == pytest.approx((inside.mean() / whole.mean()).item(), rel=1e-4)
    assert one.lost.mean == pytest.approx((effect(-inside).mean() / effect(-whole).mean()).item(), rel=1e-2)
    assert one.kept.mean == pytest.approx(1 - (effect(-rest).mean() / effect(-whole).mean()).item(), rel=1e-2)
    for ratio in (one.lost, one.kept):
        assert ratio.low < ratio.mean < ratio.high
    # All pairs of input features: what is lost without them is the ledger's share, up to the model's curvature.
    assert [one.name for one in found.sets] == ["four", "all", "all pairs of features"]
    ledger = world.interactions.ledger(world.runs.x, FEATURE)
    assert found.sets[2].share == pytest.approx((ledger.feature_feature.mean() / whole.mean()).item(), rel=1e-4)
    assert found.sets[1].n_edges == found.sets[2].n_edges
    close(found.sets[1].removed.mean, found.sets[2].removed.mean, 1e-6)


def test_subsets_of_the_complement_are_removed_with_the_circuit_in_place(world, tests):
    sets, found = tests
    terms = terms_at(world.interactions, FEATURE, world.runs.x)
    circuit = terms.among(sets["four"])
    n = int((~circuit).sum())
    kinds = [one.kind for one in found.subsets]
    assert kinds == ["random"] * 6 + ["worst"] * 2 + ["best"]
    assert [one.size for one in found.subsets[:6]] == [round(0.1 * n) / n] * 3 + [round(0.8 * n) / n] * 3
    assert found.subsets[6].size == round(0.1 * n) / n
    row = world.interactions.sae_out.W_dec[FEATURE]
    inside = terms.sum(circuit)

    def effect(delta):
        return world.effect(delta.unsqueeze(1).float() * row).mean().item()

    sign = 1 if terms.sum().mean() > 0 else -1
    for subset, of_sign in zip(found.subsets[-2:], (sign, -sign), strict=True):
        chosen = ~circuit & (terms.mean.sign() == of_sign)
        delta = -terms.sum(chosen)
        assert subset.size == int(chosen.sum()) / n
        assert subset.shift == pytest.approx(delta.mean().item())
        close(subset.effect, effect(delta))
        assert subset.survived == pytest.approx(1 - effect(delta) / effect(-terms.sum()), rel=1e-2, abs=1e-2)
        expected = (effect(delta - inside) - effect(delta)) / effect(-inside)
        assert subset.circuit == pytest.approx(expected, rel=1e-2, abs=1e-2)
    worst, best = found.subsets[-2:]
    assert all(sign * worst.shift <= sign * one.shift <= sign * best.shift for one in found.subsets)
    again = complement_tests(world.runs, world.interactions, FEATURE, sets, (0.1, 0.8), 3, seed=0)
    assert again.subsets == found.subsets
    assert len({one.shift for one in found.subsets}) == 9


def small_terms(seed):
    """Terms of 9 pairs at 4 sites, some of them absent."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(4, 9, generator=generator).double() * (torch.rand(4, 9, generator=generator) < 0.6)
    site, pair = table.nonzero(as_tuple=True)
    return Terms(torch.arange(9), torch.arange(9), site, pair, table[site, pair], 4, 20), table


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("most", [None, 1, 3])
def test_the_worst_subset_is_the_worst_of_all_subsets(seed, most):
    terms, table = small_terms(seed)
    kept = torch.tensor([True, False, False, True] + [False] * 5)
    free = (~kept).nonzero().squeeze(1).tolist()
    for sign in (1, -1):
        values = {
            subset: sign * table[:, list(subset)].sum(1).mean().item()
            for size in range(len(free) + 1 if most is None else most + 1)
            for subset in itertools.combinations(free, size)
        }
        chosen = worst_subset(terms, kept, sign, most)
        assert sign * terms.sum(chosen).mean().item() == pytest.approx(max(values.values()))
        assert not (chosen & kept).any()


# Controls.


def test_other_sites_are_random_tokens_that_are_no_triggers():
    tokens = QueryTokens(torch.tensor([4, 5]), torch.tensor([6]), torch.tensor([8]), ())
    stories = tokenize_stories(random_stories(200), word_tokenizer(), 32)
    sites = other_sites(stories, tokens, 150, 9, seed=0)
    assert len(sites) == 150
    ids = sites.ids[torch.arange(150), sites.position]
    assert not torch.isin(ids, tokens.triggers).any()
    assert (ids > 3).all()  # no [BOS], no padding
    assert sites.position.tolist() == sorted(sites.position.tolist())
    assert set(sites.position.tolist()) >= set(range(1, 10))
    assert sites.position.max() == 9
    rows = {tuple(row) for row in stories.ids[:150, : sites.ids.shape[1]].tolist()}
    assert {tuple(row) for row in sites.ids.tolist()} <= rows
    assert not other_sites(stories, tokens, 150, 9, seed=1).position.equal(sites.position)


def test_a_nonsense_task_has_words_of_like_frequency_and_none_of_the_query():
    d_vocab = 400
    frequency = torch.arange(d_vocab) + 1
    tokens = QueryTokens(torch.tensor([100]), torch.tensor([110, 111]), torch.tensor([300]), ())
    # A logit that marks how far a token's frequency is from where the pole's words are, and one that marks the query.
    near = torch.full((d_vocab,), 1e6)
    near[85:140], near[275:325] = 1.0, 0.25
    near[[100, 110, 111, 300]] = 1e6
    draws = nonsense_task(near, tokens, frequency, 200, seed=0).draws
    assert draws.tolist() == pytest.approx([0.75] * 200)
    change = torch.randn(d_vocab, generator=torch.Generator().manual_seed(0))
    change[[110, 111]], change[300] = 3.0, -3.0
    found = nonsense_task(change, tokens, frequency, 2000, seed=0)
    assert found.effect == pytest.approx(6)
    assert found.p_value == 1 / 2001
    # A mean of two independent normals less a third one.
    assert found.draws.std().item() == pytest.approx(math.sqrt(1.5), rel=0.2)
    assert found.spread == pytest.approx(found.draws.std().item(), rel=1e-3)
    change[[110, 111, 300]] = 0.0
    assert nonsense_task(change, tokens, frequency, 100, seed=0).p_value == 1
    # Three words to draw from, none of them twice.
    change[397:] = torch.tensor([1.0, 2.0, 4.0])
    rare = nonsense_task(change, tokens, (frequency > 397).long(), 50, seed=0)
    assert set(rare.draws.tolist()) == {1.5 - 4, 2.5 - 2, 3 - 1.0}
    assert nonsense_task(change, tokens, 0 * frequency, 5, seed=0).draws.tolist() == [0] * 5


def test_other_features_lose_as_many_of_their_own_edges(world):
    screen = screen_features(world.corpus, world.tokens, unembedding(world.model))
    found = other_features(world.runs, world.corpus, screen, FEATURE, world.corpus.x, 5, 2, seed=0)
    expected = [
        (feature, kind)
        for kind, (eligible, frequency) in zip(("inert", "trigger"), control_sets(world.corpus, screen), strict=True)
        for feature in matched(screen, eligible, frequency, FEATURE, 2)
    ]
    assert [(one.feature, one.kind) for one in found] == expected
    assert len(found) >= 2
    for one in found:
        edges = top_edges(world.interactions, one.feature, world.corpus.x, 5)
        total = edges.contributions(world.z).sum(1)
        row = world.interactions.sae_out.W_dec[one.feature]
        close(one.effect.mean, world.effect(-total.unsqueeze(1).float() * row).mean())


# Later layers and the next token.


def test_later_features_and_tokens_are_those_that_change_most():
    world = World()
    last, change = interactions_of(world.model, 2), 0.3 * world.runs.y
    found = later_effects(world.runs, change, [world.interactions, last], 4, seed=0)
    (layer,) = found.layers
    before, after = (world.runs.mlps([2], one)[2] for one in (None, change))
    assert layer.layer == 2
    for name, old, new in (("input_change", before.x, after.x), ("output_change", before.y, after.y)):
        ratio = ((new - old).norm(dim=1) / old.norm(dim=1)).mean().item()
        assert getattr(layer, name) == pytest.approx(ratio, rel=1e-4)
    for side, dictionary, old, new in (
        ("input", last.sae_in, before.x, after.x),
        ("output", last.sae_out, before.y, after.y),
    ):
        moved = (dictionary.encode(new) - dictionary.encode(old)).mean(0)
        listed = [one for one in layer.features if one.side == side]
        assert [one.feature for one in listed] == moved.abs().argsort(descending=True)[:4].tolist()
        for one in listed:
            assert one.change.mean == pytest.approx(moved[one.feature].item(), rel=1e-4)
            assert one.before == pytest.approx(dictionary.encode(old)[:, one.feature].mean().item(), rel=1e-4)
    old, new = (x.double().log_softmax(-1) for x in (world.runs.logits, world.runs.changed_logits(change)))
    order = (new - old).mean(0).argsort(descending=True).tolist()
    assert [one.token_id for one in found.raised] == order[:4]
    assert [one.token_id for one in found.lowered] == order[::-1][:4]
    assert found.raised[0].change == pytest.approx((new - old).mean(0).max().item())
    expected = torch.nn.functional.kl_div(new, old, log_target=True, reduction="none").sum(1).mean().item()
    assert found.divergence.mean == pytest.approx(expected)


def test_the_whole_proof_refuses_what_it_cannot_prove(world):
    screen = screen_features(world.corpus, world.tokens, unembedding(world.model))

    def prove(feature=FEATURE, groups=((0, 1), (2,)), runs=world.runs):
        place = ProofPlace(runs, world.runs, world.corpus, screen, (), unembedding(world.model), 2)
        return prove_interventions(place, Target(1, feature, 1, groups), ProofSettings(), 0)

    with refused(ValueError, "groups of 1/7 must be input features between 0 and 16, got 17"):
        prove(groups=((0, 17), ()))
    with refused(ValueError, "feature must be between 0 and 18"):
        prove(feature=19)
    active = world.interactions.sae_out.encode(world.runs.y)[:, FEATURE] != 0
    chosen = ~active
    chosen[active.nonzero()[0]] = True
    with refused(ValueError, "active at two trigger sites or more, got 1/7, active at 1 of"):
        prove(runs=world.runs.select(chosen))


def test_the_circuit_is_removed_in_every_place(world):
    screen, U = screen_features(world.corpus, world.tokens, unembedding(world.model)), unembedding(world.model)
    elsewhere = Runs(world.model, 1, other_sites(world.stories[:60], world.tokens, 20, 12, 1), world.tokens)
    settings = ProofSettings(n_edges=3, n_exact=5, n_draws=1, n_controls=1, n_nonsense=5)
    groups = ((0, 1), (2, 3))
    place = ProofPlace(world.runs, elsewhere, world.corpus, screen, (), U, 2)
    proof = prove_interventions(place, Target(1, FEATURE, 1, groups), settings, 0)
    row, encoder = (write_direction(world.interactions, FEATURE, along) for along in ("decoder", "encoder"))
    active = world.interactions.sae_out.encode(world.runs.y)[:, FEATURE] != 0
    total = proof.edges.contributions(world.z).sum(1, keepdim=True).float()
    assert (proof.n_sites, proof.n_active) == (len(active), int(active.sum()))
    close(proof.places.site.mean, world.effect(-total * row)[active].mean())
    close(proof.places.all_sites.mean, world.effect(-total * row).mean())
    close(proof.places.encoder.mean, world.effect(-total * encoder)[active].mean())
    form = world.interactions.spectrum(FEATURE, 2)(world.runs.x).unsqueeze(1)
    close(proof.places.rank_form.mean, world.effect(-form * row)[active].mean())
    there = proof.edges.contributions(world.interactions.sae_in.encode(elsewhere.x)).sum(1, keepdim=True).float()
    close(proof.places.elsewhere.mean, elsewhere.effects((-there * row).unsqueeze(0)).mean())
    here, edit = world.runs.select(active), removal_of(world.interactions, FEATURE, proof.edges)
    close(proof.places.row.mean, here.effect(edit).mean())
    close(proof.places.before.mean, here.effect(edit, "elsewhere").mean())
    assert len({round(one.mean, 4) for one in vars(proof.places).values()}) == 7
    names = [node.name for node in proof.nodes]
    assert names == [name for name in ("first group", "second group", "both groups") for _ in range(3)] + [*"0123"]
    token, _ = world.corpus.outputs[FEATURE]
    at_triggers = token[world.tokens.is_trigger(world.corpus.token_ids[token])]
    assert len(at_triggers) > 1
    assert proof.edges.first.equal(top_edges(world.interactions, FEATURE, world.corpus.x[at_triggers], 3).first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_edges": 0}, "n_edges must be a whole number of at least 1, got 0"),
        ({"n_draws": True}, "n_draws must be a whole number of at least 1, got True"),
        ({"factors": (1.0, math.nan)}, "factors must be one or more finite numbers"),
        ({"factors": ()}, "factors must be one or more finite numbers"),
        ({"sizes": (0.0,)}, "sizes must be one or more shares between 0 and 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with refused(ValueError, message):
        ProofSettings(**change)


def test_what_is_written_is_delta_times_the_direction(world):
    direction = write_direction(world.interactions, FEATURE)
    delta = torch.tensor([[1.0, -2.0, 0.0]]).double()
    assert written(delta, direction).shape == (1, 3, 12)
    close(written(delta, direction)[0, 1], -2 * direction)
