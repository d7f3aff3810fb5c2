"""What a run would do, from its settings and the shards' manifests alone."""

from contextlib import closing

from rich.console import Group
from rich.table import Table

from ringmoe.data.loader import Loader
from ringmoe.train.loaders import train_loader
from ringmoe.train.mixture import mixture_table
from ringmoe.train.run import RunConfig


def plan_of(config: RunConfig, world: int) -> Group:
    """The resolved plan as two tables: sizes of the model, images, tokens and steps; and what is read how often.

    Args:
        config: The run, already checked.
        world: Ranks that it is planned for.
    """
    with closing(train_loader(config, rank=0, world=world)) as loader:
        return Group(_sizes(config, world, loader), mixture_table(loader, config.schedule.steps))


def _sizes(config: RunConfig, world: int, loader: Loader) -> Table:
    model = config.model
    active = max(model.num_active_params(key) for key in model.modalities)
    tokens = model.map_size(0) ** 2
    images = loader.images_per_step
    epochs = config.schedule.steps / loader.num_steps_per_epoch
    rows = {
        "parameters": f"{model.num_params():,}, of which an image uses at most {active:,}",
        "image": f"{model.image_size} x {model.image_size} pixels, {tokens} tokens in the first stage",
        "ranks": f"{world}, experts over {config.parallel.expert_parallel}, engine {config.parallel.engine}, "
        f"{config.parallel.dtype}",
        "images in a step": f"{sum(images.values())}: "
        + ", ".join(f"{key} {number}" for key, number in images.items()),
        "tokens in a step": f"{sum(images.values()) * tokens:,}",
        "FLOPs in a step": f"{model.training_flops(images):.3g} (forward and backward, without recomputation)",
        "steps": f"{config.schedule.steps:,}, {epochs:.3g} epochs of {loader.num_steps_per_epoch:,}",
        "learning rate": f"{config.optimiser.lr:g} after {config.schedule.warmup} steps, down to "
        f"{config.optimiser.lr * config.schedule.floor:g}",
        "output": str(config.output),
    }
    table = Table("", "plan", title="nothing is started", show_header=False)
    for name, text in rows.items():
        table.add_row(name, text)
    return table
