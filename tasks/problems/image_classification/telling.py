"""What reports and cards say of images and of the networks that see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.problems import Views
from tasks.records import ViewPolicy


def in_words(policy: ViewPolicy) -> Views:
    """How many views of which size training saw."""
    size, many = policy.shape["image_size"], "view" if policy.views == 1 else "views"
    what = f"{policy.views} fixed {many} of each image" if policy.transforms else "the plain image"
    return Views(
        f"{what} at {size} × {size} pixels.", (("Other shapes", str(policy.shape["resize"])),)
    )


def in_plain_pytorch(record: Mapping[str, Any]) -> str:
    """How to load the weights without Thawline; a head of or on several layers has no short way,
    nor has a network that its library does not make with our classifier."""
    network, classes = record["network"], len(record["classes"])
    if record["head"]["hidden"] or "reading" in record or not network.get("plain", True):
        return ""
    module = "torchvision.models" if network["library"] == "torchvision" else "timm"
    make = "get_model" if network["library"] == "torchvision" else "create_model"
    return f"""\
Or in plain PyTorch:

```python
import {module}
from safetensors.torch import load_file

model = {module}.{make}("{network["name"]}", num_classes={classes})
model.load_state_dict(load_file("models/model.safetensors"))
model.eval()
```

"""
