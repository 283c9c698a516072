"""The Hugging Face Trainer, exact whatever the number of devices: whole batches, and a mean over rows, not batches."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import RandomSampler
from transformers import EvalPrediction, Trainer

from bilinear_circuits.utilities import processes


class RowTrainer(Trainer):
    """A Trainer whose steps and validation loss do not depend on how many devices and forward passes share a batch."""

    def _get_train_sampler(self, train_dataset: Any = None) -> RandomSampler:
        # Whole batches alone. The Trainer would make a step of what is left of an epoch, if a batch is accumulated.
        batch_rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        n_rows = len(self.train_dataset)
        return RandomSampler(self.train_dataset, num_samples=n_rows - n_rows % batch_rows)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """The loss of each row.

        The Trainer would take the mean loss of a batch for that of each of its rows. The last batch of several devices
        is filled up with rows that were had before, and their losses would count.
        """
        ids = self._prepare_inputs(inputs)["input_ids"]
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(input_ids=ids).logits
        losses = cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        row_losses = losses.view(len(ids), -1).mean(1)
        return None, row_losses, row_losses

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        processes.wait()  # each saves its own, and what comes next says that the checkpoint is complete


def mean_loss(rows: EvalPrediction) -> dict[str, float]:
    """Mean of the losses of rows, as `compute_metrics` of the Trainer."""
    return {"loss": float(rows.predictions.mean(dtype="float64"))}
