"""Stories sampled from a tiny model with random weights."""

import pytest
import torch
from helpers import refused
from planted import tiny_llama, word_tokenizer

from bilinear_circuits.training.sampling import sample_stories


@pytest.fixture(scope="module")
def sampled():
    model, tokenizer = tiny_llama(), word_tokenizer()

    def sample(n=5, **changes):
        return sample_stories(model, tokenizer, n, **({"max_tokens": 12, "batch_size": 3} | changes))

    return sample


def test_stories_follow_the_seed_and_leave_the_generator_alone(sampled):
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first = sampled(seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert sampled(seed=1) == first
    assert sampled(seed=2) != first


def test_stories_are_words_of_the_vocabulary_without_marks(sampled):
    stories, words = sampled(n=7), set(word_tokenizer().get_vocab())
    assert 1 <= len(stories) <= 7  # stories without any word are left out
    for story in stories:
        assert 1 <= len(story.split()) <= 12
        assert set(story.split()) <= {word for word in words if not word.startswith("[")}


def test_a_low_temperature_repeats_the_likeliest_story(sampled):
    assert len(set(sampled(n=6, temperature=1e-4))) <= 1


def test_a_tokenizer_that_cannot_start_is_refused():
    tokenizer = word_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with refused(ValueError, "tokenizer must have a bos_token or an eos_token"):
        sample_stories(tiny_llama(), tokenizer, 1)
