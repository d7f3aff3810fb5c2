"""``ringmoe models``: the table, and the same numbers for machines."""

import json

from ringmoe.cli.models import ModelsConfig, run
from ringmoe.models import PRESETS, preset


def test_json_holds_every_variant_of_every_preset(capsys):
    run(ModelsConfig(json=True))
    sizes = json.loads(capsys.readouterr().out)
    assert list(sizes) == list(PRESETS)
    for name, variants in sizes.items():
        assert list(variants) == list(preset(name).variants())
    whole = sizes["ringmoe-14b"]["whole"]
    config = preset("ringmoe-14b")
    assert (whole["params"], whole["weights"]) == (config.num_params(), config.num_weights())
    assert whole["flops_per_image"] == config.flops_per_image("opt")
    assert whole["active_params"] == config.num_active_params("opt")


def test_the_table_shows_the_sizes_that_the_paper_gives(capsys):
    run(ModelsConfig())
    table = capsys.readouterr().out
    for size in ("14.74 B", "6.53 B", "5.85 B", "4.48 B", "1.06 B"):
        assert size in table
    assert all(name in table for name in PRESETS)
