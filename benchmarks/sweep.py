"""Time the sweep over all interactions of a layer against the reference algorithm and the limit of the machine.

    python benchmarks/sweep.py [--layer paper|ts-17m/4|random-1024|...] [--full] [--device cuda] [--out DIR]

Three tasks, each in a process of its own, so that its peak memory is its own:

- top-k: the 10,000 largest interactions of all and the 50 largest of each output feature, in one sweep. Reference: what
  the code of Pearce et al. does, for a batch of 32 outputs at a time (fewer above 2896 input features, for their
  memory): contract the three matrices to dense forms, project both sides, symmetrise, `torch.topk`.
- spectra: the 4 leading eigenpairs of every output. Reference: batched `torch.linalg.eigh`.
- correlation (shipped layers only): low-rank correlation at ranks 1, 2, 4, 8, 16. Reference: forms and `eigh` batch by
  batch, a loop over features.

The limit is the time of the operations that the symmetric half needs, as one large product in the precision used.
Without --full the reference runs on some batches of outputs, evenly spaced, and its time is scaled up. With --outputs
a layer has only so many of its outputs, evenly spaced; with --precision float32 ours does without bfloat16.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bilinear_circuits as bc
from bilinear_circuits.algebra.forms import QuadraticForms
from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.interactions.low_rank import low_rank_correlation, pearson
from bilinear_circuits.sweep import Precision, Products, TopSearch, fastest_precision, leading_spectra, sweep

PAPER_LAYER = Path(__file__).parents[2] / "shared/weights/paper-size-layer"
K_ALL, K_EACH, N_EIGENPAIRS, BATCH, SAMPLED = 10_000, 50, 4, 32, 4
MOST_ENTRIES = 1 << 28  # of the dense matrices of a batch of the reference, which holds several copies of them
RANKS = (1, 2, 4, 8, 16)
TASKS = ("topk", "spectra", "correlation")


def load_layer(name: str, device: str, n_outputs: int | None = None) -> tuple[InteractionTensor, Tensor, Tensor]:
    """The layer, decoder rows of its input and encoder columns of its output features, or of some of these."""
    if name == "paper":
        from safetensors.torch import load_file

        weights = {key: value.float() for key, value in load_file(PAPER_LAYER / "mlp.safetensors").items()}
        tensor = InteractionTensor(weights["W_gate"], weights["W_in"], weights["W_out"])
        folders = {one.name.rsplit("_", 1)[1]: one for one in PAPER_LAYER.glob("blocks.*")}
        read = bc.Dictionary.load(folders["in"]).W_dec
        write = bc.Dictionary.load(folders["out"]).W_enc
    elif name.startswith("random-"):
        n, generator = int(name.split("-")[1]), torch.Generator().manual_seed(0)
        sizes = ((256, 1024), (256, 1024), (1024, 256), (n, 256), (256, n))
        gate, linear, out, read, write = (torch.randn(size, generator=generator) / size[1] ** 0.5 for size in sizes)
        tensor = InteractionTensor(gate, linear, out)
    else:
        interactions = shipped(name)
        tensor, read, write = interactions.mlp.tensor, interactions.sae_in.W_dec, interactions.sae_out.W_enc
    if n_outputs is not None:
        write = write[:, :: max(1, write.shape[1] // n_outputs)][:, :n_outputs]
    target = torch.device(device)
    return tensor.to(target), read.to(target), write.to(target)


def shipped(name: str) -> bc.FeatureInteractions:
    """A layer of the shipped model, such as ts-17m/4."""
    layer = int(name.split("/")[1])
    return bc.FeatureInteractions(bc.BilinearMLP.from_model(bc.load_model(), layer), *bc.load_dictionaries(layer))


def synchronize(device: str) -> None:
    """Wait for the device, so that clocks tell the truth."""
    if device != "cpu":
        torch.cuda.synchronize()


def sampled(n_outputs: int, full: bool, n_inputs: int = 1) -> list[Tensor]:
    """Batches of outputs the reference runs on."""
    batches = list(torch.arange(n_outputs).split(min(BATCH, max(1, MOST_ENTRIES // n_inputs**2))))
    return batches if full else batches[:: max(1, len(batches) // SAMPLED)][:SAMPLED]


def reference_forms(tensor: InteractionTensor, write: Tensor, batch: Tensor) -> Tensor:
    """Symmetric forms of a batch of outputs, in the cheapest order of contraction."""
    weights = write[:, batch].T @ tensor.W_out.T
    Q = torch.einsum("omi,mj->oij", weights[:, :, None] * tensor.W_gate.T, tensor.W_in.T)
    return (Q + Q.mT) / 2


def topk_reference(layer: tuple[InteractionTensor, Tensor, Tensor], full: bool) -> dict[str, Any]:
    """Dense matrices, batch by batch."""
    tensor, read, write = layer
    each, best = {}, torch.empty(0, device=read.device)
    diagonal = torch.arange(len(read))
    started = time.perf_counter()
    batches = sampled(write.shape[1], full, len(read))
    for batch in batches:
        T = read @ reference_forms(tensor, write, batch) @ read.T
        T = T + T.mT  # coefficients of pairs
        T[:, diagonal, diagonal] /= 2
        magnitude = T.triu().abs().flatten(1)
        for feature, row in zip(batch.tolist(), magnitude.topk(K_EACH).values, strict=True):
            each[feature] = row.tolist()
        best = torch.cat([best, magnitude.flatten().topk(min(K_ALL, magnitude.numel())).values]).topk(K_ALL).values
    synchronize(str(read.device))
    seconds = (time.perf_counter() - started) * write.shape[1] / sum(map(len, batches))
    return {"seconds": seconds, "each": each, "all": best.tolist() if full else None}


def topk_ours(
    layer: tuple[InteractionTensor, Tensor, Tensor], full: bool, precision: Precision | None = None
) -> dict[str, Any]:
    """One sweep with two collectors."""
    tensor, read, write = layer
    started = time.perf_counter()
    products = Products(tensor, read, write, precision=precision)
    overall, by_output = TopSearch(products, K_ALL), TopSearch(products, K_EACH, per_output=True)
    sweep(products, [overall, by_output])
    found = by_output.result()
    synchronize(str(read.device))
    seconds = time.perf_counter() - started
    magnitudes = found.weights.abs().view(-1, K_EACH)
    d_in, d_out, n_in, n_out = tensor.d_in, tensor.d_out, len(read), write.shape[1]
    return {
        "seconds": seconds,
        "precision": products.precision,
        "flops": n_out * (d_out * d_in**2 + 2 * n_in * d_in**2 + n_in**2 * d_in),
        "each": {
            feature: magnitudes[feature].tolist() for batch in sampled(n_out, full, n_in) for feature in batch.tolist()
        },
        "all": overall.result().weights.abs().tolist() if full else None,
        "candidates": [overall.result().certificate.candidates, found.certificate.candidates],
    }


def spectra_reference(layer: tuple[InteractionTensor, Tensor, Tensor], full: bool) -> dict[str, Any]:
    """Batched full decompositions of the same forms; forming them is not counted on either side."""
    tensor, _, write = layer
    values, seconds = {}, 0.0
    batches = sampled(write.shape[1], full)
    for batch in batches:
        Q = reference_forms(tensor, write, batch)
        synchronize(str(Q.device))
        started = time.perf_counter()
        eigenvalues = torch.linalg.eigh(Q).eigenvalues
        leading = eigenvalues.gather(1, eigenvalues.abs().argsort(1, descending=True)[:, :N_EIGENPAIRS])
        synchronize(str(Q.device))
        seconds += time.perf_counter() - started
        values |= dict(zip(batch.tolist(), leading.abs().tolist(), strict=True))
    return {"seconds": seconds * write.shape[1] / sum(map(len, batches)), "each": values}


def spectra_ours(layer: tuple[InteractionTensor, Tensor, Tensor], full: bool) -> dict[str, Any]:
    """Iterations for all outputs."""
    tensor, _, write = layer
    forms = QuadraticForms(tensor, write)
    values, iterated, seconds = [], 0, 0.0
    for batch in torch.arange(write.shape[1]).split(64):
        Q = forms(batch).Q
        synchronize(str(Q.device))
        started = time.perf_counter()
        found = leading_spectra(Q, N_EIGENPAIRS)
        synchronize(str(Q.device))
        seconds += time.perf_counter() - started
        values += found.spectrum.eigenvalues.abs().tolist()
        iterated += int(found.iterated.sum())
    chosen = [feature for batch in sampled(write.shape[1], full) for feature in batch.tolist()]
    return {"seconds": seconds, "each": {one: values[one] for one in chosen}, "iterated": iterated}


def activity(name: str) -> Any:
    """A shipped layer on shipped stories."""
    from bilinear_circuits.data.corpora import read_stories
    from bilinear_circuits.data.stories import tokenize_stories
    from bilinear_circuits.interactions.activity import collect_activity
    from bilinear_circuits.zoo import corpus_path

    model, interactions = bc.load_model(), shipped(name)
    tokens = tokenize_stories(read_stories(corpus_path("ts-17m"), 100), model.tokenizer, 256)
    return collect_activity(model, [interactions], tokens)[0]


def correlation_reference(name: str, full: bool) -> dict[str, Any]:
    """A loop over features behind batched full decompositions."""
    seen = activity(name)
    tensor, write = seen.interactions.mlp.tensor, seen.interactions.sae_out.W_enc
    values = {}
    started = time.perf_counter()
    batches = sampled(write.shape[1], full)
    for batch in batches:
        Q = reference_forms(tensor, write, batch)
        eigenvalues, eigenvectors = torch.linalg.eigh(Q)
        order = eigenvalues.abs().argsort(1, descending=True)[:, : max(RANKS)]
        for at, feature in enumerate(batch.tolist()):
            token, value = seen.outputs[feature]
            if len(token) > 10:
                x, chosen = seen.x[token], order[at]
                partial = ((x @ eigenvectors[at][:, chosen]).square() * eigenvalues[at][chosen]).cumsum(1)
                values[feature] = pearson(partial[:, [rank - 1 for rank in RANKS]], value).tolist()
    return {"seconds": (time.perf_counter() - started) * write.shape[1] / sum(map(len, batches)), "each": values}


def correlation_ours(name: str, full: bool) -> dict[str, Any]:
    """All features together."""
    seen = activity(name)
    started = time.perf_counter()
    found = low_rank_correlation(seen.interactions, seen.x, ranks=RANKS, active=seen.outputs)
    seconds = time.perf_counter() - started
    chosen = [feature for batch in sampled(len(found.features), full) for feature in batch.tolist()]
    values = {feature: found.correlation[feature, :-1].tolist() for feature in chosen if found.kept[feature]}
    return {"seconds": seconds, "each": values}


def product_rate(precision: str, device: str) -> float:
    """Operations per second of one large product."""
    size = 4096 if device == "cpu" else 16384
    factor = torch.randn(size, size, device=device).to(getattr(torch, precision))
    timings = []
    for _ in range(4):
        synchronize(device)
        started = time.perf_counter()
        factor @ factor
        synchronize(device)
        timings.append(time.perf_counter() - started)
    return 2 * size**3 / min(timings[1:])


def run_task(task: str, side: str, layer: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One measurement, in this process."""
    full, device = arguments.full, arguments.device
    if task == "correlation":
        result = {"ours": correlation_ours, "reference": correlation_reference}[side](layer, full)
    else:
        loaded = load_layer(layer, device, arguments.outputs)
        functions = {"topk": (topk_ours, topk_reference), "spectra": (spectra_ours, spectra_reference)}
        function = functions[task][side == "reference"]
        result = function(loaded, full, arguments.precision) if function is topk_ours else function(loaded, full)
    result["peak_gb"] = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        if device == "cpu"
        else torch.cuda.max_memory_allocated() / 1e9
    )
    return result


