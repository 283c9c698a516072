"""Edits of weights: exact against a dense oracle, stock Llamas from disk, and a report that measures what is there."""

import copy
import math

import dense
import pytest
import torch
from helpers import (
    assert_near,
    linear_activation,
    randn,
    random_matrix,
    random_tensor,
    random_tokens,
    refused,
    tiny_hooked_transformer,
)
from helpers import tiny_llama as plain_tiny_llama
from planted import interactions_of, random_dictionary, random_stories, tiny_llama, word_tokenizer

import bilinear_circuits as bc
from bilinear_circuits.algebra.spectra import Spectrum
from bilinear_circuits.circuits.edits import removal_edit
from bilinear_circuits.circuits.query import CircuitQuery, QueryTokens
from bilinear_circuits.circuits.rank import screen_features
from bilinear_circuits.data.stories import tokenize_stories
from bilinear_circuits.interactions.activity import collect_activity
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.models.bilinear_mlp import BilinearMLP, NotBilinearError
from bilinear_circuits.models.running import hooked, unembedding
from bilinear_circuits.runs import Runs, measure
from bilinear_circuits.surgery import EditReport, FormEdit, edit_model, edited_tensor, measure_edit, plain_llama
from bilinear_circuits.surgery.controls import control_edits
from bilinear_circuits.surgery.measure import RankEffect, _matching_rank, active_at, effect_of
from bilinear_circuits.surgery.predictions import compare_predictions
from bilinear_circuits.surgery.weights import check_weights
from bilinear_circuits.utilities.saving import load_result, save_result

LAYERS = (0, 2)
SEVERAL = (1.5, -0.7, 0.4, 0.2, -0.1)


def n_hooks(model):
    """Number of forward hooks, past the ones transformers leaves on its first run."""
    with torch.no_grad():
        model(torch.tensor([[1, 4, 5]]))
    return sum(len(module._forward_hooks) for module in model.modules())


def form_edit(values=SEVERAL, factor=0.0, layer=0, d_in=5, d_out=3, seed=0, dtype=torch.float64):
    """An edit with given eigenvalues, random orthonormal eigenvectors and a random row."""
    vectors = torch.linalg.qr(randn(d_in, d_in, seed=seed)).Q[:, : len(values)]
    spectrum = Spectrum(torch.tensor(values, dtype=dtype), vectors.to(dtype))
    return FormEdit(layer, 7, factor, spectrum, randn(d_out, seed=seed + 1, dtype=dtype))


def added_part(edit):
    """(factor - 1) d_o sum_k lambda_k v_ik v_jk, in loops."""
    values, vectors, row = (part.tolist() for part in (edit.spectrum.eigenvalues, edit.spectrum.eigenvectors, edit.row))
    size = range(len(vectors))
    return torch.tensor(
        [
            [
                [
                    sum((edit.factor - 1) * d * v * vectors[i][k] * vectors[j][k] for k, v in enumerate(values))
                    for j in size
                ]
                for i in size
            ]
            for d in row
        ],
        dtype=torch.float64,
    )


def dense_of(tensor):
    return dense.interaction_tensor(*(part.double() for part in (tensor.W_gate, tensor.W_in, tensor.W_out)))


@pytest.mark.parametrize("factor", [0.0, -1.0, 2.5])
@pytest.mark.parametrize(
    ("values", "n_neurons"),
    [(SEVERAL, 3), ((0.9, 0.5), 2), ((-0.9, -0.5, -0.4), 3), ((0.62, -0.66), 1), ((0.5, 0.0), 1), ((-1e-9, 2.0), 1)],
)
def test_neurons_are_the_form_along_the_row_and_no_more_than_needed(values, n_neurons, factor):
    edit = form_edit(values, factor)
    neurons = edit.neurons()
    assert neurons.d_mlp == n_neurons
    assert_near(dense_of(neurons), added_part(edit))
    norms = [neurons.W_gate.norm(dim=0), neurons.W_in.norm(dim=0), neurons.W_out.norm(dim=1)]
    for norm in norms[1:]:
        assert_near(norm, norms[0])
    x, y = randn(4, 5, seed=3), randn(4, 3, seed=4)
    expected = torch.einsum("oij,ni,nj->no", added_part(edit), x, x)
    assert_near(edit(x, y), expected)
    assert_near(neurons(x), expected)


