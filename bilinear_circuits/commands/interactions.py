"""Find the largest interactions of a whole layer, exactly: which pairs of input features make which output feature.

Output features are searched in shards, which are kept until all are done: a search that was killed goes on from them
when the same command is given again. Several devices share the shards, with the same result as one, by
torchrun --nproc-per-node N -m bilinear_circuits.cli interactions --layer L --out DIR.
"""

import contextlib
import io
import os
import time
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, get_args

from simple_parsing import field

from bilinear_circuits.command_line import common, records, tables
from bilinear_circuits.command_line.corpus import corpus_of, settings_of, tokenized
from bilinear_circuits.command_line.shards import ShardFolder
from bilinear_circuits.command_line.values import check_least
from bilinear_circuits.utilities import processes
from bilinear_circuits.utilities.folders import file_hash
from bilinear_circuits.utilities.progress import silent

if TYPE_CHECKING:
    from torch import Tensor

    from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
    from bilinear_circuits.sweep import Certificate, Products, TopInteractions

DISTRIBUTED = True
_SCHEMA_VERSION = 1
_N_SHOWN = 20
_MOST_PATIENCE = 60 * 24 * 365
_Order = Literal["magnitude", "positive", "negative"]


@dataclass(kw_only=True)
class Arguments(common.GateArguments, common.CommonArguments):
    """Options of `interactions`."""

    layer: int
    """Layer of the MLP."""

    out: str
    """Folder for interactions.safetensors, .json, .csv and .parquet: a new one, or that of a killed search."""

    k: int = 1000
    """Number of interactions."""

    per_feature: bool = False
    """Find the k largest of each output feature, instead of the k largest of all."""

    order: _Order = "magnitude"
    """Largest by magnitude, or only positive or only negative ones."""

    features: list[int] | None = None
    """Output features to search; by default all."""

    coactive: bool = False
    """Weigh each interaction by E[z_a z_b], how much its two inputs are active together on the corpus."""

    n_stories: int = 200
    """Stories read from the corpus, with --coactive."""

    precision: Literal["bfloat16", "float32"] | None = field(default=None, metavar="{bfloat16,float32}")
    """Precision of the products that find candidates; by default the faster one here. The result is the same."""

    shard_size: int = 256
    """Output features of a shard."""

    patience: float = 60.0
    """Minutes that several processes wait for one of them, which then counts as lost."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, k=1, shard_size=1)
        if not 0 < self.patience <= _MOST_PATIENCE:
            raise ValueError(
                f"patience must be a number of minutes above 0 and at most {_MOST_PATIENCE}, got {self.patience}."
            )
        if self.order not in get_args(_Order):
            raise ValueError(f"order must be one of {', '.join(get_args(_Order))}, got {self.order!r}.")
        if self.features is not None and (not self.features or len(set(self.features)) < len(self.features)):
            raise ValueError(f"features must name one output feature or more, each once, got {self.features}.")
        if self.coactive and self.precision == "bfloat16":
            raise ValueError("precision must be float32 with --coactive, got bfloat16. Leave it out.")


def run(arguments: Arguments) -> None:
    """Search, or go on searching, print the largest interactions and write them."""
    started = time.perf_counter()
    processes.join(arguments.device, timedelta(minutes=arguments.patience))
    folder = ShardFolder(arguments.out)
    # The first process loads before the others do: what it has to refuse is said once.
    if processes.is_first():
        interactions = _start(arguments, folder)
    processes.wait()
    if not processes.is_first():
        _, interactions = _load(arguments)
    with folder.kept():
        n_shards = _search(arguments, interactions, folder)
        processes.wait()
        if processes.is_first():
            from bilinear_circuits.sweep.merge import merge

            top = merge([folder.read(index) for index in range(n_shards)], arguments.k, arguments.per_feature)
            print(table(top, arguments))
            _write(
                top,
                arguments.out,
                _record(top, arguments, folder.settings, interactions, time.perf_counter() - started),
            )
            folder.remove()
        processes.wait()
    processes.leave()


def table(top: "TopInteractions", arguments: Arguments) -> str:
    """The first rows, and why nothing larger was missed, as text."""
    kind = "largest by magnitude" if arguments.order == "magnitude" else f"largest {arguments.order} ones"
    which = "of each output feature" if arguments.per_feature else "of all output features"
    shown = f"; the first {_N_SHOWN}" if len(top) > _N_SHOWN else ""
    lines = [
        f"layer {arguments.layer}: {len(top)} interactions, the {arguments.k} {kind} {which}{shown}",
        "output   first  second       weight" + ("  weight E[z_a z_b]" if arguments.coactive else ""),
    ]
    for (output, first, second, weight), score in zip(top, top.scores[:_N_SHOWN].tolist(), strict=False):
        weighted = f"{score:+#19.4g}" if arguments.coactive else ""
        lines.append(f"{output:>6}  {first:>6}  {second:>6}  {weight:+#11.4g}{weighted}")
    return "\n".join([*lines, describe(top.certificate, arguments.per_feature)])


def describe(certificate: "Certificate", per_feature: bool) -> str:
    """A certificate as text."""
    missed = f"none left out is above {certificate.threshold:.4g}"
    if per_feature:
        missed = (
            f"none left out is above the least one listed of its output feature, {certificate.threshold:.4g} or more"
        )
    if certificate.threshold == 0:
        missed = "some output features have no more of them" if per_feature else "there are no more of them"
    return (
        f"certificate: {certificate.interactions} interactions compared, {certificate.candidates} of them in full\n"
        f"  {missed}\n"
        f"  coarse products in {certificate.precision}, off by at most {certificate.error_bound:.2g}"
        f" + {100 * certificate.relative_error:.2g} %"
    )


def search(products: "Products", arguments: Arguments, moments: "Tensor | None", floor: float) -> "TopInteractions":
    """The largest interactions of a shard, of those that reach a floor."""
    from bilinear_circuits.sweep import TopSearch, sweep

    top = TopSearch(products, arguments.k, arguments.per_feature, arguments.order, moments, floor)
    sweep(products, [top])
    return top.result()


def _start(arguments: Arguments, folder: ShardFolder) -> "FeatureInteractions":
    """Check what is asked, mark the folder as that of this search, and measure what all processes read."""
    common.check_out(arguments.out)
    common.check_layers([arguments.layer], common.saes_of(arguments, reads_corpus=arguments.coactive))
    common.check_device(_device(arguments))
    settings = _settings(arguments, folder.settings)
    folder.check(settings)

    from bilinear_circuits.interactions.activity import collect_activity
    from bilinear_circuits.models.running import context_length

    corpus = corpus_of(arguments) if arguments.coactive else None
    stories = [] if corpus is None else corpus.read(arguments.n_stories)
    model, interactions = _load(arguments)
    interactions.products(arguments.features, settings["precision"])  # refuses features that are none
    tokens = None if corpus is None else tokenized(corpus, stories, model.tokenizer, context_length(model))
    folder.start(settings)
    if tokens is not None and folder.moments is None:
        (activity,) = collect_activity(model, [interactions], tokens, common.bar)
        folder.moments = activity.second_moments
    return interactions


def _settings(arguments: Arguments, started: dict[str, Any]) -> dict[str, Any]:
    """What decides the result of a shard, as plain data, with the weights and text that are read."""
    from bilinear_circuits.sweep import fastest_precision

    names = ("layer", "k", "per_feature", "order", "features", "coactive", "shard_size", "approximate")
    settings = {name: getattr(arguments, name) for name in names} | {
        **records.layer_hashes(arguments, arguments.layer),
    }
    # What was the faster precision at the start stays, so that the certificate is of one.
    settings["precision"] = arguments.precision or started.get("precision")
    if arguments.coactive:
        corpus = corpus_of(arguments)
        named = {"corpus": records.display_name(corpus.path), "corpus_sha256": file_hash(corpus.path)}
        settings |= {"precision": "float32", "n_stories": arguments.n_stories, **named, **settings_of(corpus)}
    elif settings["precision"] is None:
        import torch

        settings["precision"] = fastest_precision(torch.device(_device(arguments)))
    return settings


def _load(arguments: Arguments) -> "tuple[Any, FeatureInteractions]":
    """Model and interactions on the device of this process; the first one alone says so."""
    said = contextlib.nullcontext() if processes.is_first() else contextlib.redirect_stderr(io.StringIO())
    with said:
        model, (interactions,) = common.load_interactions(
            replace(arguments, device=_device(arguments)), [arguments.layer]
        )
    return model, interactions


def _device(arguments: Arguments) -> str:
    """The device of this process: a GPU each.

    Raises:
        ValueError: If several processes are given the same one.
    """
    if processes.n_processes() == 1 or arguments.device == "cpu":
        return arguments.device
    if arguments.device != "cuda":
        raise ValueError(f"device must be cpu or cuda where there are several processes, got {arguments.device}.")
    return f"cuda:{os.environ['LOCAL_RANK']}"


def _search(arguments: Arguments, interactions: "FeatureInteractions", folder: ShardFolder) -> int:
    """Search the shards of this process, those finished left out; the number of all shards."""
    import torch

    from bilinear_circuits.sweep.merge import Part, Reached

    products = interactions.products(arguments.features, folder.settings["precision"])
    device = products.outputs.device
    shards = torch.arange(len(products.outputs), device=device).split(arguments.shard_size)
    finished = [folder.finished(index) for index in range(len(shards))]
    if processes.is_first() and any(finished):
        common.note(f"going on: {sum(finished)} of {len(shards)} shards are finished already")
    mine = range(int(os.environ.get("RANK", "0")), len(shards), processes.n_processes())
    progress = common.bar if processes.is_first() else silent
    moments = None if folder.moments is None else folder.moments.to(device)
    reached = Reached(arguments.k)
    for index in range(len(shards)):
        if finished[index] and not arguments.per_feature:
            reached.add(folder.read(index))
    with torch.no_grad():
        for index in progress([index for index in mine if not finished[index]], "search shards"):
            top = search(Part(products, shards[index]), arguments, moments, reached.floor)
            folder.write(index, top)
            if not arguments.per_feature:
                reached.add(top)
    return len(shards)


def _record(
    top: "TopInteractions",
    arguments: Arguments,
    settings: dict[str, Any],
    interactions: "FeatureInteractions",
    seconds: float,
) -> dict[str, Any]:
    """What is saved beside the table: its certificate, what was searched, and what it takes to repeat it."""
    resolved = replace(arguments, saes=common.saes_of(arguments))
    corpus = corpus_of(arguments) if arguments.coactive else None
    source = records.provenance(resolved, [interactions], corpus, settings.get("n_stories", 0), seconds)
    counts = {
        "interactions": len(top),
        "output_features": len(arguments.features or range(interactions.sae_out.d_sae)),
        "d_sae_in": interactions.sae_in.d_sae,
        "d_sae_out": interactions.sae_out.d_sae,
    }
    return {
        "schema_version": _SCHEMA_VERSION,
        "layer": arguments.layer,
        "counts": counts,
        "certificate": asdict(top.certificate),
        "n_processes": processes.n_processes(),
        "provenance": source,
    }


def _write(top: "TopInteractions", out: str, record: dict[str, Any]) -> None:
    """Write the table and its record."""
    import torch
    from safetensors.torch import save_file

    from bilinear_circuits.report.notebook import columns_of

    columns = {name: getattr(top, name).to(torch.int32) for name in ("output", "first", "second")}
    columns |= {name: getattr(top, name).to(torch.float32) for name in ("weights", "scores")}
    with common.written_whole(out, last="interactions.json") as folder:
        save_file(columns, folder / "interactions.safetensors")
        (folder / "interactions.json").write_text(common.to_json(record), encoding="utf-8")
        files = ["interactions.json", *tables.write(folder, "interactions", columns_of(top))]
    print(f"written: {out}/interactions.safetensors, {', '.join(files)}")
