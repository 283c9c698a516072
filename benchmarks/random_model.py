"""Whether discovery reports anything where nothing is to be found: random weights, with dictionaries of their own.

    python benchmarks/random_model.py --model out/ts-nano --out out/random-model [--runs 10]

Each run permutes the entries of every row of all MLP weights of a model (`--all-weights`: of all its weights), trains
dictionaries on the result by a recipe, searches all its output features for motifs, and counts discoveries. The same
search with the trained model is printed beside it.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from bilinear_circuits.cli import main as command
from bilinear_circuits.discovery import DiscoverySearch
from bilinear_circuits.discovery.nulls import permute_rows
from bilinear_circuits.utilities.saving import load_result


def randomise(model: Path, out: Path, seed: int, all_weights: bool) -> None:
    """A copy of a model folder whose weights hold the same numbers in other places."""
    out.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        # Rows of W_gate, W_in and W_out are columns of what a Llama stores.
        name: permute_rows(value.T, generator).T.contiguous()
        if value.ndim == 2 and (all_weights or ".mlp." in name)
        else value
        for name, value in load_file(model / "model.safetensors").items()
    }
    for file in model.glob("*.json"):
        (out / file.name).write_bytes(file.read_bytes())
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def search(model: Path, saes: Path, out: Path, seed: int, replicates: int, n_stories: int) -> DiscoverySearch:
    """The discoveries of a model and its dictionaries."""
    options = {"model": model, "saes": saes, "corpus": "ts-17m", "n-stories": n_stories, "seed": seed, "out": out}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    if command(["discover", *arguments, "--replicates", str(replicates)]) != 0:
        raise SystemExit(1)
    return load_result(DiscoverySearch, out)


def main() -> None:
    """Every run, and how many reported anything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a model folder, for instance of ts-nano")
    parser.add_argument("--recipe", default="configs/sae/ts-nano.yaml", help="recipe of its dictionaries")
    parser.add_argument("--out", type=Path, default=Path("out/random-model"))
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=500_000, help="tokens the dictionaries are trained on")
    parser.add_argument("--replicates", type=int, default=6, help="draws of each null")
    parser.add_argument("--n-stories", type=int, default=200)
    parser.add_argument("--all-weights", action="store_true", help="randomise attention and embeddings too")
    arguments = parser.parse_args()
    rows = []
    for run in range(-1, arguments.runs):
        folder = arguments.out / ("trained" if run < 0 else f"random-{run}")
        model = arguments.model if run < 0 else folder / "model"
        if run >= 0 and not model.is_dir():
            randomise(arguments.model, model, run, arguments.all_weights)
        changes = ["--set", f"tokens={arguments.tokens}", f"seed={max(run, 0)}"]
        trained = ["train-sae", arguments.recipe, "--model", str(model), "--out", str(folder / "saes"), *changes]
        if not (folder / "saes").is_dir() and command(trained) != 0:
            raise SystemExit(1)
        found = search(
            model, folder / "saes", folder / "discovery", 100 + run, arguments.replicates, arguments.n_stories
        )
        parts = {name: len(getattr(found, name)) for name in ("discoveries", "echoes", "apart")}
        rows.append({"run": folder.name, "features": found.n_features, **parts})
        print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    reported = sum(row["discoveries"] > 0 for row in rows[1:])
    print(f"{reported} of {arguments.runs} random models reported anything; the trained one {rows[0]['discoveries']}")
    (arguments.out / "random_model.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