def test_neurons_of_tiny_forms_survive_half_precision():
    edit = form_edit((6e-7, -4e-7), dtype=torch.float32)
    for dtype, tolerance in ((torch.float16, 3e-3), (torch.bfloat16, 3e-2)):
        error = dense_of(edit.neurons().to(dtype)) - added_part(edit)
        assert error.norm() < tolerance * added_part(edit).norm()


@pytest.mark.parametrize("edit", [form_edit(factor=1.0), form_edit(())], ids=["factor 1", "rank 0"])
def test_an_edit_of_nothing_adds_nothing(edit):
    assert edit.neurons()(randn(4, 5)).abs().max() == 0


@pytest.mark.parametrize("biases", [(), ("b_gate", "b_in", "b_out")])
def test_an_edited_layer_differs_by_exactly_the_parts_asked_for(biases):
    tensor = random_tensor(biases=biases)
    edits = [form_edit(), form_edit((0.3, -2.0), factor=-1.0, seed=5)]
    edited = edited_tensor(tensor, edits)
    expected = dense_of(tensor) + added_part(edits[0]) + added_part(edits[1])
    assert_near(edited.to_dense(), expected)
    assert edited.d_mlp == tensor.d_mlp + 3 + 1
    for x in randn(3, 5, seed=9):
        added = sum(torch.einsum("oij,i,j->o", added_part(edit), x, x) for edit in edits)
        before = dense.layer(x, tensor.W_gate, tensor.W_in, tensor.W_out, tensor.b_gate, tensor.b_in, tensor.b_out)
        assert_near(edited(x), before + added)


def test_an_edit_of_a_feature_takes_its_leading_eigenpairs_and_no_scale_of_layer_or_dictionary():
    model = tiny_llama().double()
    interactions = interactions_of(model, 1)
    mlp, out = interactions.mlp, interactions.sae_out
    B = dense_of(mlp.tensor)
    Q = torch.einsum("oij,o->ij", B, out.W_enc[:, 4])
    values, vectors = torch.linalg.eigh(Q)
    kept = values.abs().argsort(descending=True)[:2]
    expected = -torch.einsum("ik,k,jk,o->oij", vectors[:, kept], values[kept], vectors[:, kept], out.W_dec[4])
    edit = FormEdit.of(interactions, 4, 2)
    assert (edit.name, edit.rank, edit.factor) == ("1/4", 2, 0.0)
    assert_near(edit.neurons().to_dense(), expected)
    # Scale gauge, permuted neurons, and the output dictionary in other units.
    tensor, a, b = mlp.tensor, *(randn(mlp.tensor.d_mlp, seed=seed).exp() for seed in (1, 2))
    order = torch.randperm(tensor.d_mlp, generator=torch.Generator().manual_seed(0))
    W = (tensor.W_gate * a)[:, order], (tensor.W_in * b)[:, order], (tensor.W_out / (a * b)[:, None])[order]
    scale = randn(out.d_sae, seed=3).exp()
    regauged = bc.BilinearMLP(bc.InteractionTensor(*W), 1, mlp.hook_in, mlp.hook_out, None, 0.0, mlp.input_aliases)
    rescaled = copy.copy(out)
    object.__setattr__(rescaled, "W_enc", out.W_enc * scale)
    object.__setattr__(rescaled, "W_dec", out.W_dec / scale[:, None])
    other = FormEdit.of(FeatureInteractions(regauged, interactions.sae_in, rescaled), 4, 2)
    assert_near(other.neurons().to_dense(), expected)


