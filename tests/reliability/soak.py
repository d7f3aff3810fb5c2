"""A long run that is killed time and again, beside the same run that nobody disturbs."""

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.fixtures.small_run import rows_of, weights_of
from tests.reliability.jobs import Job

STEPS = 2_000
SAVED = 50  # steps between checkpoints
LEAST, MOST = 100, 200  # steps between kills
SEED = 0
OPTIONS = (
    f"--every.checkpoint {SAVED} --every.log 10 --every.evaluation 250 --every.pictures 250 --keep-every 1000 "
    "--evaluation.tiles 3"
)
_TICK = 0.05
_MIB = 1 << 20
_SHARED = Path("/dev/shm")
Sample = tuple[float, ...]  # step, and MiB that each rank has resident
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Death:
    """One kill.

    Attributes:
        step: The step that is under way.
        place: Name of the ``ringmoe.faults.point`` at which a rank is halted.
        rank: The rank that is halted.
        victims: Ranks that get SIGKILL while it stands there.
    """

    step: int
    place: str
    rank: int
    victims: tuple[int, ...]

    @property
    def resumed(self) -> int:
        """Step after which the same command goes on."""
        return (self.step - 1) // SAVED * SAVED


def deaths(steps: int, *, seed: int = SEED) -> list[Death]:
    """The kills of a run: where, drawn with a seed."""
    draw = random.Random(seed)
    found: list[Death] = []
    step = draw.randint(LEAST, MOST)
    while step < steps:
        place = draw.choice(("forward", "backward", "optimiser"))
        victims = draw.choice(((0,), (1,), (0, 1)))
        found.append(Death(step=step, place=place, rank=draw.randrange(2), victims=victims))
        step += draw.randint(LEAST, MOST)
    return found


def growth(samples: Sequence[Sample], rank: int) -> float:
    """By how much a rank's memory grows over the second half of a run, as a share.

    The medians over the first and the last fifth of that half are compared: single samples jump with what is being
    evaluated, drawn or saved just then.
    """
    middle, end = samples[-1][0] / 2, samples[-1][0]
    fifth = (end - middle) / 5
    first = median(sample[1 + rank] for sample in samples if middle <= sample[0] <= middle + fifth)
    last = median(sample[1 + rank] for sample in samples if sample[0] >= end - fifth)
    return last / first - 1


def soak(shards: Path, folder: Path, *, steps: int, tell: Callable[[str], None]) -> Record:
    """Runs both and compares them.

    Args:
        shards: What is trained on.
        folder: Where both write.
        steps: Of each run.
        tell: Gets a line whenever something has come to its end.

    Returns:
        What was seen.

    Raises:
        AssertionError: A promise was broken.
    """
    shared = set(_SHARED.iterdir())
    whole, killed = _Run(shards, folder / "whole", steps), _Run(shards, folder / "killed", steps)
    whole.live(None)
    tell(f"{steps} steps in {whole.seconds:.0f} s")
    for number, death in enumerate(plan := deaths(steps), 1):
        seen = killed.live(death)
        tell(f"kill {number} of {len(plan)}: step {death.step}, gone after {seen['seconds']} s")
    killed.live(None)
    tell(f"{steps} steps with {len(plan)} kills in {killed.seconds:.0f} s")
    assert rows_of(killed.output) == rows_of(whole.output)
    assert weights_of(killed.output) == weights_of(whole.output)
    assert not list(killed.output.glob("checkpoints/*.tmp"))
    assert not (left := unused(set(_SHARED.iterdir()) - shared)), f"left behind: {left}"
    return {
        "steps": steps,
        "seconds": [round(whole.seconds), round(killed.seconds)],
        "growth": [round(growth(whole.lives[0], rank), 5) for rank in range(2)],
        "kills": killed.kills,
        "resumed": [death.resumed for death in plan],
        "whole": whole.lives[0],
        "lives": killed.lives,
    }


def unused(files: set[Path]) -> set[Path]:
    """Those of some files that no process has open or mapped."""
    left = {path for path in files if path.exists()}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            used = (process / "maps").read_text() + " ".join(os.readlink(fd) for fd in (process / "fd").iterdir())
        except OSError:  # it has ended, or is another user's
            continue
        left = {path for path in left if str(path) not in used}
    return left


class _Run:
    """A run over all its lives, and the memory of its ranks meanwhile."""

    def __init__(self, shards: Path, folder: Path, steps: int) -> None:
        folder.mkdir()
        self.output = folder / "run"
        self.lives: list[list[Sample]] = []
        self.kills: list[Record] = []
        self.seconds = 0.0
        self._job = Job(shards, self.output, OPTIONS, steps=steps)
        self._resumes = 0

    def live(self, death: Death | None) -> Record:
        """Starts the command, and kills what it starts or waits for its end."""
        begun, job = time.monotonic(), self._job
        try:
            if death is None:
                job.start()
            else:
                job.start(death.place, visit=death.step - self._resumes, rank=death.rank)
            self._watch()
            start = f"continuing {self.output} after step {self._resumes} of" if self._resumes else "a new run in"
            assert start in job.printed, job.printed
            record = self._kill(death) if death is not None else {}
            codes = job.codes()
        finally:
            job.end()
        self.seconds += time.monotonic() - begun
        assert all(codes) if death is not None else not any(codes), f"{codes}\n{job.printed}"
        assert not job.left(), f"still there: {job.left()}"
        self._resumes = death.resumed if death is not None else 0
        return record

    def _kill(self, death: Death) -> Record:
        """Kills the victims where one of the ranks is halted, and lets that one go on."""
        job = self._job
        halted = job.wait_until_halted()
        other = [process for process in job.ranks() if process != halted]
        of_rank = {death.rank: [halted], 1 - death.rank: other}
        job.kill([process for rank in death.victims for process in of_rank[rank]], signal.SIGKILL)
        killed_at = time.monotonic()
        job.go_on()
        codes = job.codes()
        seconds = round(time.monotonic() - killed_at, 1)
        record = {**asdict(death), "victims": list(death.victims), "codes": codes, "seconds": seconds}
        self.kills.append(record)
        return record

    def _watch(self) -> None:
        """Notes the memory of the ranks whenever rows are written, for as long as the job goes on."""
        samples: list[Sample] = []
        self.lives.append(samples)
        step, rows = self._resumes, self.output / "metrics.jsonl"
        before = _identity(rows)  # a run that goes on replaces the file by one without the rows behind its checkpoint
        while self._job.goes_on():
            ranks = self._job.ranks()
            if len(ranks) == 2 and _identity(rows) != before and (now := _last_step(rows)) > step:
                step = now
                samples.append((step, *(round(_resident(rank) / _MIB, 1) for rank in ranks)))
            time.sleep(_TICK)


def _resident(process: int) -> int:
    """Bytes of memory that a process has resident; 0 where it has just ended."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _identity(path: Path) -> int:
    return path.stat().st_ino if path.exists() else 0


def _last_step(rows: Path) -> int:
    """The step of the last whole row of a file that is being written."""
    try:
        with rows.open("rb") as file:
            file.seek(max(0, rows.stat().st_size - 20_000))
            lines = file.read().split(b"\n")[1:-1]
    except OSError:
        return 0
    return int(lines[-1].partition(b'"step": ')[2].partition(b",")[0]) if lines else 0
