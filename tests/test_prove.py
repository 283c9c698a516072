import copy
import math

import pytest
import torch
from planted import interactions_of, random_stories, tiny_llama, word_tokenizer

from bilinear_circuits.circuits.edits import ablation_edit, removal_edit
from bilinear_circuits.circuits.prove import control_sets, loss_change, matched
from bilinear_circuits.circuits.query import CircuitQuery, QueryTokens
from bilinear_circuits.circuits.rank import screen_features
from bilinear_circuits.data.stories import tokenize_stories
from bilinear_circuits.interactions.activity import collect_activity
from bilinear_circuits.models.running import unembedding
from bilinear_circuits.runs import CrossEntropy, Runs, Sites
from bilinear_circuits.statistics.effects import bootstrap, bootstrap_rows

LAYER, FEATURE = 1, 7


@pytest.fixture(scope="module")
def world():
    model, tokenizer = tiny_llama(), word_tokenizer()
    tokens = QueryTokens.resolve(CircuitQuery("q", ("not",), ("good", "nice"), ("bad", "sad")), tokenizer)
    stories = tokenize_stories(random_stories(60), tokenizer, 32)
    return model, interactions_of(model, LAYER), stories, tokens


def with_extra_neurons(model, spectrum, row):
    """The same model with -lambda_i (v_i . x)^2 row added to its MLP as one neuron per eigenvector."""
    edited = copy.deepcopy(model)
    mlp, vectors = edited.model.layers[LAYER].mlp, spectrum.eigenvectors.T
    for name in ("gate_proj", "up_proj"):
        getattr(mlp, name).weight = torch.nn.Parameter(torch.cat([getattr(mlp, name).weight, vectors]))
    columns = -row.unsqueeze(1) * spectrum.eigenvalues
    mlp.down_proj.weight = torch.nn.Parameter(torch.cat([mlp.down_proj.weight, columns], dim=1))
    return edited


def difference(logits):
    return (logits[..., 6] + logits[..., 7] - logits[..., 8] - logits[..., 9]) / 2