def in_own_process(task: str, side: str, layer: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One measurement, with a peak of memory of its own."""
    command = [sys.executable, __file__, "--layer", layer, "--device", arguments.device, "--task", task, "--side", side]
    command += ["--full"] if arguments.full else []
    for name in ("outputs", "precision"):
        if (value := getattr(arguments, name)) is not None:
            command += [f"--{name}", str(value)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def largest_difference(ours: dict[str, list[float]], reference: dict[str, list[float]]) -> float:
    """Largest difference of any value, relative to the largest of its feature."""
    assert ours.keys() == reference.keys(), "the same features on both sides"
    pairs = [(torch.tensor(ours[key]), torch.tensor(reference[key])) for key in ours]
    return max(((mine - theirs).abs().max() / theirs.abs().max()).item() for mine, theirs in pairs)


def compare(task: str, layer: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """A row of the table."""
    ours = in_own_process(task, "ours", layer, arguments)
    reference = in_own_process(task, "reference", layer, arguments)
    row = {
        "layer": layer,
        "task": task,
        "ours_s": ours["seconds"],
        "reference_s": reference["seconds"],
        "ratio": reference["seconds"] / ours["seconds"],
        "ours_gb": ours["peak_gb"],
        "reference_gb": reference["peak_gb"],
        "difference": largest_difference(ours["each"], reference["each"]),
    }
    if task == "topk":
        row["precision"] = ours["precision"]
        row["limit_s"] = ours["flops"] / product_rate(ours["precision"], arguments.device)
        row["share_of_limit"] = row["limit_s"] / ours["seconds"]
        row["candidates"] = ours["candidates"]
        if arguments.full:
            row["difference_all"] = largest_difference({"all": ours["all"]}, {"all": reference["all"]})
    if task == "spectra":
        row["iterated"] = ours["iterated"]
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [
        f"{'layer':<14}{'task':<13}{'ours':>9}{'reference':>11}{'ratio':>7}{'limit':>9}{'of it':>7}"
        f"{'memory':>9}{'reference':>11}{'difference':>12}"
    ]
    for row in rows:
        limit = f"{row['limit_s']:>7.1f} s{100 * row['share_of_limit']:>5.0f} %" if "limit_s" in row else " " * 16
        lines.append(
            f"{row['layer']:<14}{row['task']:<13}{row['ours_s']:>7.1f} s{row['reference_s']:>9.1f} s"
            f"{row['ratio']:>7.1f}{limit}{row['ours_gb']:>6.1f} GB{row['reference_gb']:>8.1f} GB"
            f"{row['difference']:>12.1e}"
        )
    return "\n".join(lines)


def machine(device: str) -> dict[str, Any]:
    """What it was run on."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = names[0].split(":", 1)[1].strip() if names else processor
    return {
        "processor": processor if device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "fastest_precision": fastest_precision(torch.device(device)),
        **{f"{name}_tflops": product_rate(name, device) / 1e12 for name in ("bfloat16", "float32")},
    }


def main() -> None:
    """Run the tasks asked for, print the table, write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--layer", nargs="+", help="paper, ts-17m/3, ts-17m/4, random-N; by default the first and third"
    )
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--full", action="store_true", help="run the reference on all outputs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--outputs", type=int, help="number of outputs, evenly spaced; by default all")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), help="of the top-k; by default the faster one")
    parser.add_argument("--out", help="folder for benchmark.json")
    parser.add_argument("--side", choices=("ours", "reference"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side is not None:
        (task,), (layer,) = arguments.task, arguments.layer
        print(json.dumps(run_task(task, arguments.side, layer, arguments)))
        return
    layers = arguments.layer or (["paper"] if PAPER_LAYER.is_dir() else []) + ["ts-17m/4"]
    rows = []
    for layer in layers:
        for task in arguments.task:
            if task != "correlation" or layer.startswith("ts-17m"):
                rows.append(compare(task, layer, arguments))
                print(table(rows[-1:]).splitlines()[1], file=sys.stderr, flush=True)
    described = machine(arguments.device)
    print(
        ", ".join(
            f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}" for key, value in described.items()
        )
    )
    print(table(rows))
    if arguments.out is not None:
        out = Path(arguments.out)
        out.mkdir(parents=True, exist_ok=True)
        (out / "benchmark.json").write_text(json.dumps({"machine": described, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
