"""Accounts of single prompts: against the model itself, against the model with edited weights, and as JSON."""

import json

import pytest
import torch
from helpers import assert_near, refused
from planted import WORDS, interactions_of, tiny_llama, word_tokenizer

from bilinear_circuits.data.stories import tokenize_stories
from bilinear_circuits.models.running import capture_mlp, run_logits
from bilinear_circuits.prompts.accounts import NextTokens, check_prompt, explain_prompt, in_float64, prompt_tokens
from bilinear_circuits.report.prompts import prompt_payload
from bilinear_circuits.surgery import FormEdit, edit_model

TEXT = "the cat was not good and the zebra sat"
FEATURES = [(2, 4), (1, 3), (2, 11)]


@pytest.fixture(scope="module")
def model():
    return tiny_llama().double()


@pytest.fixture(scope="module")
def layers(model):
    return [interactions_of(model, layer) for layer in (1, 2)]


@pytest.fixture(scope="module")
def ids():
    return prompt_tokens(TEXT, word_tokenizer(), 32)


@pytest.fixture(scope="module")
def account(model, layers, ids):
    return explain_prompt(model, layers, FEATURES, ids, n_next=5)


def test_a_prompt_is_tokenized_like_a_story(ids):
    tokenizer = word_tokenizer()
    assert torch.equal(ids, tokenize_stories([TEXT], tokenizer, 32).ids[0])
    assert tokenizer.convert_ids_to_tokens(ids.tolist()) == ["[BOS]", *TEXT.replace("zebra", "[UNK]").split()]


def test_a_prompt_may_fill_the_context_and_no_more():
    tokenizer = word_tokenizer()
    assert len(prompt_tokens("cat " * 7, tokenizer, 8)) == 8
    with refused(
        ValueError, r"prompt must have at most 7 tokens, which with \[BOS\] fill the model's context, got more"
    ):
        prompt_tokens("cat " * 8, tokenizer, 8)


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_a_prompt_without_tokens_is_refused(text):
    with refused(ValueError, "prompt must hold at least one token, got "):
        prompt_tokens(text, word_tokenizer(), 8)


def test_activations_are_those_of_the_model(account, model, layers, ids):
    captured = capture_mlp(model, ids.unsqueeze(0), [1, 2])
    assert [one.name for one in account.features] == ["2/4", "1/3", "2/11"]
    assert torch.equal(account.token_ids, ids[1:])
    for one in account.features:
        sae_out, y = layers[one.layer - 1].sae_out, captured[one.layer].y[0, 1:]
        assert_near(one.pre_activation, sae_out.pre_activations(y)[:, one.feature])
        assert_near(one.activation, sae_out.encode(y)[:, one.feature])
        assert_near(one.ledger.total, one.pre_activation)


def test_pairs_of_every_token_add_up_to_their_term(account, ids):
    for one in account.features:
        assert len(one.pairs) == len(ids) - 1
        for pairs, term in zip(one.pairs, one.ledger.feature_feature, strict=True):
            assert len(pairs.first) <= 3 * 4 // 2  # three active inputs, self-pairs included
            assert_near(pairs.contributions.sum(), term)


def test_the_effect_is_that_of_the_edited_weights(account, model, layers, ids):
    before = run_logits(model, ids.unsqueeze(0))[0, 1:].detach().softmax(-1)
    for one in account.features:
        edited = edit_model(model, [FormEdit.of(in_float64(layers[one.layer - 1]), one.feature, 2)])
        after = run_logits(edited, ids.unsqueeze(0))[0, 1:].detach().softmax(-1)
        seen = one.next_tokens
        assert_near(seen.before, before.gather(1, seen.before_ids))
        assert_near(seen.after, after.gather(1, seen.after_ids))
        assert torch.equal(seen.before_ids, before.topk(5).indices)
        assert torch.equal(seen.after_ids, after.topk(5).indices)
        assert_near(seen.changed_after - seen.changed_before, (after - before).gather(1, seen.changed_ids))
        assert_near((seen.changed_after - seen.changed_before).abs(), (after - before).abs().topk(5).values)
        assert_near(seen.kl, (before * (before / after).log()).sum(-1))
        assert seen.kl.max() > 1e-5


def test_an_edit_of_rank_0_changes_nothing(model, layers, ids):
    (one,) = explain_prompt(model, layers, [(1, 3)], ids, rank=0).features
    assert one.next_tokens.kl.max() == 0
    assert torch.equal(one.next_tokens.before, one.next_tokens.after)


def test_the_divergence_is_in_nats():
    before, after = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    seen = NextTokens.of(before, after, 8)
    assert seen.kl.item() == pytest.approx(0.5 * torch.tensor([2.0, 2 / 3]).log().sum().item())
    assert seen.after_ids.tolist() == [[1, 0]]


def test_layers_before_the_edit_run_once_for_each_layer(model, layers, ids):
    calls = []
    handle = model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    explain_prompt(model, layers, FEATURES, ids)
    handle.remove()
    assert len(calls) == 2


def test_edits_made_before_are_used(model, layers, ids, account):
    removal = FormEdit.of(in_float64(layers[0]), 3, 2)
    (kept,) = explain_prompt(model, layers, [(1, 3)], ids, n_next=5, edits={(1, 3): removal}).features
    assert torch.equal(kept.next_tokens.kl, account.features[1].next_tokens.kl)
    with refused(ValueError, "edits must be of the features they are given for, got 1/3 for 2/4"):
        explain_prompt(model, layers, [(1, 3)], ids, edits={(2, 4): removal})


