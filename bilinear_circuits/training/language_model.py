"""Training a bilinear language model: a stock Llama on the Hugging Face Trainer.

The saved model is a stock Llama whatever is done to train it: dropout on the embedding and on the outputs of attention
and MLP is added by forward hooks that exist only while training.
"""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transformers import (
    LlamaForCausalLM,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from bilinear_circuits.models.llama import check_positive, dropout_on_outputs
from bilinear_circuits.training.trainer import RowTrainer, mean_loss
from bilinear_circuits.utilities import processes

if TYPE_CHECKING:
    from bilinear_circuits.data.rows import StoryRows

CHECKPOINTS = "checkpoints"


class NonFiniteLossError(ValueError):
    """The training loss became infinite or not a number."""


@dataclass(frozen=True)
class OptimSettings:
    """How the model is trained.

    Attributes:
        epochs: Passes over the rows, one row per story.
        batch_rows: Rows per step, over all devices and accumulation steps.
        rows_per_device: Most rows per forward pass on one device; a divisor of batch_rows.
        lr: Peak learning rate of AdamW.
        schedule: "linear" or "cosine" decay to zero.
        warmup: Share of the steps with rising learning rate.
        weight_decay: Decoupled weight decay.
        beta1: AdamW's first momentum.
        beta2: AdamW's second momentum.
        dropout: Dropout on the embedding and on the outputs of attention and MLP.
        evaluations: Evaluations, and checkpoints, over the whole training.
        precision: "fp32" or "bf16" (autocast).
        compile: torch.compile, where there is a GPU.
        keep: Weights of the evaluation with the "best" loss, or of the "last" one.
    """

    epochs: float | int
    batch_rows: int
    lr: float | int
    rows_per_device: int | None = None
    schedule: Literal["linear", "cosine"] = "linear"
    warmup: float | int = 0.02
    weight_decay: float | int = 0.1
    beta1: float | int = 0.9
    beta2: float | int = 0.95
    dropout: float | int = 0.0
    evaluations: int = 10
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        check_positive(self, "epochs", "batch_rows", "lr", "evaluations")
        for name in ("warmup", "dropout", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)!r}.")
        if self.rows_per_device is not None:
            check_positive(self, "rows_per_device")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be 0 or more, got {self.weight_decay!r}.")
        for name, known in (
            ("schedule", ("linear", "cosine")),
            ("precision", ("fp32", "bf16")),
            ("keep", ("best", "last")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        if self.batch_rows % (self.rows_per_device or self.batch_rows):
            raise ValueError(f"rows_per_device must divide batch_rows={self.batch_rows}, got {self.rows_per_device}.")


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended.

    Attributes:
        valid_loss: Validation loss of the model saved, nats per token: the best, or the last where that is kept.
        best_step: Step of it.
        steps: Steps trained.
        tokens: Tokens trained on.
        seconds: Wall time of the last run, not counting what it resumed from.
        log: One entry per evaluation: step, epoch, training loss, validation loss.
    """

    valid_loss: float
    best_step: int
    steps: int
    tokens: int
    seconds: float
    log: tuple[dict[str, float | int], ...]


def train_model(
    model: LlamaForCausalLM,
    rows: "StoryRows",
    valid_rows: "StoryRows",
    settings: OptimSettings,
    folder: Path,
    seed: int = 0,
    device: str | None = None,
    report_to: Literal["none", "wandb"] = "none",
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainingResult:
    """Train a model in place and leave it with the weights of the best evaluation.

    One process uses one device. Several, started by torchrun or accelerate, share the rows of each step: the batch and
    the order of the rows are those of one process. All of them have to see the same `folder`.

    Checkpoints go to `folder/checkpoints`. Where complete ones lie there, training continues from the latest, with the
    same order of data and the same random numbers; incomplete ones, left by a process that was killed, are removed.
    The loss of every evaluation is appended to `folder/log.csv`.

    Args:
        model: The model.
        rows: Training rows.
        valid_rows: Validation rows; the loss is the mean per token over all of them.
        settings: How to train.
        folder: Folder of the run.
        seed: Seed of data order and dropout.
        device: "cpu" to stay off a GPU; the Trainer's choice by default.
        report_to: "wandb" logs there too.
        callbacks: Further callbacks of the Trainer, for instance a progress bar; nothing is printed otherwise.

    Raises:
        NonFiniteLossError: If the training loss is not finite; the checkpoints are kept.
        ValueError: If there are fewer rows than `batch_rows`, or the processes cannot share them evenly.
    """
    arguments = _training_arguments(settings, len(rows), folder, seed, device, report_to)
    watch = _Watch(folder / "log.csv")
    trainer = RowTrainer(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=valid_rows,
        compute_metrics=mean_loss,
        callbacks=[watch, *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    with arguments.main_process_first(local=False):  # it removes what is not complete; the others then find nothing
        checkpoint = latest_checkpoint(folder / CHECKPOINTS)
    with dropout_on_outputs(model, settings.dropout):
        done = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    log = tuple(evaluations(trainer.state.log_history))
    best = min(log, key=lambda entry: entry["valid_loss"]) if settings.keep == "best" else log[-1]
    return TrainingResult(
        valid_loss=best["valid_loss"],
        best_step=int(best["step"]),
        steps=trainer.state.global_step,
        tokens=trainer.state.global_step * settings.batch_rows * rows.context,
        seconds=done.metrics["train_runtime"],
        log=log,
    )


def latest_checkpoint(folder: Path) -> Path | None:
    """The latest complete checkpoint; incomplete ones are removed.

    The Trainer writes `trainer_state.json` last, so a checkpoint is complete if that file is whole.
    """
    complete: dict[int, Path] = {}
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            step = int(json.loads((checkpoint / "trainer_state.json").read_text())["global_step"])
            complete[step] = checkpoint
        except (OSError, ValueError, KeyError):
            shutil.rmtree(checkpoint)
    return complete[max(complete)] if complete else None


def evaluations(history: list[dict[str, Any]]) -> Iterator[dict[str, float | int]]:
    """One entry per evaluation of a Trainer's log history, with the training loss logged before it."""
    train_loss = math.nan
    for entry in history:
        train_loss = entry.get("loss", train_loss)
        if "eval_loss" in entry:
            yield {
                "step": entry["step"],
                "epoch": round(entry["epoch"], 4),
                "train_loss": train_loss,
                "valid_loss": entry["eval_loss"],
            }


class _Watch(TrainerCallback):
    """Stop on a loss that is not finite; keep a CSV of evaluations."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        for name in ("loss", "eval_loss"):
            value = (logs or {}).get(name, 0.0)
            if not math.isfinite(value):
                raise NonFiniteLossError(
                    f"{name} must stay finite, got {value} at step {state.global_step}. Lower lr, raise warmup, or use"
                    f" precision: fp32; the checkpoints in {args.output_dir} are from before."
                )
        if "eval_loss" in (logs or {}) and state.is_world_process_zero:
            lines = ["step,epoch,train_loss,valid_loss"]
            lines += [",".join(str(value) for value in entry.values()) for entry in evaluations(state.log_history)]
            self._path.write_text("\n".join(lines) + "\n")


def _training_arguments(
    settings: OptimSettings, n_rows: int, folder: Path, seed: int, device: str | None, report_to: str
) -> TrainingArguments:
    per_device = rows_per_device(settings)
    if n_rows < settings.batch_rows:
        raise ValueError(f"batch_rows must be at most the number of stories, {n_rows}, got {settings.batch_rows}.")
    steps = max(1, round(settings.epochs * (n_rows // settings.batch_rows)))
    every = max(1, steps // settings.evaluations)
    on_gpu = processes.on_gpu(device)
    arguments = TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        max_steps=steps,
        per_device_train_batch_size=per_device,
        per_device_eval_batch_size=per_device,
        gradient_accumulation_steps=settings.batch_rows // (per_device * processes.n_processes()),
        learning_rate=settings.lr,
        lr_scheduler_type=settings.schedule,
        warmup_steps=math.ceil(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        max_grad_norm=1.0,
        bf16=settings.precision == "bf16",
        torch_compile=settings.compile and on_gpu,
        use_cpu=not on_gpu,
        eval_strategy="steps",
        save_strategy="steps",
        logging_strategy="steps",
        eval_steps=every,
        save_steps=every,
        logging_steps=every,
        logging_nan_inf_filter=False,
        load_best_model_at_end=settings.keep == "best",
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        save_total_limit=2,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        seed=seed,
        data_seed=seed,
        report_to=report_to,
        disable_tqdm=True,
    )
    # One process with several GPUs would run on all of them, each with the rows of one.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def rows_per_device(settings: OptimSettings) -> int:
    """Rows of one forward pass on each of the devices that share a batch.

    Raises:
        ValueError: If they cannot share it evenly.
    """
    n_devices = processes.n_processes()
    share = settings.batch_rows // n_devices
    rows = min(settings.rows_per_device or share, share)
    if settings.batch_rows % (max(rows, 1) * n_devices):
        raise ValueError(
            f"batch_rows must be a multiple of {max(rows, 1)} rows on each of {n_devices} devices,"
            f" got {settings.batch_rows}. Start another number of processes, or change rows_per_device."
        )
    return rows
