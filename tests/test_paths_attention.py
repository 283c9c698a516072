"""Heads from weights alone, scores at all distances, and ledgers of attention scores."""

import pytest
import torch
from helpers import randn, refused
from llamas import D_HEAD, KINDS, random_dictionary, random_llama, random_run, relative

from bilinear_circuits.paths.attention import AttentionHead
from bilinear_circuits.paths.forms import BilinearForm
from bilinear_circuits.paths.nodes import Node
from bilinear_circuits.paths.qk import QKForm
from bilinear_circuits.paths.run import FrozenRun
from bilinear_circuits.paths.weights import read_weights


@pytest.fixture(scope="module")
def weights():
    return read_weights(random_llama("silu"), torch.float64)


def test_ov_is_what_a_head_moves(weights):
    head = AttentionHead.of(weights, 1, 3)
    form = head.ov(weights.W_E, weights.W_U.T)
    dense = weights.W_E @ weights.layers[1].W_V[1] @ weights.layers[1].W_O[3] @ weights.W_U
    assert relative(form.matrix(), dense) < 1e-10
    assert form.norm() == pytest.approx(dense.norm().item())
    assert relative(form.row(4), dense[4]) < 1e-10
    top = form.top(5)
    assert relative(top.value.abs(), dense.abs().flatten().sort(descending=True).values[:5]) < 1e-10
    assert relative(dense[top.row, top.column], top.value) < 1e-10
    dictionary = random_dictionary(0)
    between = head.ov(dictionary, dictionary)
    assert relative(between.matrix(), dictionary.W_dec @ head.W_V @ head.W_O @ dictionary.W_enc) < 1e-10


def test_the_top_of_a_form_is_found_in_blocks(monkeypatch):
    from bilinear_circuits.paths import forms

    form = BilinearForm(randn(9, 3, seed=1), randn(7, 3, seed=2))
    whole = form.top(6)
    monkeypatch.setattr(forms, "_BLOCK", 10)
    assert form.top(6).value.equal(whole.value)
    assert form.top(100).value.shape == (63,)
    assert form[2, 3].item() == pytest.approx(form.matrix()[2, 3].item())


def test_centred_scores_are_less_their_mean_over_the_keys_at_every_distance(weights):
    form = AttentionHead.of(weights, 0, 2).qk(randn(3, weights.d_model), randn(5, weights.d_model, seed=3))
    for distance in (0, 1, 7):
        whole = form.at(distance).matrix()
        expected = whole - whole.mean(1, keepdim=True)
        assert relative(form.centred().at(distance).matrix(), expected) < 1e-9


def test_eigenvalues_are_those_of_the_dense_matrix(weights):
    head = AttentionHead.of(weights, 0, 2)
    for arguments, dense in (
        ((), head.W_V @ head.W_O),
        ((weights.W_E, weights.W_U.T), weights.W_E @ head.W_V @ head.W_O @ weights.W_U),
    ):
        expected = torch.linalg.eigvals(dense)
        expected = expected[expected.abs().argsort(descending=True)][:D_HEAD]
        found = head.eigenvalues(*arguments)
        assert relative(found.abs(), expected.abs()) < 1e-8
        assert found.sum().real.item() == pytest.approx(dense.trace().item(), rel=1e-8)
        share = expected.abs()[expected.real > 0].sum() / expected.abs().sum()
        assert head.copying_score(*arguments) == pytest.approx(share.item())
    with refused(ValueError, "sources and readouts must both be given, got one of them"):
        head.eigenvalues(weights.W_E)
    with refused(ValueError, "readouts must be as many as sources, 30, got 4"):
        head.eigenvalues(weights.W_E, weights.W_U.T[:4])


@pytest.mark.parametrize("distance", [0, 3])
def test_composition_is_a_ratio_of_dense_norms(weights, distance):
    earlier, later = AttentionHead.of(weights, 0, 1), AttentionHead.of(weights, 1, 2)
    angle = weights.inv_freq * distance
    cos, sin = angle.cos().diag(), angle.sin().diag()
    turn = torch.cat([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)])
    ov, qk = earlier.W_V @ earlier.W_O, later.W_Q @ turn @ later.W_K.T
    for by, read in (("Q", qk), ("K", qk.T), ("V", later.W_V @ later.W_O)):
        expected = (ov @ read).norm() / (ov.norm() * read.norm())
        assert later.composition(earlier, by, distance) == pytest.approx(expected.item())
    mlp = weights.layers[1]
    expected = [((ov @ W).norm() / (ov.norm() * W.norm())).item() for W in (mlp.W_gate, mlp.W_in)]
    assert earlier.read_by_mlp(mlp) == pytest.approx(tuple(expected))
    with refused(ValueError, "earlier must be a head of a layer before 0"):
        earlier.composition(later, "K")
    with refused(ValueError, "layer must be between 0 and 1, got 2"):
        AttentionHead.of(weights, 2, 0)


