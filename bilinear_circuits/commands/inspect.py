"""Show one output feature: its tokens, spectrum, input groups, largest interactions and completeness."""

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bilinear_circuits.command_line import common, images, records
from bilinear_circuits.command_line.corpus import corpus_of, tokenized
from bilinear_circuits.command_line.outputs import Outputs

if TYPE_CHECKING:
    from bilinear_circuits.interactions.profiles import FeatureProfile


OUTPUTS = Outputs("feature.json", "feature profile", ("report.html",))


@dataclass(kw_only=True)
class Arguments(common.GateArguments, common.LabelArguments):
    """Options of `inspect`."""

    layer: int
    """Layer of the MLP."""

    feature: int
    """Output feature."""

    k: int = 10
    """Number of largest interactions listed."""

    n_stories: int = 200
    """Stories read from the corpus."""

    out: str | None = None
    """Folder for report.html and feature.json; not written by default."""

    images: list[str] | None = None
    """Write the figures to OUT/images, too: png, svg or both."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}.")


def run(arguments: Arguments) -> None:
    """Measure and print one feature."""
    started = time.perf_counter()
    common.check_out(arguments.out)
    images.check(arguments.images, arguments.out)
    layers = common.check_layers([arguments.layer], common.saes_of(arguments))
    corpus = corpus_of(arguments)

    from bilinear_circuits.interactions.activity import collect_activity
    from bilinear_circuits.interactions.naming import input_label
    from bilinear_circuits.interactions.profiles import profile_feature
    from bilinear_circuits.models.running import context_length, unembedding
    from bilinear_circuits.report import feature_page, profile_payload
    from bilinear_circuits.report.figures import feature_figures

    stories = corpus.read(arguments.n_stories)
    model, interactions = common.load_interactions(arguments, layers, corpus=corpus)
    interactions[0].check_feature(arguments.feature)
    tokens = tokenized(corpus, stories, model.tokenizer, context_length(model))
    (activity,) = collect_activity(model, interactions, tokens, common.bar)
    profile = profile_feature(activity, arguments.feature, unembedding(model), model.tokenizer)
    top = interactions[0].top(arguments.k, arguments.feature)
    print(describe(profile))
    print("\nlargest interactions in the weights (coefficient of z_a z_b):")
    for _, first, second, weight in top:
        names = [input_label(activity, feature, model.tokenizer) for feature in dict.fromkeys((first, second))]
        print(f"  {weight:+.4f}  {first:>5} x {second:<5}  {'   x   '.join(names)}")
    if arguments.out is not None:
        resolved = replace(arguments, saes=common.saes_of(arguments))
        source = records.provenance(resolved, interactions, corpus, len(stories), time.perf_counter() - started)
        with common.written_whole(arguments.out, first=OUTPUTS.record) as folder:
            (folder / "feature.json").write_text(common.to_json(profile_payload(profile, source)), encoding="utf-8")
            (folder / "report.html").write_text(feature_page(profile, source), encoding="utf-8")
        drawn = images.written(feature_figures(profile), arguments.out, arguments.images)
        files = [f"{arguments.out}/report.html", f"{arguments.out}/feature.json", *drawn]
        print(f"\nwritten: {', '.join(files)}")


def describe(profile: "FeatureProfile") -> str:
    """A feature as text."""
    spectrum = profile.spectrum
    eigenvalues = " ".join(f"{value:+.4f}" for value in spectrum.eigenvalues[:6].tolist())
    n_first = len(profile.shape.first)
    groups = [profile.input_labels[:n_first], profile.input_labels[n_first:]]
    ids = [profile.shape.first.tolist(), profile.shape.second.tolist()]
    lines = [
        f"layer {profile.layer}, output feature {profile.feature}",
        f"  active at {100 * profile.frequency:.2f} % of tokens, mostly {', '.join(profile.top_tokens)}",
        f"  promotes   {', '.join(token for token, _ in profile.promoted)}",
        f"  suppresses {', '.join(token for token, _ in profile.suppressed)}",
        f"  eigenvalues {eigenvalues} ... {int(spectrum.outliers())} of {len(spectrum)} beyond the semicircle"
        f" edge {spectrum.semicircle_edge():.4f}; effective rank {spectrum.effective_rank():.0f}",
        f"  rank-2 correlation with the activation {profile.rank2_correlation:.3f}",
        f"  pairs of input features explain {100 * profile.completeness:.0f} % of the pre-activation (median)",
        f"  share of interaction between the two input groups {profile.shape.score:.2f}",
    ]
    for name, members, labels in zip(("first", "second"), ids, groups, strict=True):
        lines.append(f"  {name} group:")
        lines += [f"    {member:>5}  {label}" for member, label in zip(members, labels, strict=True)]
    return "\n".join(lines)
