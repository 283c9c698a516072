import pytest
import torch
from helpers import (
    assert_near,
    linear_activation,
    n_hooks,
    randn,
    random_tokens,
    refused,
    save_tiny_llama,
    tiny_hooked_transformer,
    tiny_llama,
)

from bilinear_circuits.models.host import LlamaHost, host_of
from bilinear_circuits.models.running import (
    capture_mlp,
    model_blocks,
    run_logits,
    unembedding,
    vocabulary_size,
)
from bilinear_circuits.runs.downstream import Downstream
from bilinear_circuits.zoo import load_model

KINDS = ("llama", "bridge", "hooked transformer")
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
TOKENS = random_tokens(3, 6)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    bridge = load_model(save_tiny_llama(tmp_path_factory.mktemp("tiny")))
    with linear_activation():
        hooked_transformer = tiny_hooked_transformer()
    return dict(zip(KINDS, (tiny_llama(), bridge, hooked_transformer), strict=True))


@torch.no_grad()
def logits_of(model, tokens=TOKENS):
    out = model(tokens)
    return out if isinstance(out, torch.Tensor) else out.logits


@EVERY_KIND
def test_logits_are_the_model_s(models, kind):
    with torch.no_grad():
        torch.testing.assert_close(run_logits(models[kind], TOKENS), logits_of(models[kind]), rtol=0, atol=0)
    assert vocabulary_size(models[kind]) == 50


def test_bridge_and_llama_are_the_same_model(models):
    assert_near(logits_of(models["bridge"]), logits_of(models["llama"]))


@EVERY_KIND
def test_capture_sees_what_the_mlp_reads_and_writes(models, kind):
    model, seen = models[kind], {}

    def keep(layer):
        return lambda module, args, output: seen.update({layer: (args[0].detach(), output.detach())})

    blocks = model_blocks(model)
    handles = [block.mlp.register_forward_hook(keep(layer)) for layer, block in enumerate(blocks)]
    logits_of(model)
    for handle in handles:
        handle.remove()
    captured = capture_mlp(model, TOKENS, [1, 0])
    assert set(captured) == {0, 1}
    for layer, activations in captured.items():
        torch.testing.assert_close(activations.x, seen[layer][0], rtol=0, atol=0)
        torch.testing.assert_close(activations.y, seen[layer][1], rtol=0, atol=0)


@EVERY_KIND
def test_capture_stops_after_the_last_layer_asked_for(models, kind):
    blocks, ran = model_blocks(models[kind]), []
    handles = [
        block.register_forward_pre_hook(lambda module, args, layer=layer: ran.append(layer))
        for layer, block in enumerate(blocks)
    ]
    capture_mlp(models[kind], TOKENS, [0])
    for handle in handles:
        handle.remove()
    assert ran == [0]


@EVERY_KIND
def test_no_hook_is_left(models, kind):
    model = models[kind]
    before = n_hooks(model)
    capture_mlp(model, TOKENS, [0])
    downstream = Downstream(model, TOKENS, 0)
    downstream.logits(downstream.y)
    downstream._tail = None
    downstream.logits(downstream.y)
    assert n_hooks(model) == before


