"""The model card of a compressed model: a README.md of facts, in the form that hubs read. People may edit it."""

from typing import Any

import torch

from ringmoe import __version__, modality
from ringmoe.checkpoint.disk import sha256_of
from ringmoe.checkpoint.manifest import MANIFEST_FILE
from ringmoe.checkpoint.store import CheckpointReader
from ringmoe.compress.plan import DENSE_MODES, TITLES, CompressionPlan

_TEMPLATE = """---
library_name: ringmoe
tags:
- remote-sensing
{tags}
---

# {title}

{summary}

| parameters |{heads}
|---{rule}|
{ledger}

## How it was made

{facts}

`compression.json` holds the plan block by block and what merging did to each matrix; `manifest.json` a checksum for
each file of weights. How well it does on any task was not measured when this card was written:
`ringmoe report SOURCE RESULT --shards SHARDS` measures speed and reconstruction beside the model that it was made of.

## Inputs

Images of {side} x {side} pixels, {scaled}.

{inputs}

## Use

```python
from pathlib import Path

from ringmoe.checkpoint.pretrained import load_model
from ringmoe.models import build_model, config_from

model = load_model(Path("FOLDER"), lambda contract: build_model(config_from(contract))).eval()
maps = model.features(images, "{key}")  # one (B, C, H, W) map for each stage; images: ringmoe.batch.ModalityImages
```

{further}
"""


def source_of(reader: CheckpointReader) -> dict[str, Any]:
    """What tells the checkpoint that a model was made of apart from all others: a checksum over all its checksums."""
    folder = reader.path.resolve()
    run = folder.parent.parent.name if folder.parent.name == "checkpoints" else ""
    return {
        "name": f"{run}/{folder.name}" if run else folder.name,
        "manifest_sha256": sha256_of(reader.path / MANIFEST_FILE),
        "step": reader.manifest.step,
    }


def card(plan: CompressionPlan, source: dict[str, Any], *, name: str, has_inputs: bool) -> str:
    """The text of the card.

    Args:
        plan: What was done.
        source: See ``source_of``.
        name: What the result is called.
        has_inputs: Whether its config says what its inputs are and how they are scaled.
    """
    keys, result = plan.options.modalities, plan.result
    is_dense = plan.options.mode in DENSE_MODES
    kind = (
        "a dense SwinV2 with absolute positions, one FFN in each block"
        if is_dense
        else "a mixture of experts with its routing"
    )
    names = ", ".join(modality.get(key).title for key in keys)
    before, after = plan.ledger[0].total, plan.ledger[-1].total
    parts = [(part, [column.parts[part] for column in plan.ledger]) for part in plan.ledger[0].parts]
    parts.append(("**all**", [column.total for column in plan.ledger]))
    return _TEMPLATE.format(
        tags="\n".join(f"- {tag}" for tag in ("swinv2" if is_dense else "mixture-of-experts", *keys)),
        title=name,
        summary=f"An image encoder for {names}: {kind}.\n"
        f"Of {before:,} parameters {after:,} are left ({after / before:.1%}).",
        heads="".join(f" {column.title} |" for column in plan.ledger),
        rule="|---:" * len(plan.ledger),
        ledger="\n".join(f"| {part} | {' | '.join(f'{n:,}' for n in numbers)} |" for part, numbers in parts),
        facts="\n".join(f"- {what}: {text}" for what, text in _facts(plan, source).items() if text),
        side=result.image_size,
        scaled="in the units and with the statistics that `config.json` holds"
        if has_inputs
        else "scaled in a way that the source does not say",
        inputs="\n".join(f"- `{key}`: {modality.get(key).title}, bands {_bands(key)}" for key in keys),
        key=keys[0],
        further="With its decoders it can be trained on and evaluated by reconstruction (`ringmoe evaluate`)."
        if result.decoders
        else "Its decoders were left out: it is made for use, not for evaluation by reconstruction.",
    )


def _facts(plan: CompressionPlan, source: dict[str, Any]) -> dict[str, str]:
    """What was done, with what, in words; what does not apply is empty."""
    options = plan.options
    step = "" if source["step"] is None else f", {source['step']:,} optimiser steps"
    ranks = sorted({expert.rank for block in plan.blocks for expert in block.merged if expert.rank is not None})
    return {
        "source": f"`{source['name']}`{step}, SHA-256 of its manifest `{source['manifest_sha256']}`",
        "mode": f"`{options.mode}`, {TITLES[options.mode]}",
        "collaborative experts that stay": str(options.rule) if options.mode == "ep" else "",
        "ranks": f"{', '.join(map(str, ranks))} ({options.rank})" if ranks else "",
        "beyond the paper": str(options.extensions),
        "usage statistics": plan.usage or "",
        "calibration": plan.calibration or "",
        "made with": f"ringmoe {__version__}, torch {torch.__version__}",
    }


def _bands(key: str) -> str:
    spec = modality.get(key)
    return ", ".join(spec.bands) + (" (complex)" if spec.is_complex else "")
