"""The dropout that a pretrained network brings along, such as that of encoders.

Srivastava et al., JMLR 15, 2014. While fine-tuning it is a choice: on a CPU, drawing the noise is
an eighth of an encoder's step (docs/decisions/0034-recipes-for-texts.md).
"""

from __future__ import annotations

from torch import nn

from tasks.errors import ThawlineError


def set_share(model: nn.Module, head: str, share: float) -> None:
    """Let all dropout layers but those of the head drop `share` of what passes.

    Raises `ThawlineError` when the network has none.
    """
    places = [
        part
        for name, part in model.named_modules()
        if isinstance(part, nn.Dropout) and not f"{name}.".startswith(f"{head}.")
    ]
    if not places:
        raise ThawlineError(
            f"train.dropout: {type(model).__name__} has no dropout below its head; set it to null, "
            "or train.head.dropout for that of the head"
        )
    for part in places:
        part.p = share
