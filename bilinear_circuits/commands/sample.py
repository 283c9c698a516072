"""Sample stories from a model into a text file: the way the shipped corpus was made."""

from dataclasses import dataclass
from pathlib import Path

from bilinear_circuits import zoo
from bilinear_circuits.commands import common


@dataclass(kw_only=True)
class Arguments:
    """Options of `sample`."""

    out: str
    """Text file to write, each story ended by a line <|endoftext|>."""

    model: str = zoo.DEFAULT_MODEL
    """A shipped model, a Hugging Face model folder, or a Hub id."""

    n: int = 2000
    """Number of stories."""

    temperature: float = 0.9
    """Softmax temperature."""

    batch_size: int = 128
    """Stories sampled at once; part of what makes a sample repeatable."""

    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1."""

    seed: int = 0
    """Seed of the samples."""


def results_folder(arguments: Arguments) -> None:
    """None: a sample is one file."""


def run(arguments: Arguments) -> None:
    """Sample and write."""
    for name in ("n", "temperature", "batch_size"):
        if getattr(arguments, name) <= 0:
            raise ValueError(f"{name} must be positive, got {getattr(arguments, name)}.")
    common.check_seed(arguments.seed)
    path = Path(arguments.out).resolve()
    if path.exists() and not path.is_file():
        raise ValueError(f"out must be a file, got {arguments.out}: a folder or a device.")
    common.check_out(str(path.parent))
    common.check_device(arguments.device)

    from bilinear_circuits.data import STORY_END
    from bilinear_circuits.sampling import sample_stories

    model, tokenizer = common.quietly_load(zoo.load_plain_model, arguments.model, arguments.device)
    stories = sample_stories(
        model,
        tokenizer,
        arguments.n,
        temperature=arguments.temperature,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        progress=common.bar,
    )
    text = "".join(f"{story}\n{STORY_END}\n" for story in stories)
    with common.written_whole(path.parent) as folder:
        (folder / path.name).write_text(text, encoding="utf-8")
    print(f"{len(stories)} stories written to {path}")
