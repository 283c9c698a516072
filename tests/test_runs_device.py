"""Reruns of a model with changes at sites, against naive hooks; and no hook is left behind."""

import copy

import pytest
import torch
from helpers import linear_activation, n_hooks, randn, refused, save_tiny_llama, tiny_hooked_transformer
from helpers import tiny_llama as helpers_llama

from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.interventions import later_effects
from bilinear_circuits.interventions.joint import joint_removal
from bilinear_circuits.interventions.predictions import final_scale
from bilinear_circuits.models.running import model_blocks, run_logits, unembedding
from bilinear_circuits.runs import Runs, Sites, measure, sites
from bilinear_circuits.runs.last_token import LastTokenRuns
from bilinear_circuits.zoo import load_model

KINDS = ("llama", "bridge", "hooked transformer")
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
LAYER = 0
TOKENS = QueryTokens(torch.tensor([4]), torch.tensor([10, 11, 12]), torch.tensor([20, 21]), ())
POSITION = torch.tensor([2, 4, 4, 5, 6])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    bridge = load_model(save_tiny_llama(tmp_path_factory.mktemp("tiny")))
    with linear_activation():
        hooked_transformer = tiny_hooked_transformer()
    return dict(zip(KINDS, (helpers_llama(), bridge, hooked_transformer), strict=True))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Five sites in three batches."""
    monkeypatch.setattr(sites, "_ROWS_PER_BATCH", 2)


def make_sites(n=5):
    ids = torch.randint(5, 50, (n, 7), generator=torch.Generator().manual_seed(1))
    ids[torch.arange(n), POSITION[:n]] = 4
    return Sites(ids, POSITION[:n])


def make_runs(model, layer=LAYER):
    return Runs(model, layer, make_sites(), TOKENS)


def naive_logits(model, change, layer=LAYER):
    """Logits at every site, row by row, with the change added by a hook of our own."""
    sites, out = make_sites(), []
    for ids, position, one in zip(sites.ids, sites.position.tolist(), change, strict=True):

        def add(module, args, output, position=position, one=one):
            output = output.clone()
            output[0, position] += one
            return output

        handle = model_blocks(model)[layer].mlp.register_forward_hook(add)
        with torch.no_grad():
            out.append(run_logits(model, ids[: position + 1].unsqueeze(0))[0, position])
        handle.remove()
    return torch.stack(out)


def naive_difference(logits):
    return (logits[:, [10, 11, 12]].mean(1) - logits[:, [20, 21]].mean(1)).double()


@EVERY_KIND
def test_reruns_are_the_model_with_the_change(models, kind):
    model = models[kind]
    runs = make_runs(model)
    change = randn(3, 5, 12, dtype=torch.float32)
    change[1, 2] = 0  # a variant that leaves a site as it is
    change[2] = 0
    base = naive_logits(model, torch.zeros(5, 12))
    torch.testing.assert_close(runs.logits, base, rtol=1e-4, atol=1e-5)
    effects = runs.effects(change)
    for variant in range(3):
        logits = naive_logits(model, change[variant])
        torch.testing.assert_close(runs.changed_logits(change[variant]), logits, rtol=1e-4, atol=1e-4)
        expected = naive_difference(logits) - naive_difference(base)
        torch.testing.assert_close(effects[variant], expected, rtol=1e-3, atol=1e-4)
    assert effects[0].abs().min() > 1e-3
    assert effects[1, 2] == 0
    assert (effects[2] == 0).all()


@pytest.mark.parametrize("kind", KINDS[:2])
def test_many_changes_of_one_story_run_as_its_last_tokens(models, kind):
    """As many variants as are worth it, in one run of the story, are those of a run each."""
    runs, change = make_runs(models[kind]), randn(150, 5, 12, dtype=torch.float32)
    change[::3, 1] = 0
    assert runs._last_token_runs is not None
    calls = []

    class Counted(LastTokenRuns):
        def __call__(self, residual, change):
            calls.append(len(change))
            return super().__call__(residual, change)

    runs._last_token_runs = Counted(runs._last_token_runs._body, runs._last_token_runs._unembed)
    found = runs.effects(change)
    assert sorted(calls) == [22, 22, 22, 22, 100, 128, 128, 128, 128]
    runs._last_token_runs = None
    torch.testing.assert_close(found, runs.effects(change), rtol=1e-4, atol=1e-4)
    assert (found[::3, 1] == 0).all()


def test_a_model_that_does_not_take_last_tokens_runs_row_by_row(models, monkeypatch):
    monkeypatch.setattr(LastTokenRuns, "__call__", lambda self, residual, change: change @ randn(12, 50).float())
    assert make_runs(models["llama"])._last_token_runs is None

    def fails(self, residual, change):
        raise TypeError("forward() got an unexpected keyword argument 'position_ids'")

    monkeypatch.setattr(LastTokenRuns, "__call__", fails)
    assert make_runs(models["llama"])._last_token_runs is None
    assert make_runs(models["hooked transformer"])._last_token_runs is None


@EVERY_KIND
def test_some_of_the_sites_are_the_same_sites(models, kind):
    runs = make_runs(models[kind])
    chosen = torch.tensor([False, True, False, True, True])
    part, change = runs.select(chosen), randn(2, 5, 12, dtype=torch.float32)
    assert len(part) == 3
    for name in ("x", "y", "logits"):
        torch.testing.assert_close(getattr(part, name), getattr(runs, name)[chosen], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(part.effects(change[:, chosen]), runs.effects(change)[:, chosen], rtol=1e-4, atol=1e-5)
    assert part.sites.position.tolist() == [4, 5, 6]


@EVERY_KIND
def test_no_sites_have_no_effects(models, kind):
    nothing = Sites(torch.zeros(0, 3, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    for runs in (
        make_runs(models[kind]).select(torch.zeros(5, dtype=torch.bool)),
        Runs(models[kind], 0, nothing, TOKENS),
    ):
        assert (len(runs), runs.logits.shape, runs.x.shape) == (0, (0, 50), (0, 12))
        assert runs.effect(lambda x, y: y).shape == (0,)
        assert runs.effects(torch.zeros(3, 0, 12)).shape == (3, 0)


def test_every_token_of_a_row_is_a_site_of_it(models):
    """Sites that share a row: what each of them is measured at is the naive run with the change there alone."""
    ids = make_sites().ids[:2]
    every = Sites(ids, torch.tensor([1, 3, 2]), torch.tensor([0, 0, 1]))
    runs, change = Runs(models["llama"], LAYER, every, TOKENS), randn(1, 3, 12, dtype=torch.float32)
    with torch.no_grad():
        base = models["llama"](ids).logits[every.at]
    torch.testing.assert_close(runs.logits, base, rtol=1e-4, atol=1e-5)
    for index, (row, position) in enumerate(zip(*(one.tolist() for one in every.at), strict=True)):
        alone = Runs(
            models["llama"], LAYER, Sites(ids[row : row + 1, : position + 1], torch.tensor([position])), TOKENS
        )
        torch.testing.assert_close(
            alone.effects(change[:, [index]])[0], runs.effects(change)[0, [index]], rtol=1e-3, atol=1e-5
        )
    part = runs.select(torch.tensor([True, False, True]))
    torch.testing.assert_close(part.effects(change[:, [0, 2]]), runs.effects(change)[:, [0, 2]], rtol=1e-3, atol=1e-5)


@EVERY_KIND
def test_the_mlp_is_the_model_s_own_on_a_changed_input(models, kind):
    model = models[kind]
    runs = make_runs(model)
    site = torch.tensor([4, 0, 0, 3])
    change, out = randn(2, 4, 12, dtype=torch.float32)
    with torch.no_grad():
        expected = model_blocks(model)[LAYER].mlp((runs.x[site] + change).unsqueeze(1)).squeeze(1) + out
        torch.testing.assert_close(runs.mlp_output(site, change, out), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(runs.mlp_output(site), runs.y[site], rtol=1e-4, atol=1e-5)


@EVERY_KIND
def test_an_edit_everywhere_and_one_before_the_site(models, kind):
    model = models[kind]
    runs, row = make_runs(model), randn(12, dtype=torch.float32)

    def edit(x, y):
        return x.square().sum(-1, keepdim=True) * row

    base, sites = naive_difference(naive_logits(model, torch.zeros(5, 12))), make_sites()
    for at_site in (True, False):
        for index, (ids, position) in enumerate(zip(sites.ids, sites.position.tolist(), strict=True)):

            def hook(module, args, output, last=position + int(at_site)):
                output = output.clone()
                output[:, :last] += edit(args[0], None)[:, :last]
                return output

            handle = model_blocks(model)[LAYER].mlp.register_forward_hook(hook)
            with torch.no_grad():
                logits = run_logits(model, ids[: position + 1].unsqueeze(0))[:, position]
            handle.remove()
            effect = runs.effect(edit, "everywhere" if at_site else "elsewhere")[index]
            assert effect.item() == pytest.approx((naive_difference(logits) - base[index]).item(), rel=1e-3, abs=1e-4)


@EVERY_KIND
def test_later_layers_are_those_of_a_run_with_the_change(models, kind):
    model = models[kind]
    runs, change, seen = make_runs(model), randn(5, 12, dtype=torch.float32), []
    handle = model_blocks(model)[1].mlp.register_forward_hook(
        lambda module, args, output: seen.append((args[0][0, -1], output[0, -1]))
    )
    naive_logits(model, change)
    handle.remove()
    later = runs.mlps([1], change)[1]
    torch.testing.assert_close(later.x, torch.stack([one for one, _ in seen]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(later.y, torch.stack([one for _, one in seen]), rtol=1e-4, atol=1e-4)
    own = runs.mlps([0], change)[0]
    torch.testing.assert_close(own.y, runs.y + change, rtol=1e-5, atol=1e-5)


@EVERY_KIND
def test_the_final_scale_gives_the_logits_back(models, kind):
    model = models[kind]
    runs, seen = make_runs(model), []
    norm = model.model.norm if kind == "llama" else model.ln_final
    handle = norm.register_forward_hook(lambda module, args, output: seen.append(args[0][0, -1]))
    base = naive_logits(model, torch.zeros(5, 12))
    handle.remove()
    # The root of the mean square plus the norm's epsilon, 0.1 in these models.
    expected = torch.stack([(x.square().mean() + 0.1).sqrt() for x in seen]).double()
    torch.testing.assert_close(final_scale(runs), expected, rtol=1e-4, atol=0)
    if kind == "llama":
        written = torch.stack(seen) @ unembedding(model) / final_scale(runs).unsqueeze(1)
        torch.testing.assert_close(written.float(), base, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_circuits_removed_together_are_edits_of_one_run(models):
    model, rows = models["llama"], randn(2, 12, dtype=torch.float32)
    edits = {
        f"{layer}/0": (layer, lambda x, y, layer=layer: x.square().sum(-1, keepdim=True) * rows[layer])
        for layer in (0, 1)
    }
    sites = make_sites()
    joint = joint_removal(Runs(model, 0, sites, TOKENS), edits, seed=0)

    def difference(*layers):
        out = []
        for ids, position in zip(sites.ids, sites.position.tolist(), strict=True):
            handles = []
            for layer in layers:

                def hook(module, args, output, layer=layer):
                    output = output.clone()
                    output[0, -1] += args[0][0, -1].square().sum() * rows[layer]
                    return output

                handles.append(model.model.layers[layer].mlp.register_forward_hook(hook))
            out.append(model(ids[: position + 1].unsqueeze(0)).logits[0, -1])
            for handle in handles:
                handle.remove()
        return naive_difference(torch.stack(out))

    together, alone = difference(0, 1) - difference(), difference(0) + difference(1) - 2 * difference()
    assert joint.names == ("0/0", "1/0")
    assert joint.together.mean == pytest.approx(together.mean().item(), rel=1e-3)
    assert joint.sum.mean == pytest.approx(alone.mean().item(), rel=1e-3)
    assert abs(joint.together.mean - joint.sum.mean) > 1e-2
    torch.testing.assert_close(measure(model, sites, TOKENS), difference(), rtol=1e-4, atol=1e-4)


ACTIONS = {
    "effects": lambda runs: runs.effects(torch.ones(2, 5, 12)),
    "mlp_output": lambda runs: runs.mlp_output(torch.tensor([0, 1]), torch.ones(2, 12)),
    "mlps": lambda runs: runs.mlps([1], torch.ones(5, 12)),
    "effect": lambda runs: runs.effect(lambda x, y: y),
    "effect of several": lambda runs: runs.effect([(0, lambda x, y: y), (1, lambda x, y: y)], "sites"),
    "final_scale": final_scale,
    "later_effects": lambda runs: later_effects(runs, torch.ones(5, 12), [], 3, 0),
    "measure": lambda runs: measure(runs.model, make_sites(), TOKENS),
}


@EVERY_KIND
@pytest.mark.parametrize("action", ACTIONS)
def test_nothing_is_left_attached_after_an_error_in_the_middle(models, kind, action):
    model = models[kind]
    runs, before = make_runs(model), n_hooks(model)
    runs._runs = [copy.copy(run) for run in runs._runs]
    for run in runs._runs:
        run._tail = None  # the whole model runs, with hooks
    ACTIONS[action](runs)
    assert n_hooks(model) == before

    calls = []

    def fail(module, args):
        calls.append(module)
        raise RuntimeError("broken block")

    handle = model_blocks(model)[1].register_forward_pre_hook(fail)
    norm = model.model.norm if kind == "llama" else model.ln_final
    other = norm.register_forward_pre_hook(fail)
    early = model_blocks(model)[0].mlp.register_forward_pre_hook(fail) if action == "mlp_output" else None
    with pytest.raises(RuntimeError, match="broken block"):
        ACTIONS[action](runs)
    for one in (handle, other, early):
        if one is not None:
            one.remove()
    assert len(calls) == 1
    assert n_hooks(model) == before


@EVERY_KIND
def test_nothing_is_left_attached_after_tokens_out_of_range(models, kind):
    model = models[kind]
    before, sites = n_hooks(model), make_sites()
    wrong = Sites(torch.where(sites.ids == 4, 50, sites.ids), sites.position)
    with pytest.raises(IndexError):
        Runs(model, LAYER, wrong, TOKENS)
    runs = make_runs(model)
    for batch in (runs.sites, *runs._batches):
        batch.ids[0, 0] = 50
    for run in (lambda: runs.mlps([1], torch.ones(5, 12)), lambda: runs.mlp_output(torch.tensor([0]))):
        with pytest.raises(IndexError):
            run()
    assert n_hooks(model) == before


@pytest.mark.parametrize("row", [[1, 0, 2], [0, 1], [0, 1, 3]])
def test_sites_of_rows_out_of_order_or_out_of_range_are_refused(row):
    with refused(ValueError, "row must (be in order|name one of the 3 rows of ids for each of the 3 positions), got"):
        Sites(torch.zeros(3, 4, dtype=torch.long), torch.tensor([1, 2, 3]), torch.tensor(row))