@torch.no_grad()
def test_removal_is_an_edit_of_the_weights(world):
    model, interactions, stories, tokens = world
    spectrum = interactions.spectrum(FEATURE, 2)
    edited = with_extra_neurons(model, spectrum, interactions.sae_out.W_dec[FEATURE])
    sites = tokens.sites(stories, n=40, max_position=12)
    effect = Runs(model, LAYER, sites, tokens).effect(removal_edit(interactions, FEATURE, spectrum))
    at = torch.arange(len(sites)), sites.position
    expected = difference(edited(sites.ids).logits[at]) - difference(model(sites.ids).logits[at])
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(effect.float(), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_ablation_takes_the_feature_out_of_the_mlp_output(world):
    model, interactions, stories, tokens = world
    sites = tokens.sites(stories, n=40, max_position=12)
    effect = Runs(model, LAYER, sites, tokens).effect(ablation_edit(interactions, FEATURE))

    def ablate(module, args, output):
        z = interactions.sae_out.encode(output)
        z_without = z.clone()
        z_without[..., FEATURE] = 0
        return output + interactions.sae_out.decode(z_without) - interactions.sae_out.decode(z)

    at = torch.arange(len(sites)), sites.position
    base = difference(model(sites.ids).logits[at])
    handle = model.model.layers[LAYER].mlp.register_forward_hook(ablate)
    expected = difference(model(sites.ids).logits[at]) - base
    handle.remove()
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(effect.float(), expected, atol=1e-5, rtol=1e-4)


def test_a_site_is_the_first_trigger_of_a_story_and_ends_it(world):
    _, _, stories, tokens = world
    sites = tokens.sites(stories, n=1000, max_position=6)
    expected = []
    for row in stories.ids.tolist():
        positions = [i for i, token in enumerate(row[:7]) if token == 4]
        expected += positions[:1]
    assert sites.position.tolist() == sorted(expected)
    assert (sites.ids[torch.arange(len(sites)), sites.position] == 4).all()
    assert sites.ids.shape[1] == max(expected) + 1
    assert sum(len(batch) for batch in sites.batches()) == len(sites)


@torch.no_grad()
def test_the_loss_is_the_model_s_cross_entropy_per_token(world):
    model, _, stories, _ = world
    losses = Runs(model, LAYER, Sites.everywhere(stories), CrossEntropy())
    total, count = 0.0, 0
    for ids, mask in zip(stories.ids, stories.mask, strict=True):
        row = ids[: int(mask.sum()) + 1]
        logits = model(row.unsqueeze(0)).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum").item()
        count += len(row) - 1
    assert losses.values.mean().item() == pytest.approx(total / count, rel=1e-5)
    generator = torch.Generator().manual_seed(0)
    nothing = loss_change(losses, lambda x, y: torch.zeros_like(y), generator)
    assert nothing.mean == pytest.approx(0, abs=1e-6)
    something = loss_change(losses, lambda x, y: -y, generator)
    assert something.low < something.mean < something.high
    assert abs(something.mean) > 1e-3


def test_controls_are_the_closest_in_frequency_and_norm_of_either_set(world):
    model, interactions, stories, tokens = world
    (activity,) = collect_activity(model, [interactions], stories)
    screen = screen_features(activity, tokens, unembedding(model))
    counts = activity.outputs.counts
    z = interactions.sae_out.encode(interactions.mlp(activity.x))
    at_trigger = activity.token_ids == 4
    chance = z[at_trigger].sum() / z.sum()
    n_trigger = (z[at_trigger] > 0).sum(0)
    dense = interactions.mlp.tensor.matrix(interactions.sae_out.W_enc.T).to_dense()
    log_norm = dense.flatten(1).norm(dim=1).log()
    expected = [
        (counts, [f for f in range(len(counts)) if counts[f] > 0 and screen.share[f] <= chance]),
        (n_trigger, [f for f in range(len(counts)) if screen.share[f] > chance and abs(screen.shift[f]) < 1]),
    ]
    for (eligible, frequency), (own_frequency, own) in zip(control_sets(activity, screen), expected, strict=True):
        assert eligible.nonzero().squeeze(1).tolist() == own
        torch.testing.assert_close(frequency, own_frequency)
        distance = torch.zeros(len(counts))
        for quantity in (frequency.clamp_min(1).log(), log_norm):
            distance += ((quantity - quantity[FEATURE]) / quantity[frequency > 0].std()) ** 2
        nearest = sorted((f for f in own if f != FEATURE), key=lambda f: distance[f].item())
        assert matched(screen, eligible, frequency, FEATURE, 3) == nearest[:3]


def test_the_bootstrap_interval_has_the_width_of_the_standard_error():
    values = torch.randn(400, dtype=torch.double, generator=torch.Generator().manual_seed(1)) + 0.3
    effect = bootstrap(values, torch.Generator().manual_seed(0))
    standard_error = values.std().item() / math.sqrt(len(values))
    assert effect.mean == pytest.approx(values.mean().item())
    assert (effect.high - effect.low) / 2 == pytest.approx(1.96 * standard_error, rel=0.08)
    assert effect.excludes_zero
    assert effect.n == 400


def test_the_interval_of_a_table_covers_the_spread_between_its_rows():
    rows = torch.linspace(-1, 1, 10, dtype=torch.double).unsqueeze(1).expand(10, 50)
    effect = bootstrap_rows(rows, torch.Generator().manual_seed(0))
    standard_error = rows[:, 0].std(correction=0).item() / math.sqrt(10)
    assert (effect.high - effect.low) / 2 == pytest.approx(1.96 * standard_error, rel=0.1)
    assert not effect.excludes_zero


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_values_give_no_interval(n):
    effect = bootstrap(torch.ones(n, dtype=torch.double), torch.Generator())
    assert math.isnan(effect.low)
    assert math.isnan(effect.high)
    assert effect.n == n
    assert not effect.excludes_zero