def test_wrong_edits_are_refused():
    tensor = random_tensor()
    with refused(ValueError, r"edits must be of one layer, got layers 0, 3\."):
        edited_tensor(tensor, [form_edit(), form_edit(layer=3)])
    with refused(ValueError, r"edits must fit the layer, d_in=5 and d_out=3, got 0/7 with d_in=6 and d_out=3\."):
        edited_tensor(tensor, [form_edit(d_in=6)])
    with refused(ValueError, r"factor must be a finite number, got nan\."):
        form_edit(factor=math.nan)
    with refused(ValueError, r"spectrum must be that of one form, got a batch of shape \(2, 3\)\."):
        FormEdit(0, 1, 0.0, random_matrix(batch=(2,)).eigh(3), randn(3))


def edits_of(model, ranks=(2, 3), factors=(0.0, -1.0)):
    """Edits of random features of two layers, as many as layers of ranks."""
    layers = [interactions_of(model, layer) for layer in LAYERS]
    return [FormEdit.of(one, 5 + i, r, f) for i, (one, r, f) in enumerate(zip(layers, ranks, factors, strict=True))]


def logits_with_hooks(model, edits, tokens):
    """What the model computes when each part is added to the output of its MLP, as a dense form."""

    def hook(edit):
        part = added_part(edit)
        return lambda module, args, out: (
            out + torch.einsum("oij,...i,...j->...o", part, *[args[0].double()] * 2).to(out)
        )

    with hooked([(model.model.layers[edit.layer].mlp, hook(edit)) for edit in edits]), torch.no_grad():
        return model(tokens).logits


@pytest.mark.parametrize("mlp_bias", [False, True])
@torch.no_grad()
def test_an_edited_model_is_a_stock_llama_that_plain_transformers_load(mlp_bias, tmp_path):
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    model = plain_tiny_llama(mlp_bias=mlp_bias)
    before = copy.deepcopy(model.state_dict())
    edits = edits_of(model)
    expected = logits_with_hooks(model, edits, random_tokens())
    edit_model(model, edits).save_pretrained(tmp_path)
    edited = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(edited) is LlamaForCausalLM
    assert (expected - model(random_tokens()).logits).abs().max() > 0.01
    assert_near(edited(random_tokens()).logits, expected)
    extra = max(edit.neurons().d_mlp for edit in edits)
    assert edited.config.intermediate_size == 20 + extra
    differing = {key for key, value in edited.config.to_dict().items() if model.config.to_dict().get(key) != value}
    assert differing <= {"intermediate_size", "dtype", "transformers_version", "architectures", "_name_or_path"}
    for layer in range(3):
        mlp = BilinearMLP.from_model(edited, layer)
        assert mlp.tensor.d_mlp == 20 + extra
        parts = [added_part(edit) for edit in edits if edit.layer == layer]
        assert_near(dense_of(mlp.tensor), dense_of(BilinearMLP.from_model(model, layer).tensor) + sum(parts), 1e-5)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])
        own = edited.state_dict()[name]
        assert torch.equal(own[tuple(slice(n) for n in weight.shape)], weight)
        assert own.shape == weight.shape or ".mlp." in name
    assert model.config.intermediate_size == 20


@torch.no_grad()
def test_a_bridge_is_edited_like_the_model_inside_it_and_left_as_it_was(tmp_path):
    plain = plain_tiny_llama()
    plain.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    bridge = bc.load_model(tmp_path)
    edits = edits_of(plain)
    hooks, logits, state = n_hooks(bridge), bridge(random_tokens()), torch.get_rng_state()
    edited = edit_model(bridge, edits)
    assert torch.equal(torch.get_rng_state(), state)
    assert n_hooks(bridge) == hooks
    assert torch.equal(bridge(random_tokens()), logits)
    assert {k: v for k, v in edited.state_dict().items() if ".mlp." not in k}.keys() == {
        k for k in plain.state_dict() if ".mlp." not in k
    }
    assert_near(edited(random_tokens()).logits, edit_model(plain, edits)(random_tokens()).logits)
    assert edited.config.output_attentions is False
    edited.save_pretrained(tmp_path / "edited")
    word_tokenizer().save_pretrained(tmp_path / "edited")
    assert_near(bc.load_model(tmp_path / "edited")(random_tokens()), edited(random_tokens()).logits)


