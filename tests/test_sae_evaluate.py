"""Evaluation of dictionaries: every number against a hand-written loop, on all three kinds of model."""

import json
import math
from dataclasses import replace

import pytest
import torch
from helpers import assert_near, linear_activation, refused, tiny_hooked_transformer
from planted import random_dictionary, random_stories, tiny_llama, word_tokenizer

from sae.commands import evaluate as command

HOOKS = ("blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder, its dictionaries and a corpus."""

    root = tmp_path_factory.mktemp("evaluate-sae")
    tiny_llama().save_pretrained(root / "tiny")
    word_tokenizer().save_pretrained(root / "tiny")
    (root / "stories.txt").write_text("\n<|endoftext|>\n".join(random_stories(70)))
    for seed, hook_name in enumerate(HOOKS):
        random_dictionary(12, 17, hook_name, seed).save(root / "saes" / hook_name)
    return root


@pytest.fixture(scope="module", params=["bridge", "llama", "hooked"])
def model(request, folder):
    if request.param == "bridge":
        import bilinear_circuits as bc

        yield bc.load_model(folder / "tiny")
    elif request.param == "llama":
        yield tiny_llama()
    else:
        with linear_activation():
            yield tiny_hooked_transformer()


@pytest.fixture(scope="module")
def tokens():
    """More stories than one batch holds, of unequal lengths."""
    from bilinear_circuits.data.stories import tokenize_stories

    return tokenize_stories(random_stories(40), word_tokenizer(), 16)


@pytest.fixture
def dictionaries():
    return tuple(random_dictionary(12, 17, hook_name, seed) for seed, hook_name in enumerate(HOOKS))


def blocks_of(model):
    return model.model.layers if hasattr(model, "model") and hasattr(model.model, "layers") else model.blocks


@torch.no_grad()
def logits_of(model, ids):
    out = model(ids)
    return out if isinstance(out, torch.Tensor) else out.logits


def stories_of(tokens):
    """Each story alone, without padding."""
    return [ids[: int(mask.sum()) + 1][None] for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]


@torch.no_grad()
def activations(model, tokens, side):
    """What the MLP of layer 1 reads or writes at each of the stories' own tokens."""
    rows = []
    handle = blocks_of(model)[1].mlp.register_forward_hook(
        lambda module, args, output: rows.append((args[0] if side == 0 else output)[0, 1:])
    )
    for story in stories_of(tokens):
        logits_of(model, story)
    handle.remove()
    return torch.cat(rows)


def loop_cross_entropy(model, tokens):
    total = count = 0
    for story in stories_of(tokens):
        log_probabilities = logits_of(model, story)[0].double().log_softmax(-1)
        for position in range(1, story.shape[1]):
            total -= log_probabilities[position - 1, story[0, position]].item()
            count += 1
    return total / count


def loop_spliced(model, tokens, side, replacement):
    """Cross-entropy with a hook written by hand, which leaves position 0, [BOS], as it is."""

    def before(module, args):
        return (torch.cat([args[0][:, :1], replacement(args[0][:, 1:])], 1),)

    def after(module, args, output):
        return torch.cat([output[:, :1], replacement(output[:, 1:])], 1)

    mlp = blocks_of(model)[1].mlp
    handle = mlp.register_forward_pre_hook(before) if side == 0 else mlp.register_forward_hook(after)
    try:
        return loop_cross_entropy(model, tokens)
    finally:
        handle.remove()


def n_hooks(model, tokens):
    """Torch hooks on all modules, past the ones transformers leaves on its first run."""
    logits_of(model, tokens.ids[:1])
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_reconstruction_is_that_of_a_loop(model, tokens, dictionaries):
    from sae.evaluate import reconstructions

    for side, found in enumerate(reconstructions(model, dictionaries, tokens)):
        rows = activations(model, tokens, side)
        mean = rows.double().mean(0)
        error = variance = active = 0.0
        counts = torch.zeros(17)
        for x in rows:
            z = dictionaries[side].encode(x)
            error += (x - dictionaries[side].decode(z)).double().square().sum().item()
            variance += (x.double() - mean).square().sum().item()
            active += (z != 0).sum().item()
            counts += z != 0
        assert found.n_tokens == len(rows) == tokens.mask.sum()
        assert found.fvu == pytest.approx(error / variance, rel=1e-4)
        assert found.l0 == pytest.approx(active / len(rows))
        assert_near(found.frequency, counts.double() / len(rows), 1e-6)
        assert found.dead.tolist() == [f for f in range(17) if counts[f] == 0]
        assert found.dense.tolist() == [f for f in range(17) if counts[f] > 0.1 * len(rows)]
        assert found.dense.tolist()


def test_dead_and_dense_features_are_told_apart(model, tokens, dictionaries):
    from sae.evaluate import reconstructions

    b_enc = dictionaries[0].b_enc.clone()
    b_enc[3], b_enc[5] = -1e4, 1e4
    (found,) = reconstructions(model, [replace(dictionaries[0], b_enc=b_enc)], tokens)
    assert 3 in found.dead.tolist()
    assert 5 in found.dense.tolist()
    assert found.frequency[5] == 1


def test_a_dictionary_that_reconstructs_all_explains_all_and_costs_nothing(model, tokens):
    from bilinear_circuits.dictionaries.activation import Activation
    from bilinear_circuits.dictionaries.dictionary import Dictionary
    from sae.evaluate import evaluate

    identity = torch.cat([torch.eye(12), -torch.eye(12)])
    perfect = [
        Dictionary(identity.T.contiguous(), torch.zeros(24), identity, torch.zeros(12), Activation("relu"), hook_name)
        for hook_name in HOOKS
    ]
    for one in evaluate(model, perfect, tokens):
        assert one.reconstruction.fvu == pytest.approx(0, abs=1e-10)
        assert one.reconstruction.l0 == pytest.approx(12)
        assert one.loss.added == pytest.approx(0, abs=1e-5)
        assert one.loss.recovered == pytest.approx(1, abs=1e-3)
        assert len(one.duplicates) == 0


@pytest.mark.parametrize("side", [0, 1])
def test_cross_entropies_are_those_of_a_hook_written_by_hand(model, tokens, dictionaries, side):
    from sae.evaluate import cross_entropy, splice_loss

    dictionary = dictionaries[side]
    found = splice_loss(model, dictionary, tokens)
    base = loop_cross_entropy(model, tokens)
    with_dictionary = loop_spliced(model, tokens, side, lambda x: dictionary.decode(dictionary.encode(x)))
    with_zero = loop_spliced(model, tokens, side, torch.zeros_like)
    assert found.base == pytest.approx(base, rel=1e-5)
    assert cross_entropy(model, tokens) == found.base
    assert found.spliced == pytest.approx(with_dictionary, rel=1e-5)
    assert found.zero == pytest.approx(with_zero, rel=1e-5)
    assert found.added == pytest.approx(with_dictionary - base, abs=1e-4)
    assert found.recovered == pytest.approx((with_zero - with_dictionary) / (with_zero - base), rel=2e-2)
    assert abs(with_dictionary - base) > 1e-3 < abs(with_zero - base)
    assert splice_loss(model, dictionary, tokens, base=7.0).base == 7.0


def test_nothing_is_recovered_where_zero_costs_nothing():
    from sae.evaluate import SpliceLoss

    assert math.isnan(SpliceLoss(base=2.0, spliced=2.1, zero=2.0).recovered)
    assert SpliceLoss(base=2.0, spliced=2.1, zero=3.0).recovered == pytest.approx(0.9)


@pytest.mark.parametrize("hook_name", HOOKS)
def test_hooks_are_gone_after_an_error(model, tokens, hook_name):
    from bilinear_circuits.models.running import run_logits
    from bilinear_circuits.runs.splice import Side, spliced

    before = n_hooks(model, tokens)

    def fails(x):
        raise RuntimeError("in the middle")

    with torch.no_grad(), pytest.raises(RuntimeError, match="in the middle"):  # noqa: SIM117
        with spliced(model, Side.of(hook_name), fails, tokens.mask):
            run_logits(model, tokens.ids)
    assert n_hooks(model, tokens) == before


@pytest.mark.parametrize("hook_name", HOOKS)
def test_only_the_places_named_are_replaced(model, tokens, hook_name):
    from bilinear_circuits.models.running import run_logits
    from bilinear_circuits.runs.splice import Side, spliced

    ids, mask = tokens.ids[:1], torch.zeros(1, tokens.ids.shape[1], dtype=torch.bool)
    mask[0, 4] = True
    whole = logits_of(model, ids)
    with torch.no_grad(), spliced(model, Side.of(hook_name), torch.zeros_like, mask):
        part = run_logits(model, ids)
    assert_near(part[:, :4], whole[:, :4], 1e-6)
    assert (part[:, 4] - whole[:, 4]).abs().max() > 1e-3


@pytest.mark.parametrize("block", [1, 2, 5, 17, 1000])
def test_duplicates_are_those_of_two_loops(block):
    from sae.evaluate import duplicate_pairs

    dictionary = random_dictionary(4, 17, HOOKS[0])
    dictionary.W_dec[11] = 3 * dictionary.W_dec[2]
    expected = {}
    for i in range(17):
        for j in range(i + 1, 17):
            cosine = torch.cosine_similarity(dictionary.W_dec[i], dictionary.W_dec[j], dim=0).item()
            if cosine > 0.7:
                expected[i, j] = cosine
    found = duplicate_pairs(dictionary, 0.7, block)
    assert len(found) == len(expected) > 2
    pairs = {tuple(pair): cosine for pair, cosine in zip(found.pairs.tolist(), found.cosine.tolist(), strict=True)}
    assert pairs == pytest.approx(expected)
    assert pairs[2, 11] == pytest.approx(1)
    assert duplicate_pairs(dictionary, 0.9999).pairs.tolist() == [[2, 11]]


def test_what_cannot_be_evaluated_is_refused(tokens, dictionaries):
    from bilinear_circuits.runs.splice import Side, spliced
    from sae.evaluate import cross_entropy, duplicate_pairs, reconstructions, splice_loss

    model = tiny_llama()
    elsewhere = replace(dictionaries[0], hook_name="blocks.1.hook_resid_post")
    beyond = replace(dictionaries[0], hook_name="blocks.3.mlp.hook_in")
    empty = type(tokens)(tokens.ids, torch.zeros_like(tokens.mask))
    with refused(ValueError, "hook_name must be blocks.L.mlp.hook_in .* got 'blocks.1.hook_resid_post'. Other hooks"):
        reconstructions(model, [elsewhere], tokens)
    with refused(ValueError, "hook_name must be .*, got None"):
        splice_loss(model, replace(elsewhere, hook_name=None), tokens)
    with refused(ValueError, "dictionary must sit at one of the model's layers, 0 to 2, got blocks.3.mlp.hook_in"):
        splice_loss(model, beyond, tokens)
    with (
        refused(ValueError, "layer must be between 0 and 2, those of the model, got 3"),
        spliced(model, Side.of(beyond.hook_name), torch.zeros_like, tokens.mask),
    ):
        pass
    with refused(ValueError, "tokens must hold at least one token besides"):
        cross_entropy(model, empty)
    with refused(ValueError, "threshold must be a cosine below 1, got 1"):
        duplicate_pairs(dictionaries[0], 1.0)
    with refused(ValueError, "block must be at least 1, got 0"):
        duplicate_pairs(dictionaries[0], block=0)


def test_the_command_prints_a_table_and_writes_what_it_measured(folder, tmp_path, capsys):
    import bilinear_circuits as bc
    from bilinear_circuits.data.corpora import read_stories
    from bilinear_circuits.data.stories import tokenize_stories
    from sae.evaluate import evaluate

    command.run(
        command.Arguments(
            model=str(folder / "tiny"),
            saes=str(folder / "saes"),
            corpus=str(folder / "stories.txt"),
            n_stories=50,
            out=str(tmp_path / "out"),
        )
    )
    printed = capsys.readouterr().out.splitlines()
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    model = bc.load_model(folder / "tiny")
    tokens = tokenize_stories(read_stories(folder / "stories.txt", 50), model.tokenizer, 32)
    expected = evaluate(model, bc.load_dictionaries(1, folder / "saes"), tokens)
    for row, line, one in zip(written["dictionaries"], printed[2:4], expected, strict=True):
        assert row["name"] == row["hook_name"] == one.dictionary.hook_name == line.split()[0]
        assert row["fvu"] == pytest.approx(one.reconstruction.fvu)
        assert row["ce_recovered"] == pytest.approx(one.loss.recovered)
        assert row["ce_added"] == pytest.approx(row["ce_spliced"] - row["ce"])
        assert row["dense"] == one.reconstruction.dense.tolist()
        assert float(line.split()[2]) == pytest.approx(one.reconstruction.fvu, abs=1e-4)
        assert float(line.split()[-1]) == pytest.approx(one.loss.recovered, abs=1e-4)
    assert printed[0].startswith(f"{int(tokens.mask.sum())} tokens; cross-entropy of the model")
    assert printed[-1] == f"written: {tmp_path}/out/evaluation.json"
    provenance = written["provenance"]
    assert provenance["corpus"]["n_stories"] == 50
    assert set(provenance["dictionaries"]) == set(HOOKS)
    assert all(len(sha256) == 64 for sha256 in provenance["dictionaries"].values())
    assert provenance["versions"]["sae-lens"]
    assert provenance["config"]["layers"] == [1]


def test_a_number_that_is_none_is_null(dictionaries):
    from sae.evaluate import DuplicatePairs, Evaluation, Reconstruction, SpliceLoss

    pairs = DuplicatePairs(0.9, torch.zeros(0, 2, dtype=torch.long), torch.zeros(0))
    one = Evaluation(dictionaries[0], Reconstruction(1, float("nan"), 3.0, torch.ones(17)), SpliceLoss(2, 2, 2), pairs)
    row = command.payload(one)
    assert row["fvu"] is None
    assert row["ce_recovered"] is None
    json.dumps(row, allow_nan=False)


MISTAKES = {
    r"layer must have dictionaries in .*saes \(layers 1\), got 2": {"layers": [2]},
    "--corpus must be given for": {"corpus": None},
    "--saes must be given for": {"saes": None},
    "device must be one that torch can use, got cuda:9": {"device": "cuda:9"},
    "n_stories must be at least 1, got 0": {"n_stories": 0},
    "saes must be the name of a shipped model .* got nowhere: no such folder": {"saes": "nowhere"},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_said_before_a_model_is_loaded(message, folder, monkeypatch):
    from bilinear_circuits.command_line import common

    monkeypatch.setattr(common, "quietly_load_model", lambda *_: pytest.fail("loaded"))
    asked = {
        name: str(folder / path) for name, path in (("model", "tiny"), ("saes", "saes"), ("corpus", "stories.txt"))
    }
    with refused((ValueError, FileNotFoundError), message):
        command.run(command.Arguments(**asked | MISTAKES[message]))


@pytest.mark.slow
def test_the_shipped_dictionaries_are_as_good_as_their_card_says(capsys):
    """On stories sampled from the model itself; the card measured on held-out ones, which are not in the repository."""
    command.run(command.Arguments(n_stories=60))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:6]]
    assert [row[0] for row in rows] == [
        f"blocks.{layer}.mlp.{side}" for layer in (3, 4) for side in ("hook_in", "hook_out")
    ]
    for row, card in zip(rows, (0.88, 0.80, 0.83, 0.73), strict=True):
        assert float(row[-1]) == pytest.approx(card, abs=0.08)
        assert float(row[3]) == pytest.approx(30, abs=0.1)
