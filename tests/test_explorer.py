"""The circuit explorer: its numbers against independent computation, its page, and the verb from end to end."""

import copy
import html
import json

import pytest
import torch
from helpers import refused
from planted import interactions_of, random_stories, save_between_dictionaries, word_tokenizer

from bilinear_circuits.cli import main
from bilinear_circuits.command_line import common
from bilinear_circuits.command_line.circuit_file import read_proofs
from bilinear_circuits.commands import explore
from bilinear_circuits.data.stories import tokenize_stories
from bilinear_circuits.interactions.activity import collect_activity
from bilinear_circuits.interactions.neighbourhood import cluster_rows, neighbourhood
from bilinear_circuits.interactions.profiles import profile_feature
from bilinear_circuits.interactions.shape import factor_pair
from bilinear_circuits.models.running import unembedding
from bilinear_circuits.report.explorer import SCRIPTS, explorer_document, explorer_page, orders

LAYER, N_MEMBERS = 1, 14
HOSTILE = "</script><img src=x onerror=alert(1)>"
SOURCE = {"model": {"name": "tiny"}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model between dictionaries, on disk and measured on stories; the output feature active most."""
    root = tmp_path_factory.mktemp("explorer")
    model, tokenizer = save_between_dictionaries(root, (LAYER,)), word_tokenizer()
    one = interactions_of(model, LAYER)
    stories = random_stories(40)
    (root / "stories.txt").write_text("\n<|endoftext|>\n".join(stories))
    (activity,) = collect_activity(model, [one], tokenize_stories(stories, tokenizer, 32))
    feature = int(activity.outputs.counts.argmax())
    profile = profile_feature(activity, feature, unembedding(model), tokenizer)
    model.tokenizer = tokenizer  # as a bridge has it
    return {
        "model": model,
        "activity": activity,
        "profile": profile,
        "around": neighbourhood(activity, profile, tokenizer, N_MEMBERS),
        "tokenizer": tokenizer,
        "options": ["--model", str(root / "tiny"), "--saes", str(root / "saes"), "--corpus", str(root / "stories.txt")],
        "name": f"{LAYER}/{feature}",
        "root": root,
    }


@pytest.fixture(scope="module")
def written(world):
    """What the verb wrote for two features and prompts of our own."""
    prompts = world["root"] / "prompts.yaml"
    prompts.write_text('prompts: ["the cat was not good .", "the dog ran home"]')
    counts = world["activity"].outputs.counts
    other = next(f for f in counts.argsort(descending=True).tolist() if f != world["profile"].feature)
    features = ["--features", world["name"], f"{LAYER}/{other}"]
    out = world["root"] / "out"
    asked = ["explore", *features, *world["options"], "--prompts", str(prompts), "--n-members", "12", "--out", str(out)]
    assert main(asked) == 0
    return out


def dense_columns(active, n_tokens):
    """Activations as a table, one number at a time."""
    z = torch.zeros(n_tokens, len(active.counts), dtype=torch.double)
    for feature in range(z.shape[1]):
        for token, value in zip(*active[feature], strict=True):
            z[token, feature] = value.double()
    return z


def test_a_circuit_has_the_name_that_its_feature_has_everywhere(world, written):
    from bilinear_circuits.interactions.naming import feature_label

    document = json.loads((written / "explorer.json").read_text())
    label = feature_label(world["activity"], world["profile"].feature, world["tokenizer"], "out")
    assert document["circuits"][0]["label"] == label == world["profile"].label
    assert label in (written / "explorer.html").read_text()


def test_weights_and_co_activation_are_those_of_the_formula(world):
    activity, around = world["activity"], world["around"]
    one, feature = activity.interactions, world["profile"].feature
    z = dense_columns(activity.inputs, len(activity.x))
    active = dense_columns(activity.outputs, len(activity.x))[:, feature] != 0
    Q = one.form(feature).matrix.to_dense().double()
    rows = one.sae_in.W_dec.double()
    for i, a in enumerate(around.members.tolist()):
        torch.testing.assert_close(around.usage[i], z[active, a].mean())
        for j, b in enumerate(around.members.tolist()):
            torch.testing.assert_close(around.weights[i, j], rows[a] @ Q @ rows[b], atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(around.everywhere[i, j], (z[:, a] * z[:, b]).mean())
            torch.testing.assert_close(around.active[i, j], (z[active, a] * z[active, b]).mean())


def test_members_are_the_groups_and_then_the_partners_that_add_most(world):
    activity, around, shape = world["activity"], world["around"], world["profile"].shape
    groups = torch.cat([shape.first, shape.second]).tolist()
    assert around.members.tolist()[: len(groups)] == groups
    assert around.group.tolist()[: len(groups)] == [0] * len(shape.first) + [1] * len(shape.second)
    assert set(around.group.tolist()[len(groups) :]) <= {-1}
    token, _ = activity.outputs[world["profile"].feature]
    z = dense_columns(activity.inputs, len(activity.x))[token]
    T = activity.interactions.matrix(world["profile"].feature).to_dense().double()
    mass = (T * (z.T @ z)).abs().sum(1)
    mass[groups] = 0
    expected = [f for f in mass.argsort(descending=True).tolist() if mass[f] > 0][: N_MEMBERS - len(groups)]
    assert around.members.tolist()[len(groups) :] == expected
    first, second = ((activity.interactions.sae_in.W_dec @ v).abs() for v in factor_pair(world["profile"].spectrum))
    for member, side in zip(expected, around.side.tolist()[len(groups) :], strict=True):
        assert side == int(second[member] > first[member])
    with refused(ValueError, "n_members must be at least 2, got 1"):
        neighbourhood(activity, world["profile"], world["tokenizer"], 1)


def test_all_pairs_together_are_the_first_term_of_the_ledger(world):
    """With every input feature a member, the contributions where the feature is active sum to what the ledger says."""
    everything = neighbourhood(world["activity"], world["profile"], world["tokenizer"], 17)
    token, _ = world["activity"].outputs[world["profile"].feature]
    ledger = world["activity"].interactions.ledger(world["activity"].x[token], world["profile"].feature)
    total = (everything.weights * everything.active).sum()
    torch.testing.assert_close(total, ledger.feature_feature.mean(), atol=1e-6, rtol=1e-4)


def test_clusters_find_the_directions_that_rows_were_made_of():
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(9, 2, generator=generator)).Q.T
    kinds = torch.arange(24) % 4  # along either direction, with either sign
    sign = torch.where(kinds < 2, 1.0, -1.0).unsqueeze(1)
    lengths = 0.1 + torch.rand(24, 1, generator=generator) * 10
    rows = lengths * (sign * directions[kinds % 2] + 0.05 * torch.randn(24, 9, generator=generator))
    found = cluster_rows(rows)
    assert sorted(found.order.tolist()) == list(range(24))
    for cluster in range(4):
        assert len(set(kinds[found.cluster == cluster].tolist())) == 1
    # Clusters are numbered and contiguous in the order of the leaves.
    assert found.cluster[found.order].tolist() == sorted(found.cluster.tolist())
    assert cluster_rows(rows, 2).cluster.unique().tolist() == [0, 1]


def test_clusters_of_few_or_silent_features():
    assert cluster_rows(torch.randn(1, 3)).cluster.tolist() == [0]
    assert cluster_rows(torch.zeros(5, 3)).cluster.shape == (5,)
    with_zero = cluster_rows(torch.tensor([[1.0, 0], [1, 0], [0, 0], [-1, 0], [-2, 0]]), 3)
    assert with_zero.cluster[0] == with_zero.cluster[1] != with_zero.cluster[3] == with_zero.cluster[4]
    assert with_zero.cluster[2] not in (with_zero.cluster[0], with_zero.cluster[3])


def test_orders_are_permutations_by_their_key(world):
    around, n = world["around"], len(world["around"].members)
    by = orders(around)
    assert all(sorted(order) == list(range(n)) for order in by.values())
    usage = around.usage[by["usage"]].tolist()
    assert usage == sorted(usage, reverse=True)
    names = [around.labels[index].casefold() for index in by["name"]]
    assert names == sorted(names)
    assert [around.group.tolist()[index] for index in by["group"]] == sorted(around.group.tolist(), key=lambda g: g % 3)
    for column, name in enumerate(("v1", "v2")):
        projections = around.projections[by[name], column].tolist()
        assert projections == sorted(projections, reverse=True)


def test_document_holds_the_circuit(world):
    document = explorer_document([world["profile"]], [world["around"]], [], SOURCE)
    (circuit,) = document["circuits"]
    members = world["around"].members.tolist()
    assert circuit["name"] == world["name"]
    assert circuit["proof"] is None
    assert [one["feature"] for one in circuit["members"]] == members
    assert circuit["weights"][0][1] == pytest.approx(world["around"].weights[0, 1].item(), rel=1e-6)
    cloud = {int(feature): (x, y) for x, y, feature in circuit["cloud"]}
    assert set(cloud) == set(range(17)) - set(members)
    for feature, point in cloud.items():
        assert point == pytest.approx(world["profile"].projections[feature].tolist(), rel=1e-3)
    assert circuit["summary"]["frequency"] == pytest.approx(world["profile"].frequency)
    json.dumps(document, allow_nan=False)


def test_document_refuses_what_does_not_belong_together(world):
    with refused(ValueError, "profiles must be of one circuit or more, each once, got none"):
        explorer_document([], [], [], SOURCE)
    with refused(ValueError, f"each once, got {world['name']}, {world['name']}"):
        explorer_document([world["profile"]] * 2, [world["around"]] * 2, [], SOURCE)
    with refused(ValueError, f"neighbourhoods must be of the circuits {world['name']}, got none"):
        explorer_document([world["profile"]], [], [], SOURCE)


def test_a_hostile_token_stays_text(world, written):
    document = json.loads((written / "explorer.json").read_text())
    document["circuits"][0]["members"][0]["label"] = HOSTILE
    document["circuits"][0]["summary"]["top_tokens"] = [HOSTILE]
    document["prompts"][0]["tokens"][0] = HOSTILE
    document["prompts"][0]["text"] = HOSTILE
    page = explorer_page(document)
    assert "<img" not in page
    assert page.count("</script>") == page.count("<script") == 2 + len(SCRIPTS)  # the data, page.js and ours
    assert "connect-src" not in page
    assert "connect-src 'self'" in html.unescape(explorer_page(document, live=True))


def test_a_page_that_grows_too_large_is_refused(world):
    document = explorer_document([world["profile"]], [world["around"]], [], SOURCE)
    assert len(explorer_page(document)) < 300_000
    with refused(ValueError, r"must stay below 5 MB, got 5\.\d MB for 1 circuits and 1 prompts. Ask for fewer"):
        explorer_page(document | {"prompts": [{"text": "x" * 5_100_000}]})


def test_explore_writes_what_it_shows(world, written):
    assert sorted(file.name for file in written.iterdir()) == ["explorer.html", "explorer.json"]
    document = json.loads((written / "explorer.json").read_text())
    assert document["provenance"]["config"]["n_members"] == 12
    assert [len(one["members"]) >= 12 for one in document["circuits"]] == [True, True]
    sources = [one["source"] for one in document["prompts"]]
    assert sources[:2] == [explore.WRITTEN] * 2
    assert set(sources[2:]) <= {f"strongest in the corpus for {one['name']}" for one in document["circuits"]}
    first = document["prompts"][0]
    assert first["tokens"] == ["the", "cat", "was", "not", "good", "."]
    for circuit in document["circuits"]:
        account = first["features"][circuit["name"]]
        for pre, position in zip(account["pre_activation"], account["positions"], strict=True):
            assert sum(position["terms"].values()) == pytest.approx(pre, abs=1e-5)
            pairs = sum(pair[3] for pair in position["pairs"]) + position["rest"]
            assert pairs == pytest.approx(position["terms"]["feature_feature"], abs=1e-6)
    page = (written / "explorer.html").read_text()
    assert page == explorer_page(document)


def test_the_strongest_contexts_hold_the_strongest_tokens(world):
    activity, feature = world["activity"], world["profile"].feature
    texts = explore.strongest_contexts(activity, feature, world["tokenizer"], 3)
    assert len(texts) == len(set(texts)) == 3
    token, value = activity.outputs[feature]
    best = int(token[value.argmax()])
    assert world["tokenizer"].decode([int(activity.token_ids[best])]) in texts[0]
    assert explore.strongest_contexts(activity, feature, world["tokenizer"], 0) == []


def test_further_prompts_are_answered_in_the_features_shown(world):
    feature = world["profile"].feature
    answers = explore.PromptAnswers(world["model"], [world["activity"]], [(LAYER, feature)])
    answer = answers("dog was never nice", [(LAYER, feature)])
    assert answer["tokens"] == ["dog", "was", "never", "nice"]
    assert list(answer["features"]) == [world["name"]]
    assert {"text", "tokens", "features", "labels"} == set(answer)
    with refused(ValueError, rf"features must be among those explored \({world['name']}\), got 9/9"):
        answers("dog", [(9, 9)])
    with refused(ValueError, "prompt must hold at least one token"):
        answers("  ")


MISTAKES = {
    (): "a CIRCUIT.json or --features must be given, such as --features 4/143 4/1846, got neither",
    ("--features", "4-143"): "features must be written as layer/feature, such as 4/143, got '4-143'",
    ("--features", "9/1"): "layer must have dictionaries",
    ("--features", "1/99"): "feature must be between 0 and 18",
    ("--features", "1/0", "--n-members", "1"): "n_members must be at least 2, got 1",
    ("--features", "1/0", "--prompts", "nowhere.yaml"): "prompts must be a YAML file, got nowhere.yaml",
    ("missing.json",): "circuit must be a circuit.json",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_is_named(arguments, world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["explore", *arguments, *world["options"]]) == 2
    assert MISTAKES[arguments] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompts: no", "must be a list of texts, got False"),
        ("prompts: [good, no]", "must be a list of texts"),
        ("prompts: []", "must be a list of texts, got \\[\\]"),
        ("prompts: [a]\nother: 1", "must hold the key prompts alone, got other too"),
    ],
)
def test_a_wrong_prompt_file_is_named(content, message, tmp_path):
    file = tmp_path / "prompts.yaml"
    file.write_text(content)
    with refused(ValueError, message):
        explore.read_prompts(str(file))
    file.write_text("prompts: [a b, c, a b]")
    assert explore.read_prompts(str(file)) == ("a b", "c")


def test_what_is_proved_is_read_from_the_circuit_file(tmp_path):
    effect = {"mean": -0.4, "low": -0.5, "high": -0.3, "n": 60}
    circuit = {
        "evidence": {"layer": 4, "feature": 143, "sign": -1},
        "profile": {"groups": {"first": [], "second": []}},
        "verdict": {"proved": True, "text": "proved", "note": ""},
        "proof": {"removal": effect, "control": effect, "ce_removal": effect},
    }
    query = {"positive": ["good"], "negative": ["bad", "sad"]}
    content = {"kind": "circuit search", "schema_version": 2, "query": query, "circuits": [circuit]}
    file = tmp_path / "circuit.json"
    file.write_text(json.dumps(content))
    proofs = read_proofs(str(file))
    assert list(proofs) == ["4/143"]
    assert proofs["4/143"]["pole"] == "negative"
    assert proofs["4/143"]["words"] == ["bad", "sad"]
    assert proofs["4/143"]["removal"] == effect
    broken = copy.deepcopy(content)
    del broken["circuits"][0]["proof"]["control"]
    file.write_text(common.to_json(broken))
    with refused(ValueError, r"proof in circuits\[0\] of .* must hold the key control|must hold the key control"):
        read_proofs(str(file))
