"""The loop, on one screen: step after step, with everything periodic left to callbacks."""

from collections.abc import Sequence
from contextlib import ExitStack, closing

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ringmoe.checkpoint.load import drop_newer, load_latest
from ringmoe.checkpoint.runs import Kept
from ringmoe.checkpoint.saver import Saver
from ringmoe.checkpoint.state import TrainerState
from ringmoe.config import to_dict, to_yaml
from ringmoe.data.loader import Loader
from ringmoe.distributed.launch import World
from ringmoe.distributed.training_engine import TrainingEngine
from ringmoe.errors import TrainingError
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
        doubt: Why the weights as they are at the last step that was flushed may be bad; empty for no reason.
        wants_back: Step before which the run shall be taken up again, with other data behind it; 0 for none.
        passed: Steps of data, from first to before end, that were passed over when it was.
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
        self.doubt = ""
        self.wants_back = 0
        self.passed: list[tuple[int, int]] = []

    @property
    def is_main(self) -> bool:
        """Whether this rank is the one that writes and speaks."""
        return self.world.rank == 0

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.schedule.steps

    @property
    def num_passed(self) -> int:
        """Steps of data that were passed over so far: by so much the data are ahead of the steps."""
        return sum(end - first for first, end in self.passed)

    @property
    def is_complete(self) -> bool:
        """Whether all steps of the run are done."""
        return self.step >= self.num_steps

    def fit(self) -> None:
        """Trains until the last step, or until a signal asks to stop; either way the run is saved.

        Raises:
            CheckpointError: The folder holds checkpoints that this run cannot go on from, or saving failed.
            ShardError: A tile could not be read.
            TrainingError: Loss or gradient were no longer finite, several steps in a row, or the loss spikes once more
                than the run may go back.
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
            self._steps = self.loader.iterate(self.step + self.num_passed)
            stack.callback(lambda: self._steps.close())
            while not self.is_complete and not stop.agreed():
                for callback in self.callbacks:
                    callback.before_step(self)
                self.engine.set_lr(self.lr(self.step))
                with self.clock.during("data"):
                    batches = next(self._steps)
                self.recent.append(train_step(self.engine, batches, self.metrics, self.world.device, self.clock))
                self.step += 1
                self.metrics.end_step(self.step)
                if self.step % self.config.every.log == 0 or self.is_complete:
                    self.flush()
                for callback in self.callbacks:
                    callback.after_step(self)
                if self.wants_back:
                    self.go_back()
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
            data=self.loader.state(self.step + self.num_passed) | {"passed": [list(part) for part in self.passed]},
            schedule=to_dict(self.config.schedule),
            callbacks={type(callback).__name__: state for callback in self.callbacks if (state := callback.state())},
        )
        config = contract_of(self.config.model, self.loader)
        self.saver.save(self.engine, state, config=config, documents=documents)

    def resume(self) -> None:
        """Goes on from the newest complete checkpoint, if there is one, and says so. Collective.

        Raises:
            CheckpointError: It belongs to another model, seed or data.
            ShardError: The data would not go on where it stopped.
        """
        state = self._take_up()
        if state is None:
            start = f" from the weights of {self.config.start}" if self.config.start else ""
            self.say(f"a new run in {self.config.output}: {self.num_steps} steps{start}")
            return
        if state.schedule != to_dict(self.config.schedule):
            self.say(f"the schedule was {state.schedule} and is now {to_dict(self.config.schedule)}")
        self.say(f"continuing {self.config.output} after step {self.step} of {self.num_steps}")

    def go_back(self) -> None:
        """Goes on from the newest complete checkpoint before ``wants_back``, behind the data read so far. Collective.

        It is saved at once, in place of that checkpoint: a run that is killed from here on goes on from here, and one
        that was killed before comes here again.

        Raises:
            CheckpointError: There are checkpoints, but none is whole, or saving failed.
            TrainingError: There is none from before, or the run has gone back as often as it may.
        """
        left, spike, reached = self.step, self.wants_back, self.step + self.num_passed
        most, done = self.config.numbers.roll_backs, len(self.passed)
        advice = "Lower --optimiser.lr or lengthen --schedule.warmup"
        if done >= most:
            raise TrainingError(
                f"the loss spikes since step {spike}, and the run has gone back {done} times already, as often as it "
                f"may (--numbers.roll-backs). {advice}, or let it go back more often; the same command continues from "
                "the last checkpoint"
            )
        self.saver.wait()
        if self._take_up(before=spike) is None:
            raise TrainingError(
                f"the loss spikes since step {spike}, and no checkpoint is older, to which the run could go back. "
                f"{advice}, or save earlier (--every.checkpoint)"
            )
        drop_newer(self.config.output, self.step)
        self.passed.append((self.step + self.num_passed, reached))
        self._steps.close()
        self._steps = self.loader.iterate(reached)
        self.wants_back, self.doubt = 0, ""
        for callback in self.callbacks:
            callback.went_back(self)
        self.save()
        first, end = self.passed[-1]
        self.say(
            f"ROLLED BACK from step {left} to step {self.step}, {done + 1} of at most {most} times: steps {first + 1} "
            f"to {end} of the data are passed over"
        )
        point("went back")

    def _take_up(self, before: int | None = None) -> TrainerState | None:
        """Weights, place and callbacks from the newest complete checkpoint, or the newest before a step. Collective."""
        state = load_latest(
            self.config.output,
            self.engine,
            config=contract_of(self.config.model, self.loader),
            seed=self.config.seed,
            data_fingerprint=fingerprint_of(self.loader),
            before=before,
        )
        if state is not None:
            self.loader.check_state(state.data)
            self.step, self.passed = state.step, [(first, end) for first, end in state.data.get("passed", ())]
            for callback in self.callbacks:
                callback.load_state(state.callbacks.get(type(callback).__name__, {}))
        return state

    def close(self) -> None:
        """Lets go of shards and engine."""
        self.loader.close()
        self.engine.close()
