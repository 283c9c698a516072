"""Train dictionaries on both sides of some MLPs with SAELens, all from the same forward passes.

1. Stories become rows of `context` tokens, one story a row, [BOS] first, padding on the right.
2. SAELens' `MultiSAETrainingRunner` runs the model once per batch of rows and hands each dictionary the activations of
   its hook, those at [BOS] and at padding left out.
3. What it trained is folded into a `Dictionary`: activation scaling, decoder bias, decoder norms, gates.

Resuming is SAELens' own, from its last complete checkpoint: weights, optimiser, schedules and the position in the
corpus come back. The activations in the mixing buffer and the state of the random generator do not, so every run,
interrupted or not, begins both anew at each checkpoint: a run that was killed ends in the weights of one that was not.
"""

import contextlib
import copy
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from sae_lens import LoggingConfig, MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from torch import Tensor, nn

from bilinear_circuits.data.stories import StoryTokens
from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.dictionaries.folding import UnsupportedSAEError
from bilinear_circuits.models.running import model_device
from bilinear_circuits.utilities.display import Brief
from sae.checks import check_model, check_options, check_tokens, forked_generators, sae_config
from sae.settings import TrainSettings

_CURVE_POINTS = 50
_CURVE_FILE = "curve.json"
_CHECKPOINT_COMPLETE = "runner_cfg.json"  # the last file of a checkpoint that SAELens writes
Curve = dict[str, list[dict[str, float]]]
Snapshot = Callable[[int, dict[str, Dictionary]], None]


class DivergedError(ValueError):
    """A loss or a weight became infinite or not a number."""


@dataclass(frozen=True, eq=False, repr=False)
class TrainedDictionaries(Brief):
    """What a training run made.

    Attributes:
        dictionaries: Dictionary of each hook, float32, on the CPU, decoder rows of norm 1 where the rule permits.
        curve: For each hook, at some steps: tokens seen, loss (of scaled activations), FVU and L0 of the batch.
        n_tokens: Activations each was trained on.
        resumed_at: Activations already seen when the run was resumed; 0 if it was not.
    """

    dictionaries: dict[str, Dictionary]
    curve: Curve
    n_tokens: int
    resumed_at: int


