"""Where jobs are killed, and the run that all of them have to come out as.

Four steps on two expert-parallel ranks, saved after each; the two newest checkpoints stay. Step 3 is where things
happen: its checkpoint is the first for which an older one is deleted.
"""

from dataclasses import dataclass
from typing import Literal

STEPS = 4
OPTIONS = (
    "--parallel.expert-parallel 2 --every.checkpoint 1 --every.log 1 --keep-last 2 --data.micro-batch 4 "
    "--evaluation.tiles 2"
)
Victims = Literal["this rank", "the other rank", "all ranks", "the launcher"]


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill.

    Attributes:
        phase: Of a run, for people.
        place: Name of the ``ringmoe.faults.point`` at which a rank is halted.
        visit: How many times it has come there.
        rank: The rank that is halted.
        victims: Who gets the signal while it stands there. The halted rank then goes on, if it is alive.
        resumes: Step after which the same command must continue; 0 for a new run.
        torn: File of the unfinished checkpoint that is cut to half, as if the kill had come in the middle of writing.
        beside: Checkpoints are written beside training.
        signal: What the victims get.
        launcher: Started by ``deepspeed``; otherwise the ranks are on their own, and have to notice by themselves.
        interrupted: The job starts in the folder of one that was killed before the checkpoint of step 3 got its name.
        quick: Runs with the ordinary tests.
    """

    phase: str
    place: str
    visit: int = 1
    rank: int = 0
    victims: Victims = "this rank"
    resumes: int
    torn: str = ""
    beside: bool = False
    signal: Literal["SIGKILL", "SIGTERM"] = "SIGKILL"
    launcher: bool = False
    interrupted: bool = False
    quick: bool = False

    @property
    def name(self) -> str:
        """Tells it from all others."""
        words = [self.place, f"visit {self.visit}", f"rank {self.rank}", self.signal, self.victims]
        words += [f"{self.torn} torn"] * bool(self.torn) + ["beside"] * self.beside + ["deepspeed"] * self.launcher
        return ", ".join([*words, *["after an interruption"] * self.interrupted])


def _step(place: str, visit: int) -> list[Kill]:
    """Kills in one part of step 3: of either rank, and of both."""
    phase = {"data": "reading", "forward": "forward", "exchange": "exchange of tokens", "backward": "backward"}
    of = {"phase": phase.get(place, "optimiser step"), "place": place, "visit": visit, "resumes": 2}
    return [
        Kill(**of),
        Kill(**of, rank=1),
        Kill(**of, rank=1, victims="all ranks"),
    ]


_NEW = "step-00000003.tmp"
_OLD = "step-00000001"

KILLS = [
    *(Kill(phase="start", place=place, resumes=0) for place in ("build", "train")),
    Kill(phase="start", place="train", victims="all ranks", resumes=0),
    *_step("data", 5),
    *_step("forward", 3),
    *_step("exchange", 31),
    *_step("backward", 3),
    *_step("optimiser", 3),
    # the tensors: either rank before its files, in the middle of them, and before they are forced to the disk
    Kill(phase="tensor files", place="write weights-00000.safetensors", visit=3, resumes=2),
    Kill(phase="tensor files", place="write weights-00001.safetensors", visit=3, rank=1, resumes=2),
    Kill(phase="tensor files", place="flush weights-00000.safetensors", visit=3, resumes=2),
    *(
        Kill(phase="tensor files", place=f"flush {file}", visit=3, rank=rank, victims=victims, resumes=2, torn=file)
        for file, rank, victims in (
            ("weights-00000.safetensors", 0, "this rank"),
            ("weights-00001.safetensors", 1, "the other rank"),
            ("optimizer-00000.safetensors", 0, "all ranks"),
            ("optimizer-00001.safetensors", 1, "this rank"),
        )
    ),
    Kill(phase="documents", place="write config.json", visit=3, resumes=2),
    Kill(phase="documents", place="flush trainer.json", visit=3, resumes=2, torn="trainer.json"),
    Kill(phase="documents", place="write usage.json", visit=3, victims="the other rank", resumes=3),
    Kill(phase="manifest", place="write manifest.json", visit=3, resumes=2),
    Kill(phase="manifest", place="flush manifest.json", visit=3, victims="all ranks", resumes=2, torn="manifest.json"),
    Kill(phase="manifest", place=f"flush {_NEW}", resumes=2),
    Kill(phase="rename", place=f"rename {_NEW}", resumes=2),
    Kill(phase="rename", place=f"rename {_NEW}", victims="all ranks", resumes=2),
    Kill(phase="rename", place="flush checkpoints", visit=5, resumes=3),
    Kill(phase="`latest`", place="write latest.tmp", visit=3, resumes=3),
    Kill(phase="`latest`", place="rename latest.tmp", visit=3, victims="all ranks", resumes=3),
    Kill(phase="`latest`", place="flush checkpoints", visit=6, resumes=3),
    Kill(phase="deletion of an old one", place=f"delete {_OLD}", resumes=3),
    Kill(phase="deletion of an old one", place=f"delete the rest of {_OLD}", resumes=3),
    Kill(phase="deletion of an old one", place=f"delete the rest of {_OLD}", victims="all ranks", resumes=3),
    Kill(phase="resuming", place=f"delete {_NEW}", interrupted=True, resumes=2),
    Kill(phase="resuming", place="load", interrupted=True, resumes=2),
    Kill(phase="resuming", place="load", rank=1, victims="all ranks", interrupted=True, resumes=2),
    # beside training: the other rank, and the thread that trains, are somewhere in the next step
    Kill(phase="written beside", place="write weights-00001.safetensors", visit=3, rank=1, resumes=2, beside=True),
    Kill(
        phase="written beside",
        place="flush optimizer-00000.safetensors",
        visit=3,
        victims="all ranks",
        resumes=2,
        torn="optimizer-00000.safetensors",
        beside=True,
    ),
    Kill(phase="written beside", place=f"rename {_NEW}", resumes=2, beside=True, quick=True),
    Kill(phase="written beside", place=f"rename {_NEW}", victims="the other rank", resumes=3, beside=True),
    Kill(phase="written beside", place="rename latest.tmp", visit=3, resumes=3, beside=True),
    Kill(phase="written beside", place=f"delete the rest of {_OLD}", resumes=3, beside=True),
    # while groups of ranks are being made, only a launcher can know that one of them will never come
    Kill(phase="start, under a launcher", place="start", resumes=0, launcher=True),
    *(
        Kill(phase="start, under a launcher", place=place, rank=1, resumes=0, launcher=True)
        for place in ("meet", "build", "train")
    ),
    Kill(phase="manifest, under a launcher", place="write manifest.json", visit=3, resumes=2, launcher=True),
    # the launcher itself: its ranks have to end, and save where they can
    *(
        Kill(
            phase=f"launcher, {phase}",
            place=place,
            visit=visit,
            victims="the launcher",
            signal=number,
            resumes=resumes,
            launcher=True,
        )
        for phase, place, visit, number, resumes in (
            ("start", "start", 1, "SIGTERM", 0),
            ("start", "start", 1, "SIGKILL", 0),
            ("start", "build", 1, "SIGKILL", 0),
            ("forward", "forward", 3, "SIGTERM", 3),
            ("backward", "backward", 3, "SIGKILL", 3),
            ("saving", "write manifest.json", 3, "SIGTERM", 3),
            ("saving", f"rename {_NEW}", 1, "SIGKILL", 3),
        )
    ),
]
