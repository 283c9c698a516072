"""Every verb that writes a folder, asked of one tiny world: what holds for one of them is tested of all."""

import json

import torch
import yaml
from planted import random_stories, save_between_dictionaries, tiny_llama, word_tokenizer

TEXT = "the cat was not good and the zebra sat"
QUERY = {
    "name": "tiny", "triggers": ["not", "never"], "positive": ["good", "nice"], "negative": ["bad", "sad"],
    "settings": {"ranking_stories": 60, "loss_stories": 4, "sites": 20, "site_position": 12, "shortlist": 3,
                 "controls": 2, "baseline": 4},
}  # fmt: skip
TRAIN = {
    "name": "trained", "valid_share": 0.2, "vocab_size": 64,
    "model": {"d_model": 16, "d_mlp": 24, "n_layers": 2, "n_heads": 2, "context": 24},
    "optim": {"lr": 1e-3, "batch_rows": 8, "epochs": 2, "evaluations": 4, "precision": "fp32"},
}  # fmt: skip
TRAIN_SAE = {
    "name": "dictionaries", "layers": [1], "sae": {"k": 3}, "tokens": 1600, "batch_tokens": 64, "buffer_rows": 16,
    "context": 16, "model_rows": 32, "dead_window": 20, "norm_batches": 2, "lr": 1e-2, "checkpoints": 2, "snapshots": 2,
}  # fmt: skip
PUBLISHED = {"point": ["mlp-in", 1], "expansion": 3, "k": 4, "normalize": None}

QUICK_PROOF = ["--n-edges", "40", "--n-exact", "4", "--n-draws", "1", "--n-controls", "1", "--n-nonsense", "3"]
QUICK_SEARCH = ["--n-stories", "60", "--replicates", "2", "--n-largest", "50"]
VERBS = {
    "circuits": "circuits QUERY PLACE --out OUT",
    "explore": "explore CIRCUIT PLACE --n-stories 20 --out OUT",
    "prove": "prove CIRCUIT PLACE --out OUT QUICK_PROOF",
    "edit": "edit CIRCUIT PLACE --prediction-stories 5 --out OUT",
    "compare": "compare CIRCUIT CIRCUIT --models MODEL --saes SAES --corpus CORPUS --n-null 4 --n-shifts 19 --out OUT",
    "discover": "discover PLACE --out OUT QUICK_SEARCH",
    "inspect": "inspect PLACE --layer 1 --feature 3 --n-stories 40 --out OUT",
    "features": "features PLACE --layer 1 --feature 0 1 2 --neuronpedia --n-stories 40 --out OUT",
    "graph": "graph PLACE --layer 1 --feature 0 1 2 3 4 5 6 7 --prompt TEXT --n-stories 40 --out OUT",
    "approximate": "approximate --model MODEL --corpus CORPUS --held-out 20 --steps 5 --out OUT",
    "paths": "paths --model MODEL --saes SAES --layers 1 --prompt TEXT --out OUT",
    "heads": "heads --model MODEL --n-tokens 12 --n-distances 6 --out OUT",
    "interactions": "interactions PLACE --layer 1 --k 9 --shard-size 5 --coactive --n-stories 40 --out OUT",
    "lowrank": "lowrank PLACE --ranks 1 2 --min-active 3 --out OUT",
    "train": "train TRAIN --device cpu --out OUT",
    "convert": "convert TRAIN --model GATED --set optim.epochs=1 --device cpu --out OUT",
    "train-sae": "train-sae TRAIN_SAE --out OUT",
    "evaluate-sae": "evaluate-sae PLACE --n-stories 40 --out OUT",
    "sae-progress": "sae-progress FOLDER --model MODEL --corpus CORPUS --n-stories 40 --out OUT",
    "import": "import PUBLISHED --out OUT",
}
OTHERS = {  # which write no folder of their own
    "serve": "serve CIRCUIT PLACE --n-stories 20",
    "sample": "sample --model MODEL --n 3 --max-tokens 8 --out OUT",
    "names": "names PLACE --n-stories 40 --replace",
}
RESUMABLE = ("features", "interactions", "train", "train-sae", "approximate", "convert")


def asked(verb, world, out):
    """Arguments of a verb."""
    words = [world.get(word, word) if word != "OUT" else str(out) for word in (VERBS | OTHERS)[verb].split()]
    return [text for word in words for text in (word if isinstance(word, list) else [word])]


def write_world(root):
    """Files for all verbs, without the results that some of them read; what the words in capitals stand for."""
    save_between_dictionaries(root, (1, 2), "model")
    tiny_llama(act="silu", n_layers=1).save_pretrained(root / "gated")
    word_tokenizer().save_pretrained(root / "gated")
    lines = [f"{story} the cat sat at home ." for story in random_stories(150)]
    (root / "stories.txt").write_text("\n<|endoftext|>\n".join(lines))
    corpus = {"corpus": str(root / "stories.txt")}
    recipes = {
        "QUERY": QUERY,
        "TRAIN": TRAIN | corpus,
        "TRAIN_SAE": TRAIN_SAE | corpus | {"model": str(root / "model")},
    }
    for name, content in recipes.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(content))
    publish(root / "published")
    places = {"GATED": root / "gated", "MODEL": root / "model", "SAES": root / "saes", "CORPUS": root / "stories.txt"}
    options = {"--model": places["MODEL"], "--saes": places["SAES"], "--corpus": places["CORPUS"]}
    return {
        **{name: str(path) for name, path in places.items()},
        **{name: str(root / f"{name}.yaml") for name in recipes},
        "PLACE": [text for name, path in options.items() for text in (name, str(path))],
        "PUBLISHED": str(root / "published"),
        "CIRCUIT": str(root / "found/circuit.json"),
        "FOLDER": str(root / "dictionaries"),
        "TEXT": TEXT,
        "QUICK_PROOF": QUICK_PROOF,
        "QUICK_SEARCH": QUICK_SEARCH,
    }


def publish(folder):
    """A dictionary in the published format."""
    from safetensors.torch import save_file

    folder.mkdir()
    d_in, generator = 12, torch.Generator().manual_seed(0)
    d_sae = PUBLISHED["expansion"] * d_in
    shapes = {"w_enc.weight": (d_sae, d_in), "w_dec.weight": (d_in, d_sae), "b_dec": (d_in,)}
    save_file(
        {name: torch.randn(*one, generator=generator) for name, one in shapes.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(PUBLISHED))


def files_of(folder):
    """Every file below a folder, as its bytes by its path."""
    return {one.relative_to(folder).as_posix(): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}
