"""What of `params.yaml` is about images."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tasks.params import AugmentParams, Count, PrepareParams


class ImagePrepare(PrepareParams):
    """How images are found, decoded and stored."""

    images: str | None = Field(None, description="manifest: the folder that its paths start from")
    path_column: str = Field("path", description="manifest: the column with the file")
    store_side: Count = 256
    max_pixels: Count = 50_000_000


class ImageAugment(AugmentParams):
    """What a training view of an image looks like."""

    policy: str | list[str | dict[str, Any]] = "flips_crops"
    test_time: Literal["none", "flip"] = "none"
    image_size: Annotated[int, Field(ge=32, le=1024)] = 224
    resize: Literal["squash", "crop", "pad"] = "squash"