class StoryRowsDataset:
    """Rows of tokens without end, in a new order each epoch, in the form SAELens' activation store reads.

    A `datasets.Dataset` would end: SAELens then drops the rows of an unfinished batch, and warns each time.
    """

    def __init__(self, ids: Int[Tensor, "row pos"], seed: int) -> None:
        self._ids, self._seed = ids.to(torch.int32).numpy(), seed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield rows."""
        epoch = 0
        while True:
            generator = torch.Generator().manual_seed(self._seed + epoch)
            for row in torch.randperm(len(self._ids), generator=generator).tolist():
                yield {"tokens": self._ids[row]}
            epoch += 1


def excluded_tokens(tokens: StoryTokens) -> list[int]:
    """Ids at which nothing is trained: [BOS] and padding."""
    return tokens.ids[~tokens.mask].unique().tolist()


def train_dictionaries(
    model: nn.Module,
    tokens: StoryTokens,
    settings: TrainSettings,
    *,
    model_name: str = "model",
    checkpoints: str | Path | None = None,
    on_snapshot: Snapshot | None = None,
    wandb: bool = False,
) -> TrainedDictionaries:
    """Train a dictionary on the chosen sides of each MLP.

    Args:
        model: A TransformerBridge; dictionaries are trained on its device.
        tokens: Stories, as `tokenize_stories` returns them.
        settings: Shape and training.
        model_name: The name W&B and the checkpoints know the model by.
        checkpoints: Folder of checkpoints. A run starts from the last complete one it holds. None keeps none.
        on_snapshot: Called with the tokens seen and the dictionaries as they then are, at `settings.snapshot_tokens`.
        wandb: Log to Weights & Biases.

    Raises:
        ValueError: If the settings do not fit SAELens, the model or the stories.
        DivergedError: If a recorded loss, or a weight at the end, is not finite.
    """
    check_options(settings)
    check_model(model, settings)
    check_tokens(tokens, settings)
    missing = settings.context - tokens.ids.shape[1]
    ids = torch.nn.functional.pad(tokens.ids, (0, missing), value=int(tokens.ids[0, 0]))
    with forked_generators(model_device(model)), _quiet_saelens():
        torch.manual_seed(settings.seed)
        config = _runner_config(settings, model, model_name, excluded_tokens(tokens), wandb)
        last = None if checkpoints is None else _last_checkpoint(Path(checkpoints))
        # Set afterwards: SAELens puts a random folder below the path it is given.
        config.checkpoint_path = None if checkpoints is None else str(checkpoints)
        config.resume_from_checkpoint = None if last is None else str(last)
        rows = StoryRowsDataset(ids, settings.seed)
        runner = _Runner(config, override_dataset=rows, override_model=model)
        if on_snapshot is not None:
            runner.snapshots = (settings.snapshot_tokens, on_snapshot)
        dictionaries = {name: _dictionary(sae, name) for name, sae in runner.run().items()}
    return TrainedDictionaries(dictionaries, runner.curve, settings.n_steps * settings.batch_tokens, runner.resumed_at)


class _Runner(MultiSAETrainingRunner):
    """SAELens' runner with a curve, a seed, one checkpoint at a time, and the signal handlers left alone."""

    resumed_at = 0
    snapshots: tuple[tuple[int, ...], Snapshot] | None = None

    def __init__(self, cfg: MultiSAETrainingRunnerConfig, **overrides: Any) -> None:
        super().__init__(cfg, **overrides)
        self.curve: Curve = {name: [] for name in self.saes}
        if cfg.resume_from_checkpoint is not None:
            self.curve = json.loads((Path(cfg.resume_from_checkpoint) / _CURVE_FILE).read_text())
        for name, sae in self.saes.items():
            _record(name, sae, self.curve[name], cfg.total_training_steps, cfg.train_batch_size_tokens)

    def _run_with_interruption_handling(self, trainer: Any) -> Any:
        # SAELens would take SIGINT and SIGTERM for good, which fails outside the main thread, and would save a
        # checkpoint between two dictionaries of one step. The last checkpoint of a whole step serves as well.
        self.resumed_at = trainer.n_training_samples
        # SAELens saves before it counts the step: a resumed trainer would be one step behind its own weights.
        for one in (trainer, *trainer.trainers.values()):
            one.n_training_steps = self.resumed_at // self.cfg.train_batch_size_tokens
        # And it would save once more for every threshold already behind it.
        trainer.checkpoint_thresholds = [at for at in trainer.checkpoint_thresholds if at > self.resumed_at]
        if self.snapshots is not None:
            _keep_snapshots(trainer, *self.snapshots)
        torch.manual_seed(self.cfg.seed + self.resumed_at)
        _begin_anew_at_checkpoints(trainer, self.activations_store, self.cfg.seed)
        return trainer.fit()

    def _save_runner_checkpoint_files(self, checkpoint_path: Path | None) -> None:
        if checkpoint_path is None:
            return
        (checkpoint_path / _CURVE_FILE).write_text(json.dumps(self.curve))
        super()._save_runner_checkpoint_files(checkpoint_path)
        for other in checkpoint_path.parent.iterdir():
            if other != checkpoint_path:
                shutil.rmtree(other)


