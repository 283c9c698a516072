"""Wrong targets, prompts and arguments of a run are refused in one line that says what was got and what to do."""

import pytest
import torch
from helpers import refused, tiny_hooked_transformer, tiny_tokenizer
from llamas import random_dictionary, random_llama, random_prompt, random_run

import bilinear_circuits as bc
from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.paths.nodes import Node
from bilinear_circuits.paths.run import FrozenRun
from bilinear_circuits.paths.weights import read_weights
from bilinear_circuits.utilities.feature import Feature

QUERY = bc.CircuitQuery("mood", ("not",), ("happy",), ("sad",))
WANTED = "target must be a token id .*, a tuple of two .*, finite weights by token id, QueryTokens or a Feature, got"


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (
            "happy",
            TypeError,
            rf"{WANTED} 'happy' of type str\. Look its id up: tokenizer.convert_tokens_to_ids\('happy'\)",
        ),
        (7.0, TypeError, f"{WANTED} 7.0 of type float"),
        ([7, 8], TypeError, rf"{WANTED} \[7, 8\] of type list"),
        (None, TypeError, f"{WANTED} None"),
        (True, TypeError, f"{WANTED} True of type bool"),
        (torch.tensor(7), TypeError, rf"{WANTED} .* of type Tensor. Pass int\(target\)"),
        ((7, 8, 9), TypeError, rf"{WANTED} \(7, 8, 9\) of type tuple"),
        (QUERY, TypeError, rf"{WANTED} .* CircuitQuery\. .*QueryTokens.resolve\(query, tokenizer\).*circuits.query"),
        ({7: "much"}, TypeError, f"{WANTED} .* of type dict"),
        ({7: float("nan")}, TypeError, f"{WANTED} .* of type dict"),
        ({}, ValueError, "target must name tokens between 0 and 29"),
        ({"happy": 1.0}, ValueError, "target must name tokens between 0 and 29 by ints, got {'happy'"),
        ({True: 1.0}, ValueError, "target must name tokens"),
        ((7, "sad"), ValueError, r"target must name tokens between 0 and 29 by ints, got \(7, 'sad'\)"),
        ((7, 7.5), ValueError, "target must name tokens"),
        (Feature(0, "a"), ValueError, "target must be a feature of the run's dictionaries"),
        (-1, ValueError, "target must name tokens between 0 and 29"),
    ],
)
def test_wrong_targets_are_refused_wherever_one_is_taken(asked, error, message):
    run = random_run(n_pos=3)
    calls = (run.graph, run.degrees, run.integrated_gradients, lambda asked: run.effect(asked, [Node("mlp", 0)]))
    for call in calls:
        with refused(error, message):
            call(asked)


@pytest.mark.parametrize("position", ["last", 1.0, True, None])
def test_positions_of_other_types_are_refused(position):
    with refused(TypeError, f"position must be an int, got .* of type {type(position).__name__}"):
        random_run(n_pos=3).graph(7, position=position)


def test_the_step_that_a_query_is_told_is_one():
    tokens = QueryTokens.resolve(QUERY, tiny_tokenizer())
    run = random_run(n_pos=3, vocab_size=50)
    assert run.graph(tokens).total == pytest.approx(tokens.difference(run.logits[-1]).item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, "float64"])
def test_runs_are_in_float32_or_float64(dtype):
    for call in (
        lambda: FrozenRun(random_llama(), random_prompt(), dtype),
        lambda: read_weights(random_llama(), dtype),
    ):
        with refused(ValueError, f"dtype must be torch.float32 or torch.float64, got {dtype}. Leave it out"):
            call()


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (
            [4, 5],
            TypeError,
            "tokens must be the ids of one prompt, a tensor .*got a list.*bilinear_circuits.prompt_tokens",
        ),
        ("a dog", TypeError, "got a str.*prompt_tokens"),
        (torch.ones(2, 2).long(), ValueError, r"a tensor \[pos\], got torch.int64 \(2, 2\)"),
        (torch.ones(1, 4).long(), ValueError, r"got torch.int64 \(1, 4\). Pass tokens\[0\]"),
        (torch.ones(4), ValueError, "got torch.float32"),
        (torch.ones(4).bool(), ValueError, "got torch.bool"),
        (
            torch.ones(33).long(),
            ValueError,
            "tokens must be at most 32, the model's context, got 33. Shorten the prompt",
        ),
    ],
)
def test_prompts_that_are_none_are_refused(tokens, error, message):
    with refused(error, message):
        FrozenRun(random_llama(), tokens)
    assert FrozenRun(random_llama(), random_prompt(32)).frozen.n_pos == 32


@pytest.mark.parametrize(
    "given", [[random_dictionary(0)], random_dictionary(0), {"0": random_dictionary(0)}, {0: "sae"}]
)
def test_dictionaries_are_a_mapping_by_layer(given):
    with refused(TypeError, r"dictionaries must be a mapping from layers to a Dictionary each.*\{4: sae_out\}, got"):
        FrozenRun(random_llama(), random_prompt(), dictionaries=given)


def gpt2():
    import transformers as hf

    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 12, "vocab_size": 30, "n_positions": 16}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).eval()


@pytest.mark.parametrize(
    "model", [gpt2, lambda: tiny_hooked_transformer(gated_mlp=False, act_fn="gelu"), lambda: torch.nn.Linear(2, 2)]
)
def test_models_without_gates_are_not_sent_where_gates_are_needed(model):
    with refused(ValueError, r"model must have Llama's module layout .*, got a \w+\.$"):
        FrozenRun(model(), random_prompt())


def test_models_with_gates_are_told_of_single_layers():
    with refused(
        ValueError, r"got a HookedTransformer\. Single bilinear layers .* bilinear_circuits.attribute_prompt\.$"
    ):
        FrozenRun(tiny_hooked_transformer(act_fn="silu"), random_prompt())
