"""Make a training run give the same result when it is interrupted at any step."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..trainers.metric_sums import MetricSums
from ..trainers.token_counts import TokenCounts
from .checkpoints import RECORD, best_checkpoint, read_record
from .run_folder import Start, make_room


logger = get_logger(__name__)


class NothingToTrain(Exception):
    """Raised at the beginning of a training whose last step has been done, once its weights are loaded."""


class TrainingRecord(TrainerCallback, ExportableState):
    """
    What `trainer_state.json` of a checkpoint holds in addition to what [`~transformers.Trainer`] writes: the number of
    processes, the settings that a resumed run has to share, the random numbers that the order of the epoch was drawn
    from, and the sums of the metrics since they were last logged.

    It holds the trainer, because these sums are attributes of TRL's trainers.

    Args:
        trainer ([`~transformers.Trainer`]):
            A TRL trainer in its training loop.
        settings (`dict`):
            What the result depends on, from [`~rlmec_trl.stages.training_settings.training_settings`].
    """

    def __init__(self, trainer: Trainer, settings: dict[str, Any]):
        self.trainer = trainer
        self._settings = settings
        self.epoch_rng = ""

    def settings(self) -> dict[str, Any]:
        """What the result depends on."""
        return {**self._settings, "max_steps": self.trainer.state.max_steps}

    def tokens(self) -> dict[str, Any]:
        """The numbers of tokens so far, of which [`~rlmec_trl.stages.costs.output_costs`] makes costs."""
        num_tokens = self.trainer._total_train_tokens
        if isinstance(self.trainer, MetricSums):  # those since the last log are not in it yet
            num_tokens += int(self.trainer._metric_sums["train"].get("num_tokens", [0])[0])
        return {"num_tokens": num_tokens, **self._token_counts()}

    def _token_counts(self) -> dict[str, Any]:
        if not isinstance(self.trainer, TokenCounts):
            return {}
        counts = self.trainer.token_counts
        return {"token_counts": None if counts is None else dict(counts)}

    def state(self) -> dict:
        trainer = self.trainer
        record = {
            "num_processes": trainer.args.world_size,
            "num_local_processes": int(os.environ.get("LOCAL_WORLD_SIZE", trainer.args.world_size)),
            "settings": self.settings(),
            "epoch_rng": self.epoch_rng,
            "metrics": dict(trainer._metrics["train"]),
            "num_tokens": trainer._total_train_tokens,
            **self._token_counts(),
        }
        if isinstance(trainer, MetricSums):
            record["metric_sums"] = {
                name: [float(total) for total in sums] for name, sums in trainer._metric_sums["train"].items()
            }
        if trainer.args.world_size == 1:  # each of several processes has its own loss
            record |= {"loss": trainer._tr_loss.item(), "last_logged": trainer._globalstep_last_logged}
        return {"args": {}, "attributes": record}

    def restore(self, record: dict) -> None:
        """Continue where the record of a checkpoint ends. An earlier version may have recorded less."""
        trainer = self.trainer
        self.epoch_rng = record.get("epoch_rng", "")
        trainer._metrics["train"].update(record.get("metrics", {}))
        trainer._total_train_tokens = record.get("num_tokens", 0)
        if isinstance(trainer, TokenCounts):
            counts = record.get("token_counts")
            trainer.token_counts = None if counts is None else Counter(counts)
        if isinstance(trainer, MetricSums):
            for name, sums in record.get("metric_sums", {}).items():
                trainer._metric_sums["train"][name] = list(torch.tensor(sums, device=trainer.args.device))
        if trainer.args.world_size == record.get("num_processes") == 1 and "loss" in record:
            trainer._tr_loss += record["loss"]
            trainer._globalstep_last_logged = record["last_logged"]
            # `train_loss` at the end is the mean over the steps of this process
            trainer._total_loss_scalar -= record["loss"]


class ResumableTraining(TrainerCallback):
    """
    Callback that makes a training resumable at any step.

    - SIGTERM, which schedulers send before they end a job, saves a checkpoint at the end of the current step and stops
      the training. A second one kills the process, except in runs on several: their launcher forwards the signal to
      processes that may have got it already.
    - A training whose last step has been done does not do another one: [`NothingToTrain`] ends it. Only
      `Trainer.train` loads the weights of a checkpoint whatever they are sharded with, and it would go on.
    - A checkpoint replaces a folder of the same step that another run has left, rather than being written into it.
    - A resumed epoch has the order of rows that it had before, whatever random numbers it was drawn from.

    It holds the trainer, because `Trainer` lets callbacks neither load random numbers nor ask the other processes, and
    calls none between the evaluation that decides about a checkpoint of the best model and its saving.

    Args:
        trainer ([`~transformers.Trainer`]):
            The TRL trainer that the callback is added to.
        start ([`~rlmec_trl.stages.run_folder.Start`]):
            What it resumes from.
        settings (`dict`):
            What the result depends on.
        finished (`bool`):
            Whether the last step has been done.

    Attributes:
        terminated (`bool`):
            Whether SIGTERM has stopped the training.
    """

    def __init__(self, trainer: Trainer, start: Start, settings: dict[str, Any], finished: bool):
        self.trainer = trainer
        self.start = start
        self.finished = finished
        self.record = TrainingRecord(trainer, settings)
        self.resumed = start.checkpoint is not None
        self.saved: set[int] = set()
        self.signaled = False
        self.terminated = False
        self._save_into_room = trainer._save_checkpoint
        trainer._save_checkpoint = self._save_checkpoint

    @contextmanager
    def handling_sigterm(self) -> Iterator[None]:
        """Handle SIGTERM. Python allows this only in the main thread; in others, it keeps its meaning."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)

    def _on_sigterm(self, number: int, frame: Any) -> None:
        self.signaled = True
        if self.trainer.args.world_size == 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.resumed and (best := best_checkpoint(vars(state), self.start.checkpoint)) is not None:
            state.best_model_checkpoint = str(best)
        saved = read_record({"stateful_callbacks": state.stateful_callbacks})
        if self.resumed and saved is not None:
            self.record.restore(saved)
        if self.finished:
            raise NothingToTrain
        # Added only now: a callback whose name is in the checkpoint may be replaced by a new one while it is loaded
        self.trainer.add_callback(self.record)
        state.stateful_callbacks[RECORD] = {}

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.resumed:
            self.resumed = False
            if state.epoch is not None and float(state.epoch).is_integer():
                # `Trainer` loads these too, but after this
                self.trainer._load_rng_state(str(self.start.checkpoint))
            elif self.record.epoch_rng:
                # Those of the step are loaded once the rows that have been trained on are skipped
                rng_state = bytearray.fromhex(self.record.epoch_rng)
                torch.set_rng_state(torch.frombuffer(rng_state, dtype=torch.uint8))
                return
        self.record.epoch_rng = torch.get_rng_state().numpy().tobytes().hex()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self._any_signaled():
            self.terminated = True
            control.should_training_stop = control.should_save = True
            # The time until the process is killed may be too short for it
            if control.should_evaluate:
                control.should_evaluate = False
                logger.warning(f"SIGTERM: the evaluation of step {state.global_step} is left out.")

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.terminated:  # in the middle of an epoch, so this is not its end
            control.should_log = control.should_evaluate = control.should_save = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.saved.add(state.global_step)
        if self.terminated:
            # It is in the checkpoint. Otherwise, `save_total_limit=1` would now delete all others, this one too
            state.best_model_checkpoint = None

    def _any_signaled(self) -> bool:
        # Processes get the signal at different steps, and must stop at the same one
        if self.trainer.args.world_size == 1:
            return self.signaled
        signaled = torch.tensor(float(self.signaled), device=self.trainer.args.device)
        return self.trainer.accelerator.reduce(signaled, reduction="sum").item() > 0

    def _save_checkpoint(self, *args, **kwargs) -> None:
        self._make_room()
        self._save_into_room(*args, **kwargs)

    def _make_room(self) -> None:
        args, state = self.trainer.args, self.trainer.state
        if args.should_save:
            limited = args.save_total_limit is not None
            make_room(Path(args.output_dir), state.global_step, self.start, self.saved, limited)
        self.trainer.accelerator.wait_for_everyone()
