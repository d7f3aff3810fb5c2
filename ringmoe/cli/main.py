"""``ringmoe VERB``: every step of the way from raw scenes to a compared, compressed model."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, get_type_hints

import tyro

from ringmoe.cli.console import console, guarded


@dataclass(frozen=True)
class Verb:
    """One command: the function of one config that does it. Imported only when it is called."""

    module: str
    function: str
    summary: str

    def run(self, name: str, arguments: Sequence[str]) -> None:
        """Reads the function's config dataclass from the command line and calls it."""
        function: Callable[[Any], None] = getattr(import_module(self.module), self.function)
        config_type = get_type_hints(function)["config"]
        # --tile and not --tiling.tile: how the settings are grouped is our affair
        plain = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
        function(tyro.cli(config_type, prog=f"ringmoe {name}", description=self.summary, args=arguments, config=plain))


VERBS = {
    "synth": Verb("ringmoe.cli.synth", "run", "write synthetic scenes of all four modalities"),
    "synth archive": Verb("ringmoe.cli.synth", "archive", "write an archive of many products, some flawed"),
    "shards plan": Verb("ringmoe.cli.scenes", "run", "say what scenes and products there are, before any work"),
    "shards build": Verb("ringmoe.cli.shards", "build", "cut raw scenes into shards"),
    "shards list": Verb("ringmoe.cli.shards", "show", "say what a folder of shards holds"),
    "shards inspect": Verb("ringmoe.cli.inspect", "run", "draw one page of what was kept, dropped and why"),
    "shards verify": Verb("ringmoe.cli.shards", "verify", "check every shard against its checksum"),
    "models": Verb("ringmoe.cli.models", "run", "list the presets with their sizes"),
    "init": Verb("ringmoe.cli.init", "run", "write a checkpoint of a preset's first weights, of any size"),
    "plan": Verb("ringmoe.cli.plan", "run", "predict memory, exchange and time of a run, or search what fits"),
    "evaluate": Verb("ringmoe.cli.evaluate", "run", "masked reconstruction of a checkpoint on held-out tiles"),
    "report": Verb("ringmoe.cli.report", "run", "draw one page of what compression did to a model"),
    "demo": Verb("ringmoe.cli.demo", "run", "walk the whole way once on synthetic scenes"),
}


def usage() -> str:
    """The verbs, one a line."""
    width = max(map(len, VERBS))
    lines = [f"  ringmoe {name:<{width}}   {verb.summary}" for name, verb in VERBS.items()]
    more = "Train with deepspeed launcher/pretrain.py, compress with ringmoe-prune. Each explains itself with --help."
    return "\n".join(("usage: ringmoe VERB [OPTIONS]", "", *lines, "", more))


def find(arguments: Sequence[str]) -> tuple[str, list[str]] | None:
    """The verb that the first words name, and what follows it."""
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in VERBS:
            return name, list(arguments[words:])
    return None


def main() -> None:
    """Entry point of ``ringmoe``."""
    arguments = sys.argv[1:]
    found = find(arguments)
    if found is None:
        asked = not arguments or arguments[0] in ("-h", "--help")
        console.print(usage() if asked else f"ringmoe: no verb {' '.join(arguments[:2])!r}\n\n{usage()}", markup=False)
        sys.exit(0 if asked else 2)
    name, rest = found
    sys.exit(guarded(lambda: VERBS[name].run(name, rest)))
