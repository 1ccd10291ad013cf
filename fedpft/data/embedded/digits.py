"""Embedded images: scikit-learn's 1797 handwritten digits; the clients own 5-9, the public has 0-4."""

import datasets
import numpy as np
from PIL import Image

from fedpft.config import ConfigError

PUBLIC_DIGITS = range(5)
TASK_DIGITS = range(5, 10)
EVALUATION_RATIO = 0.25
LARGEST_PIXEL = 16  # grey levels of the source, 0..16


def digits_task() -> tuple[datasets.Dataset, datasets.Dataset, tuple[str, ...]]:
    """Return train and evaluation rows (`image` 8x8 RGB, `label` 0..4) and the names "5".."9".

    The split is stratified and the same for every seed.

    Raises:
        ConfigError: scikit-learn is not installed.

    """
    images, labels = _load(TASK_DIGITS)
    evaluation = np.zeros(len(labels), dtype=bool)
    for label in range(len(TASK_DIGITS)):
        members = np.random.default_rng(label).permutation(np.flatnonzero(labels == label))
        evaluation[members[: round(EVALUATION_RATIO * len(members))]] = True
    names = tuple(str(digit) for digit in TASK_DIGITS)
    return _rows(images[~evaluation], labels[~evaluation]), _rows(images[evaluation], labels[evaluation]), names


def digits_corpus() -> datasets.Dataset:
    """Return the public rows: `image` 8x8 RGB, `label` 0..4.

    Raises:
        ConfigError: scikit-learn is not installed.

    """
    return _rows(*_load(PUBLIC_DIGITS))


def _load(digits: range) -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        message = "task.name / public.name: found digits without scikit-learn, allowed: pip install fedpft[quickstart]"
        raise ConfigError(message) from None
    source = load_digits()
    chosen = (source.target >= digits.start) & (source.target < digits.stop)
    pixels = np.round(source.images[chosen] * (255 / LARGEST_PIXEL)).astype(np.uint8)
    return pixels, source.target[chosen] - digits.start


def _rows(pixels: np.ndarray, labels: np.ndarray) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images = [Image.fromarray(grey).convert("RGB") for grey in pixels]
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