ROPES = {
    "plain": {},
    "linear": {"factor": 2.0},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
}


@pytest.mark.parametrize(
    ("kind", "rope"),
    [*((kind, "plain") for kind in ("silu", "mistral", "qwen3", "gemma")), *(("silu", rope) for rope in ROPES)],
)
def test_scores_at_a_distance_rebuild_patterns(kind, rope):
    """With residual streams over their scales as directions; norms on queries and keys are scalars of tokens."""
    rope_type = {"rope_type": rope, "rope_theta": 100.0, **ROPES[rope]}
    settings = {} if rope == "plain" else {"rope_parameters": rope_type}
    run = random_run(kind, n_pos=6, **settings)
    frozen, layer, head = run.frozen, 1, 3
    one = frozen.weights.layers[layer]
    normed = frozen.resid_pre[layer] / frozen.s1[layer]
    form = AttentionHead.of(frozen.weights, layer, head).qk(normed, normed)
    at = torch.arange(6)
    distance = at.unsqueeze(1) - at
    scores = torch.stack([torch.stack([form.at(int(d))[q, k] for k, d in enumerate(distance[q])]) for q in range(6)])
    if one.q_norm is not None:
        q, k = normed @ one.W_Q[head], normed @ one.W_K[head // one.group]
        sizes = [(x.square().mean(-1) + frozen.weights.eps).sqrt() for x in (q, k)]
        scores = scores / sizes[0].unsqueeze(1) / sizes[1]
    hidden = (distance < 0) | (distance >= (one.window or 99))
    pattern = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    assert relative(pattern, run.patterns[layer, head]) < 1e-6


def random_form(n_queries=30, n_keys=40, half=3, seed=0):
    real = [randn(n, half, seed=seed + i) for i, n in enumerate((n_queries, n_queries, n_keys, n_keys))]
    freq = torch.tensor([1.0, 0.3, 0.01], dtype=torch.float64)
    return QKForm(torch.complex(*real[:2]), torch.complex(*real[2:]), freq[:half])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("block", [20, 1 << 20])
def test_the_highest_scores_are_those_of_all_pairs_and_distances(seed, block, monkeypatch):
    from bilinear_circuits.paths import qk

    monkeypatch.setattr(qk, "_BLOCK", block)
    form, n = random_form(seed=10 * seed), 11
    dense = torch.stack([form.at(d).matrix() for d in range(n)], -1)
    found = form.top(6, n)
    assert relative(found.score, dense.flatten().sort(descending=True).values[:6]) < 1e-10
    assert relative(dense[found.query, found.key, found.distance], found.score) < 1e-10
    assert found.n_exact < found.n_pairs == 1200
    assert (dense.abs() <= form.bound().matrix().unsqueeze(-1) * (1 + 1e-12)).all()
    assert relative(form.mean(n).matrix(), dense.mean(-1)) < 1e-10
    assert relative(form.scores(found.query, found.key, n).amax(1)[:1], found.score[:1]) < 1e-10


def test_searches_over_nothing_are_refused():
    with refused(ValueError, "k must be at least 1"):
        random_form().top(0, 5)
    with refused(ValueError, "number of distances must be at least 1"):
        random_form().top(1, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_ledgers_sum_to_scores_and_log_odds(kind):
    dictionaries = {0: random_dictionary(0)} if kind in ("silu", "gemma2") else None
    run = random_run(kind, n_pos=6, n_layers=3, dictionaries=dictionaries)
    found = run.why(2, 1, 5, -2)
    window = run.frozen.weights.layers[2].window
    seen = slice(0 if window is None else 6 - window, 6)
    logs = run.patterns[2, 1, 5, seen].log()
    assert found.log_odds == pytest.approx((run.patterns[2, 1, 5, 4].log() - logs.mean()).item(), rel=1e-9)
    assert found.centred.sum().item() == pytest.approx(found.log_odds, rel=1e-9)
    assert found.terms.sum().item() == pytest.approx(found.score, rel=1e-9)
    other = run.why(2, 1, 5, 3)  # scores differ as logarithms of the pattern do
    assert found.score - other.score == pytest.approx((logs[-2] - logs[-3]).item(), rel=1e-9)
    assert {node.kind for node in found.key_parts} >= {"embedding", "head"}
    first, second, value = found.top(1)[0]
    assert found.centred[found.query_parts.index(first), found.key_parts.index(second)].item() == value
    assert found.by_query().sum().item() == pytest.approx(found.by_key().sum().item())


def test_one_term_of_a_ledger_from_the_formula():
    """Embedding at the query times embedding at the key, less its mean, at their distances."""
    run = random_run("silu", n_pos=4)
    frozen, found = run.frozen, run.why(1, 2, 3, 1)
    rows = frozen.embedded / frozen.s1[1]
    form = AttentionHead.of(frozen.weights, 1, 2).qk(rows[3:], rows)
    scores = torch.stack([form.at(3 - k)[0, k] for k in range(4)])
    at = found.query_parts.index(Node("embedding", position=3)), found.key_parts.index(Node("embedding", position=1))
    assert found.terms[at].item() == pytest.approx(scores[1].item(), rel=1e-6)
    assert found.centred[at].item() == pytest.approx((scores[1] - scores.mean()).item(), rel=1e-5)


def test_what_a_query_does_not_see_is_refused():
    run = random_run("mistral", n_pos=6)
    for arguments, message in (
        ((1, 1, 5, 1), "seen by the query at 5, from 3 to 5, got 1"),
        ((1, 1, 2, 3), "from 0 to 2, got 3"),
        ((2, 1, 2, 1), "layer must be between 0 and 1, got 2"),
        ((1, 1, 6, 1), "query_pos must be between -6 and 5, got 6"),
    ):
        with refused(ValueError, message):
            run.why(*arguments)


N_WORDS, WIDTH, HALF = 8, 32, 16


def induction_model():
    """Head 0.0 looks one token back and copies it to dimensions 8 to 15; head 1.0 looks where that is its own token."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=N_WORDS,
        hidden_size=WIDTH,
        intermediate_size=5,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=WIDTH,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
        hidden_act="silu",
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = 0.02 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(torch.ones_like(noise) if "norm" in name else noise)
        words = range(N_WORDS)
        model.model.embed_tokens.weight.zero_()
        for word in words:
            model.model.embed_tokens.weight[word, [word, 16]] = 1
            model.lm_head.weight[word, 24 + word] = 4
        (first, second) = (block.self_attn for block in model.model.layers)
        for p in range(8):  # turned back by one position, so that the score peaks at a distance of one
            angle = torch.tensor(1e6 ** (-p / HALF))
            first.q_proj.weight[p, 16], first.q_proj.weight[HALF + p, 16] = 8 * angle.cos(), -8 * angle.sin()
            first.k_proj.weight[p, 16] = 8
        for word in words:
            first.v_proj.weight[word, word] = second.v_proj.weight[word, word] = 1
            first.o_proj.weight[8 + word, word] = second.o_proj.weight[24 + word, word] = 2
            # The slowest pairs of dimensions: the distance hardly turns them.
            second.q_proj.weight[8 + word, word] = second.k_proj.weight[8 + word, 8 + word] = 12
    return model


def test_a_planted_induction_head_ranks_first():
    model = induction_model()
    tokens = torch.tensor([3, 5, 1, 6, 2, 7, 5])
    run = FrozenRun(model, tokens, torch.float64)
    assert run.logits[-1].argmax() == 1
    best = next(node for node in run.graph(1).nodes(20).nodes if node.kind == "head")
    assert best == Node("head", 1, 6, 0, 2)
    first, second, value = run.why(1, 0, 6, 2).top(1)[0]
    assert (first, second) == (Node("embedding", position=6), Node("head", 0, 2, 0))
    assert value > 2
    weights = run.frozen.weights
    pairs = {
        (earlier, later): AttentionHead.of(weights, 1, later).composition(AttentionHead.of(weights, 0, earlier), "K")
        for earlier in range(4)
        for later in range(4)
    }
    assert max(pairs, key=pairs.get) == (0, 0)
    copies = [AttentionHead.of(weights, 1, head).copying_score(weights.W_E, weights.W_U.T) for head in range(4)]
    assert copies[0] == max(copies)
    assert copies[0] > 0.95
    back = AttentionHead.of(weights, 0, 0).qk(weights.W_E, weights.W_E).top(3, 7)
    assert back.distance.tolist() == [1, 1, 1]