def _record(name: str, sae: Any, points: list[dict[str, float]], n_steps: int, batch_tokens: int) -> None:
    """Append loss, FVU and L0 of some training batches to `points`."""
    forward, every = sae.training_forward_pass, max(1, n_steps // _CURVE_POINTS)

    def recorded(step_input: Any) -> Any:
        output = forward(step_input)
        step = step_input.n_training_steps
        if step % every == 0 or step == n_steps - 1:
            with torch.no_grad():
                error = (output.sae_in - output.sae_out).square().sum()
                variance = (output.sae_in - output.sae_in.mean(0)).square().sum()
                l0 = output.feature_acts.to_dense().count_nonzero() / len(output.sae_in)
            if not output.loss.isfinite():
                raise DivergedError(
                    f"loss of {name} must stay finite, got {output.loss.item()} at step {step}. Lower lr, remove the"
                    " checkpoints and start anew."
                )
            values = {"loss": output.loss.item(), "fvu": (error / variance).item(), "l0": l0.item()}
            points.append({"tokens": (step + 1) * batch_tokens, **values})
        return output

    sae.training_forward_pass = recorded


def _keep_snapshots(trainer: Any, tokens: tuple[int, ...], on_snapshot: Snapshot) -> None:
    """Hand over the dictionaries after the steps that reach these numbers of tokens, before a checkpoint is saved."""
    checkpoint = trainer._checkpoint_if_needed

    def kept() -> None:
        seen = trainer.n_training_samples
        if seen in tokens:
            # Every copy of an SAE draws its first weights: the batches that follow must not depend on it.
            with forked_generators(torch.device(trainer.cfg.device)):
                on_snapshot(seen, {name: _snapshot(one, name) for name, one in trainer.trainers.items()})
        checkpoint()

    trainer._checkpoint_if_needed = kept


def _begin_anew_at_checkpoints(trainer: Any, store: Any, seed: int) -> None:
    """Empty the mixing buffer and seed the generator after each checkpoint, as a run does that starts from it."""
    save = trainer.save_checkpoint

    def saved(checkpoint_name: str) -> None:
        save(checkpoint_name=checkpoint_name)
        trainer.data_provider = store.get_multi_hook_data_loader()
        torch.manual_seed(seed + trainer.n_training_samples)

    trainer.save_checkpoint = saved


def _snapshot(trainer: Any, name: str) -> Dictionary:
    """A dictionary in the middle of its training, its activation scaling folded in as SAELens does at the end."""
    sae = type(trainer.sae)(trainer.sae.cfg)
    sae.load_state_dict(trainer.sae.state_dict())
    if trainer.activation_scaler.scaling_factor is not None:
        sae.cfg = copy.deepcopy(sae.cfg)  # folding changes it
        sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    return _dictionary(sae, name)


def _runner_config(
    settings: TrainSettings, model: nn.Module, model_name: str, excluded: list[int], wandb: bool
) -> MultiSAETrainingRunnerConfig:
    """Our settings in SAELens' words."""
    # At least one constant step: a schedule that decays from step 0 on is none that SequentialLR can switch to.
    decay_steps = min(round(settings.decay * settings.n_steps), settings.n_steps - 1)
    return MultiSAETrainingRunnerConfig(
        saes={name: sae_config(settings, model) for name in settings.hook_names},
        hook_names={name: name for name in settings.hook_names},
        model_name=model_name,
        model_class_name=type(model).__name__,
        context_size=settings.context,
        n_batches_in_buffer=settings.buffer_rows,
        training_tokens=settings.n_steps * settings.batch_tokens,
        store_batch_size_prompts=settings.model_rows,
        exclude_special_tokens=excluded,
        device=str(model_device(model)),
        seed=settings.seed,
        autocast=settings.precision == "bf16",
        autocast_lm=settings.precision == "bf16",
        train_batch_size_tokens=settings.batch_tokens,
        lr=settings.lr,
        lr_decay_steps=decay_steps,
        dead_feature_window=settings.dead_window,
        n_batches_for_norm_estimate=settings.norm_batches,
        n_checkpoints=settings.checkpoints,
        output_path=None,
        # Its evaluations expect a HookedTransformer; `sae.evaluate` does them here.
        logger=LoggingConfig(log_to_wandb=wandb, log_weights_to_wandb=False, eval_every_n_wandb_logs=10**9),
    )


def _dictionary(sae: Any, name: str) -> Dictionary:
    """What was trained at a hook, folded, on the CPU."""
    for parameter, value in sae.named_parameters():
        if not value.isfinite().all():
            raise DivergedError(f"{parameter} of {name} must stay finite, got entries that are not. Lower lr.")
    dictionary = Dictionary.from_sae(sae.to("cpu"), name)
    try:
        return dictionary.unit_norm()
    except UnsupportedSAEError:  # of a sparsity rule that scaling would change
        return dictionary


def _last_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with most tokens; those cut short by a kill are removed."""
    complete = []
    for one in folder.iterdir() if folder.is_dir() else ():
        try:
            json.loads((one / _CHECKPOINT_COMPLETE).read_text())
        except (OSError, ValueError):
            shutil.rmtree(one)
        else:
            complete.append(one)
    return max(complete, key=lambda one: int(one.name), default=None)


@contextlib.contextmanager
def _quiet_saelens() -> Iterator[None]:
    """Without its notice that an overridden model and data set make a run unrepeatable: ours records both."""
    logger = logging.getLogger("sae_lens")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
