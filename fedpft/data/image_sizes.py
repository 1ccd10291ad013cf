"""Images of all shapes in one batch: whether an image processor makes them equal."""

from collections.abc import Sequence

import datasets
from PIL import Image
from transformers import BaseImageProcessor

from fedpft.data.sources.columns import IMAGE
from fedpft.data.sources.errors import fail
from fedpft.data.sources.images import image_sizes


def require_one_size(splits: Sequence[datasets.Dataset], processor: BaseImageProcessor) -> None:
    """Raise a ConfigError if the processor makes of images of different shapes tensors that are no batch.

    Tried are the flattest, the tallest, the smallest and the largest, if the processor is not known to mind no shape.
    """
    tall, wide = (_processed_shape(processor, *size) for size in ((32, 64), (64, 32)))
    if tall == wide:
        return
    sizes = sorted({size for split in splits for size in image_sizes(split, IMAGE)})
    if not sizes:  # all are fetched when they are read
        return
    extremes = [order(sizes, key=key) for order in (min, max) for key in (lambda s: s[0] / s[1], lambda s: s[0] * s[1])]
    made = {_processed_shape(processor, *size): size for size in extremes}
    if len(made) > 1:
        shown = [f"{shape} of {width} x {height} pixels" for shape, (width, height) in made.items()]
        found = f"an image processor that makes {shown[0]}, but {shown[1]}"
        fail("fm.path", found, "one that gives one size: size with height and width, or do_center_crop")


def _processed_shape(processor: BaseImageProcessor, width: int, height: int) -> tuple[int, ...]:
    return tuple(processor([Image.new("RGB", (width, height))], return_tensors="pt")["pixel_values"].shape[1:])
