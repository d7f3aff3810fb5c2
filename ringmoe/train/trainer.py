"""The loop, on one screen: step after step, with everything periodic left to callbacks."""

from collections.abc import Sequence
from contextlib import ExitStack, closing

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ringmoe.checkpoint.load import load_latest
from ringmoe.checkpoint.runs import Kept
from ringmoe.checkpoint.saver import Saver
from ringmoe.checkpoint.state import TrainerState
from ringmoe.config import to_dict, to_yaml
from ringmoe.data.loader import Loader
from ringmoe.distributed.launch import World
from ringmoe.distributed.training_engine import TrainingEngine
from ringmoe.faults import point
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.train.callbacks.base import Callback
from ringmoe.train.contract import contract_of, fingerprint_of
from ringmoe.train.metrics import Metrics, Row
from ringmoe.train.run import RunConfig
from ringmoe.train.step import MicroBatch, train_step
from ringmoe.train.stopping import StopRequest

SETTINGS_FILE = "run.yaml"


class Trainer:
    """Runs a pre-training run to its end, from wherever its newest checkpoint left it.

    Attributes:
        config: The run.
        world: This rank among all.
        model: The model that is trained.
        engine: Takes its optimiser steps.
        loader: This rank's batches.
        callbacks: Everything periodic, in the order in which their hooks are called.
        saver: Writes checkpoints.
        step: Optimiser steps done.
        clock: Where the time of the steps goes; the model's exchanges tell it their part.
        metrics: Values of the steps since the last flush.
        recent: What this rank's micro-batches of those steps held.
        is_sound: Whether the last step that was flushed had finite numbers.
    """

    def __init__(
        self,
        config: RunConfig,
        world: World,
        model: RingMoE,
        engine: TrainingEngine,
        loader: Loader,
        callbacks: Sequence[Callback],
    ) -> None:
        self.config = config
        self.world = world
        self.model = model
        self.engine = engine
        self.loader = loader
        self.callbacks = callbacks
        kept = Kept(last=config.keep_last, every=config.keep_every)
        self.saver = Saver(config.output, kept, beside=config.save_beside)
        self.step = 0
        self.clock = model.parallel.clock
        self.metrics = Metrics()
        self.recent: list[list[MicroBatch]] = []
        self.is_sound = True

    @property
    def is_main(self) -> bool:
        """Whether this rank is the one that writes and speaks."""
        return self.world.rank == 0

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.schedule.steps

    @property
    def is_complete(self) -> bool:
        """Whether all steps of the run are done."""
        return self.step >= self.num_steps

    def fit(self) -> None:
        """Trains until the last step, or until a signal asks to stop; either way the run is saved.

        Raises:
            CheckpointError: The folder holds checkpoints that this run cannot go on from, or saving failed.
            ShardError: A tile could not be read.
            TrainingError: Loss or gradient were no longer finite, several steps in a row.
        """
        self.resume()
        point("train")
        if self.is_complete:
            self.say(f"{self.config.output} has all its {self.num_steps} steps: nothing to do (--schedule.steps)")
            return
        self.keep_settings()
        with ExitStack() as stack:
            stop = stack.enter_context(closing(StopRequest()))
            for callback in self.callbacks:
                stack.callback(callback.close)
                callback.start(self)
            stack.enter_context(closing(self.saver))
            steps = stack.enter_context(closing(self.loader.iterate(self.step)))
            while not self.is_complete and not stop.agreed():
                for callback in self.callbacks:
                    callback.before_step(self)
                self.engine.set_lr(self.lr(self.step))
                with self.clock.during("data"):
                    batches = next(steps)
                self.recent.append(train_step(self.engine, batches, self.metrics, self.world.device, self.clock))
                self.step += 1
                self.metrics.end_step(self.step)
                if self.step % self.config.every.log == 0:
                    self.flush()
                for callback in self.callbacks:
                    callback.after_step(self)
                if self.saver.has_failed:
                    stop.ask()
            self.flush()
            for callback in self.callbacks:
                callback.finish(self)
        if not self.is_complete:
            self.say(f"asked to stop: saved after step {self.step}; the same command continues")

    def lr(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return self.config.optimiser.lr * self.config.schedule.factor(step)

    def flush(self) -> None:
        """Reduces the metrics of the steps since the last flush, has them checked and completed, and logs them."""
        if not self.recent:
            return
        for callback in self.callbacks:
            callback.before_flush(self)
        rows = self.metrics.flush()
        for row in rows:
            row.scalars["lr"] = self.lr(row.step - 1)
        for callback in self.callbacks:
            callback.on_steps(self, rows)
        self.recent.clear()
        self.log(rows)

    def log(self, rows: Sequence[Row]) -> None:
        """Hands rows to all who write them."""
        for callback in self.callbacks:
            callback.on_rows(self, rows)

    def show(self, name: str, rgb_HWC: NDArray[np.uint8]) -> None:
        """Hands a picture to all who keep them."""
        for callback in self.callbacks:
            callback.on_picture(self, name, rgb_HWC)

    def say(self, text: str) -> None:
        """Tells the person at the console, once."""
        if self.is_main:
            Console(soft_wrap=True, highlight=False).print(text, markup=False)

    def keep_settings(self) -> None:
        """Writes ``run.yaml``: all settings, ready for ``--config``."""
        if self.is_main:
            self.config.output.mkdir(parents=True, exist_ok=True)
            (self.config.output / SETTINGS_FILE).write_text(to_yaml(self.config), encoding="utf-8")

    def save(self) -> None:
        """Saves the run, or begins to: weights, moments, place in the data, state of the callbacks. Collective."""
        documents = {name: values for callback in self.callbacks for name, values in callback.documents().items()}
        state = TrainerState(
            step=self.step,
            updates=self.engine.updates,
            seed=self.config.seed,
            data_fingerprint=fingerprint_of(self.loader),
            data=self.loader.state(self.step),
            schedule=to_dict(self.config.schedule),
            callbacks={type(callback).__name__: state for callback in self.callbacks if (state := callback.state())},
        )
        config = contract_of(self.config.model, self.loader)
        self.saver.save(self.engine, state, config=config, documents=documents)

    def resume(self) -> None:
        """Goes back to the newest complete checkpoint, if there is one, and says so. Collective.

        Raises:
            CheckpointError: It belongs to another model, seed or data.
            ShardError: The data would not go on where it stopped.
        """
        state = load_latest(
            self.config.output,
            self.engine,
            config=contract_of(self.config.model, self.loader),
            seed=self.config.seed,
            data_fingerprint=fingerprint_of(self.loader),
        )
        if state is None:
            start = f" from the weights of {self.config.start}" if self.config.start else ""
            self.say(f"a new run in {self.config.output}: {self.num_steps} steps{start}")
            return
        self.loader.check_state(state.data)
        self.step = state.step
        for callback in self.callbacks:
            callback.load_state(state.callbacks.get(type(callback).__name__, {}))
        if state.schedule != to_dict(self.config.schedule):
            self.say(f"the schedule was {state.schedule} and is now {to_dict(self.config.schedule)}")
        self.say(f"continuing {self.config.output} after step {self.step} of {self.num_steps}")

    def close(self) -> None:
        """Lets go of shards and engine."""
        self.loader.close()
        self.engine.close()
