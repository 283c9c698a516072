"""How dictionaries are trained: one frozen dataclass, refused at once where it cannot work. Imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from bilinear_circuits.data.corpora import Corpus

_WHOLE = ("expansion", "tokens", "batch_tokens", "buffer_rows", "model_rows", "context", "dead_window", "norm_batches")
SIDES = ("hook_in", "hook_out")
SAVE_DTYPES = ("float16", "float32")
PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Shape of the dictionaries and how they are trained.

    Attributes:
        layers: Layers whose MLP gets dictionaries, all from the same forward passes.
        sides: Which sides of an MLP: "hook_in", what it reads, "hook_out", what it writes, or both.
        tokens: Activations each dictionary is trained on, [BOS] and padding not counted.
        architecture: A SAELens training architecture.
        sae: Options of that architecture, by SAELens' names; `k` for those that keep the largest.
        expansion: Features per dimension of the activation.
        lr: Learning rate of Adam.
        decay: Share of the training, at its end, over which the rate falls linearly to 0; it is constant before.
        batch_tokens: Activations per step.
        buffer_rows: Rows of `context` tokens whose activations are mixed before they are served.
        model_rows: Rows per forward pass of the model.
        context: Tokens in a row: one story, cut at this length.
        dead_window: Steps after which a feature that was never active counts as dead, for the auxiliary loss.
        scale_inputs: Train on activations scaled to a mean norm of sqrt(d_in); the scale is folded in afterwards.
        precision: "bf16" multiplies matrices of model and dictionaries in bfloat16 (autocast); weights stay float32.
        norm_batches: Batches that scale is estimated on. They are held in memory, all layers at once.
        checkpoints: Number of times progress is saved during training, to go on from after a kill.
        snapshots: Number of earlier dictionaries that are kept, after 1/2, 1/4, 1/8, ... of the tokens.
        seed: Seed of the initial weights and of the order of the stories.
    """

    layers: tuple[int, ...]
    tokens: int
    sides: tuple[str, ...] = SIDES
    architecture: str = "topk"
    sae: Mapping[str, Any] = field(default_factory=dict)
    expansion: int = 4
    lr: float = 1e-3
    decay: float = 1.0
    batch_tokens: int = 4096
    buffer_rows: int = 256
    model_rows: int = 32
    context: int = 256
    dead_window: int = 1000
    scale_inputs: bool = True
    precision: str = "float32"
    norm_batches: int = 20
    checkpoints: int = 10
    snapshots: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_kinds()
        if not self.layers:
            raise ValueError("layers must name at least one layer, got none.")
        for name in _WHOLE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("checkpoints", "snapshots"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}. 0 saves none.")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}.")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}.")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must be a share of the training, from 0 to 1, got {self.decay}.")
        self._check_sizes()

    def _check_kinds(self) -> None:
        if not isinstance(self.layers, list | tuple) or not all(map(_is_whole, self.layers)):
            raise ValueError(f"layers must be a list of whole numbers, got {self.layers!r}.")
        object.__setattr__(self, "layers", tuple(dict.fromkeys(self.layers)))
        if not isinstance(self.sides, list | tuple) or not self.sides or not set(self.sides) <= set(SIDES):
            raise ValueError(f"sides must be a list of {' or '.join(SIDES)}, got {self.sides!r}.")
        object.__setattr__(self, "sides", tuple(side for side in SIDES if side in self.sides))
        if not isinstance(self.architecture, str):
            raise ValueError(f"architecture must be a name, got {self.architecture!r}.")
        if not isinstance(self.sae, Mapping):
            raise ValueError(f"sae must be a mapping of options to values, got {self.sae!r}.")
        if not isinstance(self.scale_inputs, bool):
            raise ValueError(f"scale_inputs must be true or false, got {self.scale_inputs!r}.")
        for name in (*_WHOLE, "checkpoints", "snapshots", "seed"):
            if not _is_whole(getattr(self, name)):
                raise ValueError(f"{name} must be a whole number, got {getattr(self, name)!r}.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be between 0 and 2**63 - 1, got {self.seed}.")
        for name in ("lr", "decay"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                # A common slip: YAML 1.1 wants a dot in such a number.
                hint = " YAML reads 1e-3 as text: write 1.0e-3." if isinstance(value, str) else ""
                raise ValueError(f"{name} must be a number, got {value!r}.{hint}")

    def _check_sizes(self) -> None:
        if self.buffer_tokens < self.batch_tokens:
            rows = -(-self.batch_tokens // self.context)
            raise ValueError(
                "buffer_rows * context must be at least batch_tokens, or no batch could be served, got"
                f" {self.buffer_rows} * {self.context} = {self.buffer_tokens} against {self.batch_tokens}."
                f" Raise buffer_rows to {rows} or more, or lower batch_tokens."
            )
        if self.tokens < self.buffer_tokens:
            raise ValueError(
                "tokens must fill the buffer of activations at least once, buffer_rows * context ="
                f" {self.buffer_tokens}, got {self.tokens}. Train on more tokens, or lower buffer_rows."
            )

    @property
    def buffer_tokens(self) -> int:
        """Activations the buffer holds."""
        return self.buffer_rows * self.context

    @property
    def n_steps(self) -> int:
        """Steps of the training; what is left after the last whole batch is not trained on."""
        return self.tokens // self.batch_tokens

    @property
    def hook_names(self) -> tuple[str, ...]:
        """Hook names of the dictionaries: the sides asked for of each MLP."""
        return tuple(f"blocks.{layer}.mlp.{side}" for layer in self.layers for side in self.sides)

    @property
    def snapshot_tokens(self) -> tuple[int, ...]:
        """Tokens seen at each snapshot: halvings of the training, in whole steps, smallest first."""
        steps = {self.n_steps >> halvings for halvings in range(1, self.snapshots + 1)} - {0}
        return tuple(step * self.batch_tokens for step in sorted(steps))


@dataclass(frozen=True, kw_only=True)
class Recipe(TrainSettings):
    """A recipe file: what to train on, besides how.

    Attributes:
        name: Name of the dictionaries.
        model: A shipped model, a Hugging Face model folder, or a Hub id.
        corpus: File, Hub id, or a shipped model's name for the stories sampled from it.
        separator: How the stories of its text are separated; `<|endoftext|>` by default.
        column: Column of its records that holds the stories; text by default.
        n_stories: Stories read from the corpus; all by default.
        save_dtype: Precision of the files, float16 or float32.
    """

    name: str
    model: str
    corpus: str
    separator: str | None = None
    column: str | None = None
    n_stories: int | None = None
    save_dtype: str = "float16"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("name", "model", "corpus"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a text, got {getattr(self, name)!r}.")
        if self.n_stories is not None and (not _is_whole(self.n_stories) or self.n_stories < 1):
            raise ValueError(f"n_stories must be a whole number of at least 1, got {self.n_stories!r}.")
        if self.save_dtype not in SAVE_DTYPES:
            raise ValueError(f"save_dtype must be one of {', '.join(SAVE_DTYPES)}, got {self.save_dtype!r}.")

    @property
    def stories(self) -> Corpus:
        """Stories to train on."""
        return Corpus(self.corpus, self.separator, self.column)

    @property
    def settings(self) -> TrainSettings:
        """The part that says how to train."""
        return TrainSettings(**{one.name: getattr(self, one.name) for one in fields(TrainSettings)})


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
