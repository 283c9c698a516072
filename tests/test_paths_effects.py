"""Effects of removals: real ones against hooks on the model, predicted ones against a second derivation."""

import pytest
import torch
from helpers import refused
from llamas import D_HEAD, random_dictionary, random_llama, random_prompt, relative

from bilinear_circuits.models.running import hooked
from bilinear_circuits.paths.nodes import Node
from bilinear_circuits.paths.removal import Pair
from bilinear_circuits.paths.run import FrozenRun
from bilinear_circuits.utilities.feature import Feature

KINDS = ("bilinear", "silu", "biased", "ungated", "qwen3", "gemma2")


def without_head(layer, head, position=None):
    def hook(module, args):
        x = args[0].clone()
        x[:, slice(None) if position is None else position, head * D_HEAD : (head + 1) * D_HEAD] = 0
        return (x,)

    return hook


def without_mlp(position=None):
    def hook(module, args, output):
        output = output.clone()
        output[:, slice(None) if position is None else position] = 0
        return output

    return hook


def model_value(model, tokens, asked, hooks=(), pre_hooks=()):
    handles = [module.register_forward_pre_hook(hook) for module, hook in pre_hooks]
    with torch.no_grad(), hooked(hooks):
        logits = model(tokens.unsqueeze(0)).logits[0, -1].double()
    for handle in handles:
        handle.remove()
    return (logits[asked[0]] - logits[asked[1]]).item()


@pytest.mark.parametrize("kind", KINDS)
def test_real_effects_are_those_of_hooks_on_the_model(kind):
    model, tokens, asked = random_llama(kind), random_prompt(5), (7, 12)
    run, layers = FrozenRun(model, tokens, torch.float64), model.model.layers
    remove = [
        Node("head", 0, head=1),
        Node("head", 1, head=3, position=4),
        Node("mlp", 0),
        Node("mlp", 1, position=4),
        Node("embedding", position=2),
        (Node("head", 0, head=0), Node("mlp", 1)),
    ]
    whole = model_value(model, tokens, asked)
    expected = [
        model_value(model, tokens, asked, [], [(layers[0].self_attn.o_proj, without_head(0, 1))]),
        model_value(model, tokens, asked, [], [(layers[1].self_attn.o_proj, without_head(1, 3, 4))]),
        model_value(model, tokens, asked, [(layers[0].mlp, without_mlp())]),
        model_value(model, tokens, asked, [(layers[1].mlp, without_mlp(4))]),
        model_value(model, tokens, asked, [(model.model.embed_tokens, without_mlp(2))]),
        model_value(
            model, tokens, asked, [(layers[1].mlp, without_mlp())], [(layers[0].self_attn.o_proj, without_head(0, 0))]
        ),
    ]
    found = run.effect(asked, remove)
    assert relative(found.real, torch.tensor(expected, dtype=torch.float64) - whole) < 1e-4
    assert found.value == pytest.approx(whole, rel=1e-4)
    assert found.removed[-1] == "head 0.0 + mlp 1"


def test_predictions_rescale_by_norms_alone():
    """The last MLP's removal changes nothing but the final norm: what is left, divided by its own scale."""
    run = FrozenRun(random_llama("silu"), random_prompt(5), torch.float64)
    frozen = run.frozen
    left = frozen.resid_mid[-1, -1]
    scale = (left.square().mean() + frozen.weights.eps).sqrt()
    logits = left / scale @ frozen.weights.W_U
    expected = logits[7] - run.logits[-1, 7]
    found = run.effect(7, [Node("mlp", 1, position=4)])
    assert found.predicted.item() == pytest.approx(expected.item(), rel=1e-9)
    assert found.real.item() == pytest.approx(expected.item(), rel=1e-9)  # no pattern and no gate comes after it


def test_predictions_hold_patterns_and_gates_fixed():
    run = FrozenRun(random_llama("silu"), random_prompt(5), torch.float64)
    frozen = run.frozen
    found = run.effect((7, 12), [Node("head", 0, head=1)])
    x = frozen.embedded
    for layer, one in enumerate(frozen.weights.layers):
        values = torch.stack([x / rms(x, frozen) @ one.W_V[head // one.group] for head in range(4)])
        mixed = frozen.patterns[layer] @ values
        if layer == 0:
            mixed[1] = 0
        x = x + (mixed @ one.W_O).sum(0)
        normed = x / rms(x, frozen)
        x = x + (frozen.sigma[layer] * (normed @ one.W_gate) * (normed @ one.W_in)) @ one.W_out
    logits = (x / rms(x, frozen) @ frozen.weights.W_U)[-1]
    expected = logits[7] - logits[12] - (run.logits[-1, 7] - run.logits[-1, 12])
    assert found.predicted.item() == pytest.approx(expected.item(), rel=1e-9)
    assert abs(found.real.item() - expected.item()) > 1e-4


def rms(x, frozen):
    return (x.square().mean(-1, keepdim=True) + frozen.weights.eps).sqrt()


@pytest.mark.parametrize("kind", ["biased", "gemma2"])
def test_all_pairs_of_an_mlp_and_its_bias_are_the_mlp(kind):
    run = FrozenRun(random_llama(kind), random_prompt(3), torch.float64)
    mlp = Node("mlp", 1, position=2)
    pairs = run.graph(7).pairs(mlp, 10**6)
    every = [
        Pair(mlp, pairs.parts[a], pairs.parts[b])
        for a, b in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)
    ]
    found = run.effect(7, [every, mlp])
    if kind == "biased":  # what is left is the output bias
        x = run.frozen.resid_mid[-1, -1] + run.frozen.weights.layers[1].b_out
        expected = (x / rms(x, run.frozen) @ run.frozen.weights.W_U)[7] - run.logits[-1, 7]
        assert found.real[0].item() == pytest.approx(expected.item(), rel=1e-6)
    else:
        assert found.real[0].item() == pytest.approx(found.real[1].item(), rel=1e-6)
    assert torch.allclose(found.predicted, found.real)


def test_features_and_errors_of_an_mlp_are_the_mlp():
    model, tokens = random_llama("silu"), random_prompt(3)
    run = FrozenRun(model, tokens, torch.float64, {0: random_dictionary(0)})
    features = [Node("feature", 0, 1, feature=a) for a in run.frozen.active[0][1].nonzero().flatten().tolist()]
    parts = [*features, Node("bias", 0, 1), Node("error", 0, 1)]
    found = run.effect(7, [parts, Node("mlp", 0, 1)])
    assert found.real[0].item() == pytest.approx(found.real[1].item(), rel=1e-9)
    assert run.effect(Feature(0, 3), [Node("mlp", 0, 2)]).real.shape == (1,)


def test_removals_that_do_not_exist_are_refused():
    run = FrozenRun(random_llama("ungated"), random_prompt(3), torch.float64)
    mlp = Node("mlp", 1, 2)
    for remove, message in (
        ([], "at least one node"),
        ([()], "at least one node"),
        ([Node("mlp", 5)], "layer of a node must be between 0 and 1, got 5"),
        ([Node("error", 1, 1)], "layer with a dictionary"),
        ([Node("bias", 1)], "position of a node must be given"),
        ([Node("constant", 1, 1)], "can be removed"),
        ([Pair(mlp, Node("embedding", position=2), Node("embedding", position=2))], "MLPs with a gate"),
    ):
        with refused(ValueError, message):
            run.effect(7, remove)