@EVERY_KIND
def test_no_hook_is_left_after_a_failure(models, kind):
    model = models[kind]
    before = n_hooks(model)

    def fail(module, args):
        raise RuntimeError("broken block")

    handle = model_blocks(model)[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken block"):
        capture_mlp(model, TOKENS, [1])
    with pytest.raises(RuntimeError, match="broken block"):
        Downstream(model, TOKENS, 0)
    handle.remove()
    assert n_hooks(model) == before


@EVERY_KIND
@pytest.mark.parametrize("layer", [0, 1])
def test_the_unchanged_output_gives_the_model_s_logits(models, kind, layer):
    downstream = Downstream(models[kind], TOKENS, layer)
    assert not downstream.reruns_whole_model
    assert_near(downstream.logits(downstream.y), logits_of(models[kind]))


@EVERY_KIND
@pytest.mark.parametrize("layer", [0, 1])
def test_the_short_cut_equals_the_whole_model(models, kind, layer):
    downstream = Downstream(models[kind], TOKENS, layer)
    y = randn(*downstream.y.shape, seed=3, dtype=torch.float32)
    short = downstream.logits(y)
    downstream._tail = None
    assert downstream.reruns_whole_model
    assert_near(short, downstream.logits(y))
    assert (short - logits_of(models[kind])).abs().max() > 0.1


@EVERY_KIND
def test_replacing_the_output_equals_a_hook_of_the_test_s_own(models, kind):
    downstream = Downstream(models[kind], TOKENS, 1)
    y = randn(*downstream.y.shape, seed=3, dtype=torch.float32)
    handle = model_blocks(models[kind])[1].mlp.register_forward_hook(lambda module, args, output: y)
    expected = logits_of(models[kind])
    handle.remove()
    assert_near(downstream.logits(y), expected)


@EVERY_KIND
@pytest.mark.parametrize("short_cut", [True, False])
def test_logits_can_be_asked_for_at_some_places_only(models, kind, short_cut):
    downstream = Downstream(models[kind], TOKENS, 1)
    y = randn(*downstream.y.shape, seed=3, dtype=torch.float32)
    if not short_cut:
        downstream._tail = None
    everywhere = downstream.logits(y)
    story, position = torch.tensor([2, 0, 1]), torch.tensor([5, 0, 3])
    assert_near(downstream.logits(y, (story, position)), everywhere[story, position])
    assert_near(downstream.logits(y, (slice(None), -1)), everywhere[:, -1])


def test_a_model_that_cannot_be_entered_is_rerun():
    from transformer_lens import HookedTransformer

    class Unknown(HookedTransformer):
        pass

    with linear_activation():
        model = tiny_hooked_transformer()
    model.__class__ = Unknown
    downstream = Downstream(model, TOKENS, 0)
    assert downstream.reruns_whole_model
    assert_near(downstream.logits(downstream.y), logits_of(model))


def test_a_short_cut_that_differs_is_not_used(models, monkeypatch):
    exact = host_of(models["llama"]).after(0)
    monkeypatch.setattr(LlamaHost, "after", lambda host, layer: lambda residual, at: exact(residual, at) + 0.01)
    downstream = Downstream(models["llama"], TOKENS, 0)
    assert downstream.reruns_whole_model
    assert_near(downstream.logits(downstream.y), logits_of(models["llama"]))


@EVERY_KIND
def test_unembedding_gives_logits_of_the_normalised_residual(models, kind):
    model, seen = models[kind], []
    final_norm = model.model.norm if kind == "llama" else model.ln_final
    handle = final_norm.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    logits = logits_of(model)
    handle.remove()
    normalised = seen[0] / (seen[0].square().mean(-1, keepdim=True) + 0.1).sqrt()
    bias = model.b_U if kind == "hooked transformer" else 0
    assert_near((normalised @ unembedding(model) + bias).detach(), logits)


def test_bridge_and_llama_have_the_same_unembedding(models):
    assert_near(unembedding(models["bridge"]), unembedding(models["llama"]))


def test_a_model_of_another_kind_is_refused():
    with refused(TypeError, r"got Linear\. bilinear_circuits\.load_model\(path\) returns one"):
        model_blocks(torch.nn.Linear(2, 2))


@EVERY_KIND
def test_a_host_knows_a_model_of_every_kind(models, kind):
    host = host_of(models[kind])
    assert host_of(host) is host
    assert host.logits(TOKENS).shape == (*TOKENS.shape, host.d_vocab)
    assert host.embedding.shape == host.unembedding.T.shape == (host.d_vocab, host.d_model)
    assert host.n_ctx >= TOKENS.shape[1]
    assert host.hook_names(1)[0] == "blocks.1.mlp.hook_in"
    assert (host.plain() is None) == (kind == "hooked transformer")
    assert set(host.weights(1)) == {"W_gate", "W_in", "W_out", "b_gate", "b_in", "b_out"}
    assert host.norm(1) is not None
