import pytest
import torch
from planted import interactions_of, random_stories, tiny_llama, word_tokenizer

from bilinear_circuits.circuits.query import CircuitQuery, QueryTokens
from bilinear_circuits.circuits.rank import pole_shift, rank_features, screen_features, trigger_share
from bilinear_circuits.data.stories import tokenize_stories
from bilinear_circuits.interactions.activity import collect_activity
from bilinear_circuits.interactions.shape import and_shape
from bilinear_circuits.models.running import unembedding

QUERY = CircuitQuery("negation", ("not", "never"), ("good", "nice"), ("bad", "sad"))


@pytest.fixture(scope="module")
def world():
    model = tiny_llama()
    tokenizer = word_tokenizer()
    stories = tokenize_stories(random_stories(150), tokenizer, 32)
    (activity,) = collect_activity(model, [interactions_of(model, 1)], stories)
    return model, activity, QueryTokens.resolve(QUERY, tokenizer)


def ranked(model, activity, tokens, n_shortlist):
    screen = screen_features(activity, tokens, unembedding(model))
    return rank_features(activity, screen, n_shortlist, n_baseline=9, seed=0)


def test_trigger_share_is_the_activation_on_triggers_over_all_of_it(world):
    _, activity, tokens = world
    dictionary, mlp = activity.interactions.sae_out, activity.interactions.mlp
    z = dictionary.encode(mlp(activity.x))
    on_trigger = torch.tensor([int(i) in (4, 5) for i in activity.token_ids])
    expected = (z * on_trigger.unsqueeze(1)).sum(0) / z.sum(0)
    assert 0 < expected.min() < expected.max() < 1
    torch.testing.assert_close(trigger_share(activity, tokens).float(), expected)


def test_pole_shift_is_the_logit_difference_in_units_of_the_row(world):
    model, activity, tokens = world
    row = activity.interactions.sae_out.W_dec[7]
    logits = model.lm_head(row * model.model.norm.weight)
    expected = ((logits[6] + logits[7]) / 2 - (logits[8] + logits[9]) / 2) / logits.std()
    got = pole_shift(activity.interactions.sae_out, unembedding(model), tokens)[7]
    torch.testing.assert_close(got, expected.detach())


def test_the_score_is_the_geometric_mean_of_the_five_parts_and_sorts_the_ranking(world):
    model, activity, tokens = world
    ranking = ranked(model, activity, tokens, 4)
    assert 2 <= len(ranking) <= 8
    scores = [one.score for one in ranking]
    assert scores == sorted(scores, reverse=True)
    for one in ranking:
        parts = (
            one.trigger_share,
            abs(one.pole_shift),
            one.outlier_ratio,
            one.and_shape,
            max(0, one.rank2_correlation),
        )
        product = 1.0
        for part in parts:
            product *= part
        assert one.score**5 == pytest.approx(product)


def test_evidence_agrees_with_the_feature_it_names(world):
    model, activity, tokens = world
    best = ranked(model, activity, tokens, 2)[0]
    dense = activity.interactions.form(best.feature).matrix.to_dense()
    eigenvalues = torch.linalg.eigvalsh(dense)
    edge = 2 * dense.norm() / dense.shape[0] ** 0.5
    assert best.outlier_ratio == pytest.approx((min(eigenvalues.max(), -eigenvalues.min()) / edge).item(), rel=1e-4)
    token, _ = activity.outputs[best.feature]
    assert best.n_active == len(token)
    alive = (activity.outputs.counts > 10).nonzero().squeeze(1)
    sample = alive[torch.randperm(len(alive), generator=torch.Generator().manual_seed(0))[:9]].tolist()
    smaller = [and_shape(activity, f, activity.interactions.spectrum(f)).score < best.and_shape for f in sample]
    assert best.and_percentile == pytest.approx(sum(smaller) / 9)
    assert 0 <= best.outlier_percentile <= 1
    assert best.n_trigger == sum(int(activity.token_ids[t]) in (4, 5) for t in token)
    assert best.sign == (1 if best.pole_shift > 0 else -1)


def test_a_feature_that_hardly_meets_a_trigger_is_not_ranked(world):
    model, activity, _ = world
    rare = QueryTokens(torch.tensor([999]), torch.tensor([6]), torch.tensor([8]), ())
    assert ranked(model, activity, rare, 4) == []
