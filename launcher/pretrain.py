"""Pre-training on any number of ranks.

All of these give the same run::

    deepspeed --num_gpus 2 launcher/pretrain.py --preset tiny --data.shards shards/demo --parallel.expert-parallel 2
    torchrun --nproc-per-node 2 launcher/pretrain.py ...
    mpirun -n 2 python launcher/pretrain.py ...
    srun python launcher/pretrain.py ...
    python launcher/pretrain.py ...

``--help`` lists every setting, ``--dry-run`` prints the plan. The same command continues a run that was stopped.
"""

import os
import sys
from contextlib import closing

from ringmoe.distributed.launch import guarded, start
from ringmoe.train.command import parse


def main() -> None:
    """Parses, builds, trains, closes."""
    config = parse(sys.argv[1:], os.environ)
    world = start()
    # the engine's library takes seconds to import: not before the settings are known to be right
    from ringmoe.train.build import build_trainer

    with closing(build_trainer(config, world)) as trainer:
        trainer.fit()


if __name__ == "__main__":
    sys.exit(guarded(main))
