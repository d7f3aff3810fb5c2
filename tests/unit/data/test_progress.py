"""What is shown of a build: windows, rate, remaining time, broken scenes."""

import pytest

from ringmoe.cli.progress import BuildBar, in_words
from ringmoe.data.build import build_share
from ringmoe.data.rounds import BuildProgress, Share

from .conftest import SMALL


@pytest.mark.parametrize(
    ("progress", "built", "seconds", "words"),
    [
        (BuildProgress(0, 4096), 0, 0.0, "0 of 4,096 windows"),
        (BuildProgress(1024, 4096), 512, 2.0, "1,024 of 4,096 windows, 256/s, 0:00:12 left"),
        (BuildProgress(10, 1_000_000, 1), 10, 1.0, "10 of 1,000,000 windows, 10/s, 27:46:39 left, 1 scene quarantined"),
        (BuildProgress(4096, 4096, 2), 4096, 4.0, "4,096 of 4,096 windows, 1,024/s, 2 scenes quarantined"),
    ],
)
def test_words(progress, built, seconds, words):
    assert in_words(progress, built, seconds) == words


def test_a_log_gets_a_line_and_rate_and_rest_are_of_this_run(archive, tmp_path, capsys):
    with BuildBar() as bar:
        build_share([archive], tmp_path / "out", SMALL, Share(0, 2), progress=bar)
    first = capsys.readouterr().out
    assert first.count("building: ") == 1
    with BuildBar() as bar:
        build_share([archive], tmp_path / "out", SMALL, Share(0, 1), progress=bar)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("building: ")]
    assert line.startswith("building: 280 of 280 windows, ")
    bar = BuildBar()
    bar(BuildProgress(100, 280))  # finished before: neither the rate's nor the clock's
    assert "/s" not in capsys.readouterr().out
