"""What drives the share of output features of low rank: sparsity, width and layer of the dictionary.

    python benchmarks/dictionary_study.py --corpus TRAIN.txt --held-out VALID.txt [--tokens 2000000] [--grid 3,30,4 ...]

Trains dictionaries on the outputs of MLPs of the shipped model, one for each LAYER,K,EXPANSION of the grid, all on the
same activations from the same forward passes, and prints a row for each: FVU, recovered cross-entropy, dead features,
and the share of features whose rank-r form correlates with the activation above 0.75 (r = 1, 2, 4).
"""

import argparse
from dataclasses import replace

import torch

import bilinear_circuits as bc
from bilinear_circuits.data.corpora import read_stories
from bilinear_circuits.data.stories import StoryTokens, tokenize_stories
from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.interactions.low_rank import low_rank_correlation
from bilinear_circuits.models.running import capture_mlp
from sae import train
from sae.checks import sae_config
from sae.evaluate import evaluate
from sae.settings import TrainSettings

GRID = ("3,15,4", "3,30,4", "3,60,4", "3,30,8", "4,15,4", "4,30,4", "4,60,4", "4,120,4", "4,30,8", "4,60,8")
CONTEXT = 256


def train_grid(
    model: object, tokens: StoryTokens, grid: list[tuple[int, int, int]], n_tokens: int
) -> dict[tuple[int, int, int], Dictionary]:
    """Dictionaries of the grid."""
    layers = tuple(sorted({layer for layer, _, _ in grid}))
    base = TrainSettings(
        layers=layers, sides=("hook_out",), tokens=n_tokens, sae={"k": 30}, precision="bf16", checkpoints=0
    )
    names = {f"{layer}-{k}-{expansion}": (layer, k, expansion) for layer, k, expansion in grid}
    torch.manual_seed(0)
    config = train._runner_config(base, model, "ts-17m", train.excluded_tokens(tokens), wandb=False)
    config.saes = {
        name: sae_config(replace(base, sae={"k": k}, expansion=expansion), model)
        for name, (_, k, expansion) in names.items()
    }
    config.hook_names = {name: f"blocks.{layer}.mlp.hook_out" for name, (layer, _, _) in names.items()}
    config.__post_init__()
    config.checkpoint_path = config.resume_from_checkpoint = None
    ids = torch.nn.functional.pad(tokens.ids, (0, CONTEXT - tokens.ids.shape[1]), value=int(tokens.ids[0, 0]))
    with train._quiet_saelens():
        trained = train._Runner(config, override_dataset=train.StoryRowsDataset(ids, 0), override_model=model).run()
    return {
        point: replace(train._dictionary(trained[name], name), hook_name=config.hook_names[name])
        for name, point in names.items()
    }


def row(model: object, tokens: StoryTokens, point: tuple[int, int, int], dictionary: Dictionary, every: int) -> str:
    """One line of the table."""
    layer, k, expansion = point
    mlp = bc.BilinearMLP.from_model(model, layer)
    x = capture_mlp(model, tokens.ids, [layer])[layer].x[tokens.mask]
    seen = evaluate(model, [dictionary], tokens)[0]
    # The input dictionary does not enter: any that fits will do.
    interactions = bc.FeatureInteractions(mlp, replace(dictionary, hook_name=mlp.hook_in), dictionary)
    found = low_rank_correlation(interactions, x, ranks=[1, 2, 4], features=range(0, dictionary.d_sae, every))
    shares = [found.share_above(rank) for rank in (1, 2, 4)]
    text = "".join(f"{100 * share.value:>7.1f}" for share in shares)
    return (
        f"{layer:>5}{k:>5}{expansion:>4}x{seen.reconstruction.fvu:>8.3f}{seen.loss.recovered:>11.3f}"
        f"{len(seen.reconstruction.dead):>6}{text}   ({100 * shares[1].low:.1f} to {100 * shares[1].high:.1f})"
    )


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="stories to train on")
    parser.add_argument("--held-out", required=True, help="stories to measure on")
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--grid", nargs="+", default=GRID, help="LAYER,K,EXPANSION")
    parser.add_argument("--n-stories", type=int, default=200, help="stories measured on")
    parser.add_argument("--every", type=int, default=6, help="measure the rank of every so many features")
    arguments = parser.parse_args()
    model = bc.load_model()
    tokens = tokenize_stories(read_stories(arguments.corpus), model.tokenizer, CONTEXT)
    held_out = tokenize_stories(read_stories(arguments.held_out, arguments.n_stories), model.tokenizer, CONTEXT)
    grid = [tuple(map(int, point.split(","))) for point in arguments.grid]
    trained = train_grid(model, tokens, grid, arguments.tokens)
    print("layer    k width     FVU  recovered  dead   rank 1      2      4   (95 % interval at rank 2)")
    for point, dictionary in trained.items():
        print(row(model, held_out, point, dictionary, arguments.every), flush=True)


if __name__ == "__main__":
    main()