def test_float32_agrees_and_float64_is_kept(layers, ids, account):
    single = tiny_llama()
    few = explain_prompt(single, [interactions_of(single, 2)], [(2, 4)], ids, n_next=5)
    assert_near(few.features[0].pre_activation, account.features[0].pre_activation, 1e-5)
    assert_near(few.features[0].next_tokens.kl, account.features[0].next_tokens.kl, 1e-5)
    exact = in_float64(interactions_of(single, 2))
    assert exact.sae_in.W_enc.dtype == torch.float64
    assert in_float64(exact) is exact


MISTAKES = [
    ([], None, "features must name at least one"),
    ([(1, 3), (1, 3)], None, r"each once, got \[\(1, 3\), \(1, 3\)\]"),
    ([(0, 3)], None, r"of layers whose interactions are given \(1, 2\), got 0/3"),
    ([(1, 19)], None, "feature must be between 0 and 18"),
    ([(1, 3)], torch.tensor([1]), r"token_ids must be \[BOS\] and 1 to 31 tokens, got 1 in all"),
    ([(1, 3)], torch.ones(33, dtype=torch.long), "1 to 31 tokens, got 33 in all"),
    ([(1, 3)], torch.tensor([1, 20]), "token_ids must be between 0 and 19, got 1 to 20"),
]


@pytest.mark.parametrize(("features", "tokens", "message"), MISTAKES)
def test_what_does_not_fit_is_refused(features, tokens, message, model, layers, ids):
    with refused(ValueError, message):
        check_prompt(model, layers, features, ids if tokens is None else tokens)


def test_interactions_that_cannot_be_followed_are_refused(model, layers, ids):
    with refused(ValueError, r"interactions must be of different layers, got \[1, 1\]"):
        check_prompt(model, [layers[0], layers[0]], [(1, 3)], ids)
    with refused(ValueError, "n_next must be at least 1, got 0"):
        explain_prompt(model, layers, [(1, 3)], ids, n_next=0)


@pytest.fixture(scope="module")
def payload(account):
    asked = []

    def name(layer, feature):
        asked.append((layer, feature))
        return f"name of {layer}/{feature}"

    document = prompt_payload(account, TEXT, word_tokenizer(), name, n_pairs=4)
    assert len(set(asked)) == len(asked)
    return json.loads(json.dumps(document, allow_nan=False))


def test_the_payload_holds_the_account(payload, account, ids):
    assert payload["text"] == TEXT
    assert payload["tokens"] == TEXT.replace("zebra", "[UNK]").split()
    assert list(payload["features"]) == ["2/4", "1/3", "2/11"]
    for one, shown in zip(account.features, payload["features"].values(), strict=True):
        assert set(shown) == {"activation", "pre_activation", "positions", "edit"}
        assert shown["activation"] == pytest.approx(one.activation.tolist(), rel=1e-6)
        assert shown["edit"]["description"] == f"rank-2 form of {one.name} removed from the weights"
        assert len(shown["edit"]["next"]) == len(shown["positions"]) == len(ids) - 1
        for position, value in zip(shown["positions"], shown["pre_activation"], strict=True):
            assert set(position) == {"terms", "pairs", "n_pairs", "rest"}
            assert len(position["terms"]) == 10
            assert sum(position["terms"].values()) == pytest.approx(value, abs=1e-5)
            listed = sum(pair[3] for pair in position["pairs"])
            assert listed + position["rest"] == pytest.approx(position["terms"]["feature_feature"], abs=1e-5)
            assert len(position["pairs"]) == min(4, position["n_pairs"])


def test_the_payload_lists_next_tokens_by_their_text(payload, account):
    known = {"[UNK]", "[BOS]", "[EOS]", "[PAD]", *WORDS}
    for one, shown in zip(account.features, payload["features"].values(), strict=True):
        for place, after in enumerate(shown["edit"]["next"]):
            assert set(after) == {"before", "after", "changed", "kl"}
            assert {row[0] for key in ("before", "after", "changed") for row in after[key]} <= known
            assert after["kl"] == pytest.approx(one.next_tokens.kl[place].item(), rel=1e-6)
            assert [p for _, p in after["before"]] == sorted((p for _, p in after["before"]), reverse=True)
            changes = [abs(q - p) for _, p, q in after["changed"]]
            assert changes == pytest.approx(sorted(changes, reverse=True), abs=1e-6)


def test_every_input_feature_of_the_payload_has_a_name(payload):
    for layer in ("1", "2"):
        mentioned = {
            str(feature)
            for name, shown in payload["features"].items()
            if name.startswith(f"{layer}/")
            for position in shown["positions"]
            for pair in position["pairs"]
            for feature in pair[:2]
        }
        assert set(payload["labels"][layer]) == mentioned
        assert all(text == f"name of {layer}/{feature}" for feature, text in payload["labels"][layer].items())


def test_the_payload_says_what_an_edit_does(model, layers, ids):
    inverted = FormEdit.of(in_float64(layers[0]), 3, 2, factor=-1.0)
    account = explain_prompt(model, layers, [(1, 3)], ids, edits={(1, 3): inverted})
    shown = prompt_payload(account, TEXT, word_tokenizer(), lambda layer, feature: "")
    assert shown["features"]["1/3"]["edit"]["description"] == "rank-2 form of 1/3 multiplied by -1 in the weights"