def test_tied_embeddings_stay_tied(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    model = tiny_llama()
    tied = LlamaForCausalLM(LlamaConfig(**model.config.to_dict() | {"tie_word_embeddings": True})).eval()
    edited = edit_model(tied, [FormEdit.of(interactions_of(tied, 1), 3, 2)])
    assert edited.lm_head.weight is edited.model.embed_tokens.weight
    assert edited.lm_head.weight is not tied.lm_head.weight


def test_models_that_cannot_be_edited_are_refused():
    model = plain_tiny_llama()
    edit = edits_of(model)[0]
    with refused(ValueError, r"edits must hold at least one, got none\."):
        edit_model(model, [])
    with refused(NotBilinearError, "It applies a SiLU gate"):
        edit_model(plain_tiny_llama(hidden_act="silu"), [edit])
    with refused(TypeError, "model must be a TransformerBridge, a HookedTransformer or a .* Llama, got Linear"):
        plain_llama(torch.nn.Linear(2, 2))
    with linear_activation():
        other = tiny_hooked_transformer()
    with refused(TypeError, "must be a Hugging Face Llama or a TransformerBridge over one.* got HookedTransformer"):
        plain_llama(other)
    wrapped = plain_tiny_llama()
    wrapped.model.layers[1].mlp.up_proj = torch.nn.Sequential(wrapped.model.layers[1].mlp.up_proj)
    with refused(ValueError, r"must all have linear gate, up and down projections, got LlamaMLP in layer 1\."):
        edit_model(wrapped, [edit])
    with refused(ValueError, "layer must be between 0 and 2"):
        edit_model(model, [form_edit(layer=3, d_in=12, d_out=12)])


def test_a_bridge_in_compatibility_mode_is_refused(tmp_path):
    plain_tiny_llama().save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    bridge = bc.load_model(tmp_path)
    bridge.enable_compatibility_mode(no_processing=True)
    with refused(ValueError, "model must not be in compatibility mode"):
        plain_llama(bridge)


@pytest.fixture(scope="module")
def world():
    """A model, the query, stories, dictionaries of two layers, edits, and the model edited."""
    model, tokenizer = tiny_llama(), word_tokenizer()
    tokens = QueryTokens.resolve(CircuitQuery("q", ("not", "never"), ("good", "nice"), ("bad", "sad")), tokenizer)
    stories = tokenize_stories(random_stories(80), tokenizer, 32)
    layers = [interactions_of(model, layer, d_sae_out=60) for layer in LAYERS]
    activity = collect_activity(model, layers, stories[:50])
    edits = [FormEdit.of(layers[0], 5, 2), FormEdit.of(layers[1], 6, 2, -1.0), FormEdit.of(layers[0], 9, 2)]
    return model, tokens, stories, layers, activity, edits, edit_model(model, edits)


@pytest.fixture(scope="module")
def sites(world):
    return world[1].sites(world[2], n=40, max_position=12)


@torch.no_grad()
def test_hooks_predict_what_the_edited_model_does_at_every_site(world, sites):
    model, tokens, _, layers, _, edits, edited = world
    hooks = n_hooks(model)
    runs = Runs(model, min(LAYERS), sites, tokens)
    predicted = effect_of(runs, edits)
    at = torch.arange(len(sites)), sites.position
    logits = [one(sites.ids).logits[at].double() for one in (model, edited)]
    before, after = ((one[:, 6] + one[:, 7] - one[:, 8] - one[:, 9]) / 2 for one in logits)
    assert (after - before).abs().max() > 0.05
    torch.testing.assert_close(predicted, after - before, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(measure(edited, sites, tokens), after, atol=1e-5, rtol=1e-4)
    chosen = torch.arange(len(sites)) % 3 == 0
    torch.testing.assert_close(effect_of(runs.select(chosen), edits), predicted[chosen], atol=1e-5, rtol=1e-4)
    for run in runs._runs:  # as for models that cannot be entered after a layer
        run._tail = None
    torch.testing.assert_close(effect_of(runs, edits), predicted, atol=1e-5, rtol=1e-4)
    # Of one layer and with factor 0, the edit is the removal of the causal proof.
    removal = Runs(model, 2, sites, tokens).effect(removal_edit(layers[1], 6, layers[1].spectrum(6, 2)))
    alone = effect_of(Runs(model, 2, sites, tokens), [FormEdit.of(layers[1], 6, 2)])
    torch.testing.assert_close(alone, removal, atol=1e-6, rtol=1e-5)
    later = effect_of(Runs(model, min(LAYERS), sites, tokens), [FormEdit.of(layers[1], 6, 2)])
    torch.testing.assert_close(later, removal, atol=1e-5, rtol=1e-4)
    with refused(ValueError, r"edits must be of layer 2 or later, got one of layer 0\."):
        effect_of(Runs(model, 2, sites, tokens), edits)
    assert n_hooks(model) == hooks


@torch.no_grad()
def test_hooks_are_taken_off_after_an_error(world, sites):
    model, tokens, _, _, _, edits, _ = world
    runs, hooks = Runs(model, min(LAYERS), sites, tokens), n_hooks(model)
    broken = form_edit(layer=2)
    with pytest.raises(RuntimeError):
        effect_of(runs, [edits[0], broken])
    assert n_hooks(model) == hooks


@torch.no_grad()
def test_a_feature_is_active_at_a_site_where_its_dictionary_says_so(world, sites):
    model, tokens, _, layers, _, edits, _ = world
    active = active_at(Runs(model, min(LAYERS), sites, tokens), layers, edits)
    captured = {}
    handles = [
        model.model.layers[layer].mlp.register_forward_hook(
            lambda m, a, out, layer=layer: captured.update({layer: out})
        )
        for layer in LAYERS
    ]
    model(sites.ids)
    for handle in handles:
        handle.remove()
    for edit, row in zip(edits, active, strict=True):
        z = layers[LAYERS.index(edit.layer)].sae_out.encode(captured[edit.layer])
        expected = [bool(z[i, p, edit.feature] > 0) for i, p in enumerate(sites.position.tolist())]
        assert row.tolist() == expected
    assert 0 < active.sum() < active.numel()


def test_controls_are_matched_sets_of_other_features(world):
    model, tokens, _, _, activity, edits, _ = world
    screens = [screen_features(one, tokens, unembedding(model)) for one in activity]
    for kind, sets in enumerate(control_edits(edits, activity, screens, 2)):
        used = [(one.layer, one.feature) for edits_of_set in sets for one in edits_of_set]
        assert len(sets) >= 1
        assert len(set(used)) == len(used)
        assert not set(used) & {(edit.layer, edit.feature) for edit in edits}
        for one in sets:
            assert [(e.layer, e.rank, e.factor) for e in one] == [(e.layer, e.rank, e.factor) for e in edits]
            for control in one:
                screen = screens[LAYERS.index(control.layer)]
                total = activity[LAYERS.index(control.layer)].outputs.sum_over_tokens(torch.ones(len(activity[0].x)))
                chance = (screen.share * total).sum() / total.sum()
                assert (screen.share[control.feature] <= chance) == (kind == 0)


@torch.no_grad()
def test_predictions_are_compared_token_by_token(world):
    model, tokens, stories, _, _, _, edited = world
    generator = torch.Generator().manual_seed(0)
    shifts = compare_predictions(model, edited, stories[:20], tokens, generator)
    found = {True: [], False: []}
    for ids, mask in zip(stories.ids[:20], stories.mask[:20], strict=True):
        row = ids[: int(mask.sum()) + 1]
        p, q = (one(row.unsqueeze(0)).logits[0].double().log_softmax(-1) for one in (model, edited))
        for i in range(len(row) - 1):
            kl = sum(p[i, v].exp().item() * (p[i, v] - q[i, v]).item() for v in range(p.shape[1]))
            numbers = (-p[i, row[i + 1]].item(), -q[i, row[i + 1]].item(), kl)
            found[False].append(numbers)
            if int(row[i]) in (4, 5):
                found[True].append(numbers)
    for at_trigger, shift in zip((False, True), shifts, strict=True):
        columns = torch.tensor(found[at_trigger], dtype=torch.double).T
        assert shift.n_tokens == columns.shape[1]
        means = [shift.ce_before, shift.ce_after, shift.kl.mean]
        assert means == pytest.approx(columns.mean(1).tolist(), rel=1e-4)
        assert shift.ce_change.mean == pytest.approx(shift.ce_after - shift.ce_before, abs=1e-9)
        assert shift.largest_kl == pytest.approx(columns[2].max().item(), rel=1e-4)
        assert shift.kl.low < shift.kl.mean < shift.kl.high
    nothing, _ = compare_predictions(model, model, stories[:20], tokens, generator)
    assert nothing.ce_change.mean == nothing.largest_kl == 0


def test_stories_without_triggers_leave_no_numbers_for_triggers(world):
    model, tokens, _, _, _, _, edited = world
    stories = tokenize_stories(["the cat ran home", "a dog sat"], word_tokenizer(), 32)
    _, at_triggers = compare_predictions(model, edited, stories, tokens, torch.Generator())
    assert at_triggers.n_tokens == 0
    assert math.isnan(at_triggers.ce_change.mean)
    assert math.isnan(at_triggers.largest_kl)


@pytest.fixture(scope="module")
def report(world, sites):
    model, tokens, stories, _, activity, edits, edited = world
    return measure_edit(
        Runs(model, min(LAYERS), sites, tokens), edited, edits, activity, stories[50:], n_controls=2, seed=1
    )


def test_a_report_is_a_table_a_figure_and_files(report, tmp_path):
    frame = report.to_pandas().set_index("what")
    assert frame.loc["effect"].tolist() == [report.effect.mean, report.effect.low, report.effect.high, report.effect.n]
    for one in report.features:
        assert frame.loc[f"{one.name} times {one.factor:g} alone", "mean"] == one.effect.mean
    for one in report.ranks:
        assert frame.loc[f"rank {one.rank}", "mean"] == one.effect.mean
    n_sets = len(report.controls) + len(report.trigger_controls)
    assert len(frame) == 5 + len(report.features) + len(report.ranks) + n_sets
    assert report.plot().data[1].x[0] == pytest.approx(report.effect.mean, rel=1e-6)
    report.save(tmp_path)
    again = EditReport.load(tmp_path)
    assert again.to_pandas().equals(report.to_pandas())
    assert (again.edits[0].name, again._repr_html_()) == (report.edits[0].name, report._repr_html_())


def test_the_report_measures_the_edited_model(report, world, sites):
    model, tokens, _, layers, _, edits, edited = world
    active = active_at(Runs(model, min(LAYERS), sites, tokens), layers, edits)
    change = measure(edited, sites, tokens) - measure(model, sites, tokens)
    assert report.effect.mean == pytest.approx(change[active.any(0)].mean().item())
    assert report.effect.n == int(active.any(0).sum())
    assert report.effect_all_sites.mean == pytest.approx(change.mean().item())
    assert report.predicted.mean == pytest.approx(report.effect.mean, abs=1e-5)
    assert report.largest_deviation < 1e-5
    runs = Runs(model, min(LAYERS), sites, tokens)
    for one, edit, where in zip(report.features, edits, active, strict=True):
        assert (one.name, one.factor) == (edit.name, edit.factor)
        effect = effect_of(runs, [edit])
        assert one.effect.mean == pytest.approx(effect[where].mean().item(), abs=1e-6)
        assert one.effect_all_sites.mean == pytest.approx(effect.mean().item(), abs=1e-6)
    by_rank = {one.rank: one.effect.mean for one in report.ranks}
    assert list(by_rank) == [1, 2, 4, 8, 12]
    assert by_rank[2] == pytest.approx(report.effect.mean, abs=1e-5)
    assert report.control_share == abs(report.control.mean / report.effect.mean)
    assert report.control.mean == pytest.approx(sum(c.effect.mean for c in report.controls) / len(report.controls))
    sizes = [abs(c.effect.mean) for c in report.trigger_controls]
    assert report.trigger_control.mean == pytest.approx(sum(sizes) / len(sizes))
    assert report.trigger_control_share == report.trigger_control.mean / abs(report.effect.mean)


def test_full_rank_in_the_report_is_the_whole_form(report, world, sites):
    model, tokens, _, layers, _, edits, _ = world
    by_layer = dict(zip(LAYERS, layers, strict=True))
    whole = [FormEdit.of(by_layer[e.layer], e.feature, None, e.factor) for e in edits]
    exact = measure(edit_model(model, whole), sites, tokens) - measure(model, sites, tokens)
    active = active_at(Runs(model, min(LAYERS), sites, tokens), layers, edits).any(0)
    assert report.ranks[-1].effect.mean == pytest.approx(exact[active].mean().item(), abs=1e-5)


def test_the_report_proves_the_weights(report, world):
    model, _, _, _, _, edits, edited = world
    assert (report.weights.d_mlp_before, report.weights.d_mlp) == (14, edited.config.intermediate_size)
    assert report.weights.form_error < 1e-6
    assert report.weights.probe_error < 1e-5
    assert check_weights(model, edited, [*edits[:2], edits[2].truncate(1)]).form_error > 0.01
    for name in ("model.layers.0.mlp.gate_proj.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight"):
        broken = copy.deepcopy(edited)
        broken.state_dict()[name][..., -1, -1] += 1
        if name.endswith("gate_proj.weight"):
            broken.state_dict()[name][0, 0] += 1
        with refused(ValueError, f"besides its edits, but {name} differs"):
            check_weights(model, broken, edits)


def test_the_report_comes_back_from_disk(report, tmp_path):
    save_result(report, tmp_path, {"seed": 1})
    back = load_result(EditReport, tmp_path)
    assert back.effect == report.effect
    assert back.ranks == report.ranks
    assert back.controls == report.controls
    assert back.weights == report.weights
    for one, other in zip(back.edits, report.edits, strict=True):
        assert (one.name, one.factor) == (other.name, other.factor)
        assert torch.equal(one.spectrum.eigenvectors, other.spectrum.eigenvectors)
        assert torch.equal(one.row, other.row)


def test_the_ranks_that_suffice():
    def ranks(*effects):
        return [RankEffect(2**i, bc.circuits.Effect(e, e, e, 3)) for i, e in enumerate(effects)]

    assert _matching_rank(ranks(-0.8, -0.3, -0.37, -0.4)) == 4  # twice the effect is not within 10 % of it
    assert _matching_rank(ranks(-0.43, -0.3, -0.4)) == 1
    assert _matching_rank(ranks(0.4, -0.1, -0.4)) == 4
    assert _matching_rank(ranks(0.4, 0.0)) is None


def test_an_edit_of_features_that_never_act_is_refused(world, sites):
    model, tokens, stories, layers, activity, _, _ = world
    silent = random_dictionary(12, 19, layers[0].mlp.hook_out, seed=1)
    silent.b_enc[:] = -1e6
    layer = FeatureInteractions(layers[0].mlp, layers[0].sae_in, silent)
    edits = [FormEdit.of(layer, 3, 2)]
    one = copy.copy(activity[0])
    object.__setattr__(one, "interactions", layer)
    with refused(ValueError, r"features that are active at a trigger site, got 0/3\. Use more stories"):
        measure_edit(Runs(model, 0, sites, tokens), edit_model(model, edits), edits, [one], stories)
