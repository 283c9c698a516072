import pytest
from planted import word_tokenizer

from bilinear_circuits.circuits.query import CircuitQuery, QueryTokens

WORDS = {"name": "q", "triggers": ("not",), "positive": ("good", "nice"), "negative": ("bad",)}


def test_words_become_ids_of_every_spelling_that_is_one_token():
    tokenizer = word_tokenizer(["not", "Not", "good", "nice", "bad"])
    tokens = QueryTokens.resolve(CircuitQuery(**WORDS), tokenizer)
    assert tokens.triggers.tolist() == [4, 5]
    assert tokens.positive.tolist() == [6, 7]
    assert tokens.negative.tolist() == [8]
    assert tokens.missing == ()


def test_a_word_outside_the_vocabulary_is_refused_by_name():
    query = CircuitQuery(**{**WORDS, "negative": ("bad", "dreadful")})
    with pytest.raises(ValueError, match=r"single tokens of the model's vocabulary, got dreadful.*allow_missing: true"):
        QueryTokens.resolve(query, word_tokenizer())


def test_allow_missing_leaves_words_out_and_records_them():
    query = CircuitQuery(**{**WORDS, "negative": ("bad", "dreadful"), "allow_missing": True})
    tokens = QueryTokens.resolve(query, word_tokenizer())
    assert tokens.missing == ("dreadful",)
    assert len(tokens.negative) == 1


def test_a_pole_left_empty_is_refused_even_so():
    query = CircuitQuery(**{**WORDS, "negative": ("dreadful",), "allow_missing": True})
    with pytest.raises(ValueError, match="negative must hold at least one word that is a single token"):
        QueryTokens.resolve(query, word_tokenizer())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"triggers": ()}, "triggers must hold at least one word"),
        ({"triggers": ("not", " ")}, r"triggers must hold words, got one without a letter in \['not', ' '\]"),
        ({"triggers": "not"}, "triggers must be a list of words, got 'not'"),
        ({"negative": ("good",)}, "must not share words, got good in both"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        CircuitQuery(**{**WORDS, **change})
