"""What all command lines share: one console, and errors that are written for people."""

import io
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from ringmoe.data.durable import DurableFile
from ringmoe.data.storage import Location, RemoteConfig, remote_folders
from ringmoe.errors import RingMoEError

console = Console()


def print_remote(places: Iterable[Location], remote: RemoteConfig) -> None:
    """Says what reading from elsewhere has cost, and what had to be repeated; nothing of folders on this machine."""
    for folder in remote_folders(places, remote):
        console.print(f"{folder}: {folder.counts}", markup=False, highlight=False, soft_wrap=True)


def write_page(target: Path, text: str, missing: Iterable[str], *, option: str, error: type[RingMoEError]) -> None:
    """Writes a page, whole or not at all, and says what it lacks and where it lies.

    Args:
        target: Its file; an older one is replaced.
        text: HTML.
        missing: What it does not show, and why.
        option: With which the place is chosen, for the error.
        error: What is raised where it cannot be written.
    """
    try:
        with DurableFile(target) as file:
            file.write(text.encode())
            file.commit()
    except OSError as fault:
        raise error(
            f"{target} cannot be written: {fault.strerror}. Choose another place: {option} FILE.html"
        ) from fault
    for line in missing:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    console.print(f"{target} ({file.size / 1e6:.1f} MB): open it in a browser", soft_wrap=True, markup=False)


def guarded(main: Callable[[], None]) -> int:
    """Runs a command and turns what a user can mend into a message without a traceback.

    Returns:
        0 when it went well, 2 for an error that the user can mend, 130 when interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold what a terminal, or no text at all, can
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except RingMoEError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again", file=sys.stderr)
        return 130
    return 0
