"""The whole search, on a tiny random model and on the shipped one."""

from pathlib import Path

import pytest
import torch
from planted import interactions_of, random_stories, tiny_llama, word_tokenizer

from bilinear_circuits import zoo
from bilinear_circuits.circuits import CircuitQuery, CircuitSearch, SearchSettings, find_circuits
from bilinear_circuits.report import search_payload
from bilinear_circuits.utilities.saving import load_result, save_result

QUERY = CircuitQuery("negation", ("not", "never"), ("good", "nice"), ("bad", "sad"))
SMALL = SearchSettings(
    ranking_stories=150,
    loss_stories=10,
    loss_tokens=16,
    sites=30,
    site_position=12,
    shortlist=4,
    circuits=2,
    controls=3,
)


@pytest.fixture(scope="module")
def search():
    model = tiny_llama()
    layers = [interactions_of(model, layer) for layer in (0, 2)]
    before = count_hooks(model)
    result = find_circuits(model, layers, QUERY, random_stories(260), word_tokenizer(), SMALL, seed=3)
    assert count_hooks(model) == before
    return result


def test_a_search_is_saved_and_comes_back_whole(search, tmp_path):
    save_result(search, tmp_path, {"seed": 3})
    back = load_result(CircuitSearch, tmp_path)
    assert search_payload(back, {}) == search_payload(search, {})
    for one, other in zip(back.circuits, search.circuits, strict=True):
        assert one.evidence == other.evidence
        assert repr(one.proof) == repr(other.proof)  # intervals of one story are NaN
        assert one.profile.spectrum.eigenvectors.equal(other.profile.spectrum.eigenvectors)


def count_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_both_signs_are_found_and_proved(search):
    signs = [circuit.evidence.sign for circuit in search.circuits]
    assert signs == [1, 1, -1, -1]
    for circuit in search.circuits:
        assert circuit.profile.feature == circuit.evidence.feature
        assert len(circuit.proof.controls) == 3
        removal = circuit.proof.removal_all_sites
        assert removal.low <= removal.mean <= removal.high
        assert removal.n == search.n_sites
        n_controls = 3 + len(circuit.proof.trigger_controls)
        assert 1 / (1 + n_controls) <= circuit.proof.p_value <= 1
        assert len(circuit.proof.trigger_controls) <= 3


def test_the_circuits_are_the_best_of_their_sign(search):
    for sign in (1, -1):
        ranked = [one.name for one in search.ranking if one.sign == sign][:2]
        assert [c.evidence.name for c in search.circuits if c.evidence.sign == sign] == ranked


def test_the_decoder_cosine_compares_circuits_over_layers(search):
    cosine = search.decoder_cosine
    assert cosine.shape == (4, 4)
    torch.testing.assert_close(cosine.diagonal(), torch.ones(4))
    torch.testing.assert_close(cosine, cosine.T)


def test_the_same_seed_gives_the_same_answer(search):
    model = tiny_llama()
    layers = [interactions_of(model, layer) for layer in (0, 2)]
    again = find_circuits(model, layers, QUERY, random_stories(260), word_tokenizer(), SMALL, seed=3)
    assert [one.name for one in again.ranking] == [one.name for one in search.ranking]
    assert [one.proof.removal for one in again.circuits] == [one.proof.removal for one in search.circuits]


@pytest.mark.parametrize(
    ("stories", "message"),
    [
        (["the cat sat ."] * 20, "stories must be more than 160 .* got 20"),
        (["the cat sat ."] * 200, r"stories must hold triggers \(not, never\) within their first 12 tokens, got none"),
        (["the cat was not good ."] * 161 + ["the cat sat ."] * 5, "no output feature active on more than ten"),
    ],
)
def test_too_little_text_is_refused_with_what_is_missing(stories, message):
    model = tiny_llama()
    settings = SMALL
    if "output feature" in message:
        settings = SearchSettings(**{**vars(SMALL), "ranking_stories": 5})
    with pytest.raises(ValueError, match=message):
        find_circuits(model, [interactions_of(model, 0)], QUERY, stories, word_tokenizer(), settings)


def test_a_plain_model_needs_a_tokenizer():
    model = tiny_llama()
    with pytest.raises(ValueError, match="tokenizer must be given for a LlamaForCausalLM"):
        find_circuits(model, [interactions_of(model, 0)], QUERY, random_stories(260), settings=SMALL)


def test_settings_must_be_positive():
    with pytest.raises(ValueError, match="sites must be a whole number of at least 1, got 0"):
        SearchSettings(sites=0)


@pytest.mark.slow
def test_negation_is_found_on_the_shipped_model_and_controls_do_nothing():
    import bilinear_circuits as bc
    from bilinear_circuits.circuits.query_file import read_query
    from bilinear_circuits.data.corpora import read_stories

    asked = read_query(str(Path(__file__).parents[1] / "configs/circuits/sentiment_negation.yaml"))
    model = bc.load_model()
    layers = [
        bc.FeatureInteractions(bc.BilinearMLP.from_model(model, layer), *bc.load_dictionaries(layer))
        for layer in zoo.dictionary_layers("ts-17m")
    ]
    stories = read_stories(zoo.corpus_path("ts-17m"), 800)
    settings = SearchSettings(ranking_stories=150, sites=80, circuits=1, controls=8, loss_stories=12)
    search = bc.find_circuits(model, layers, asked.query, stories, settings=settings)
    positive, negative = search.circuits
    assert (positive.evidence.sign, negative.evidence.sign) == (1, -1)
    assert positive.proof.removal.high < -0.1
    assert negative.proof.removal.low > 0.1
    for circuit in search.circuits:
        assert abs(circuit.proof.control.mean) < 0.1 * abs(circuit.proof.removal.mean)
        assert abs(circuit.proof.ce_removal.mean) < 0.01
