"""The small ViT of the vision row: pre-trained on public images, saved with its own accuracy."""

import time
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil
from transformers.utils import IMAGE_PROCESSOR_NAME

from experiments.benchmarks.methods.cells import RESULTS, WORK
from fedpft.config import ServerConfig, TaskConfig
from fedpft.data.collate import ImageCollator
from fedpft.data.tasks.loading import load_task
from fedpft.evaluation.evaluate import evaluate
from fedpft.models.pretrain import PretrainModule
from fedpft.storage.output import write_json
from fedpft.trainer import make_trainer

IMAGE_SIZE = 32
ARCHITECTURE = {
    "image_size": IMAGE_SIZE, "patch_size": 4, "hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4,
    "intermediate_size": 512, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
EPOCHS, LR, BATCH_SIZE, CROP_MARGIN = 30, 1e-3, 64, 4
SERVER = ServerConfig(accelerator="cpu", num_threads=1)


def ensure_vit(data_dir: Path) -> None:
    """Pre-train the ViT unless it is there: a folder that `fm.path` takes. Other workers wait meanwhile.

    Args:
        data_dir: holds `tiny_imagenet` (200 classes).

    """
    WORK.mkdir(parents=True, exist_ok=True)
    with FileLock(WORK / "vit.lock"):
        if not (WORK / "vit" / IMAGE_PROCESSOR_NAME).exists():  # which is written last
            _pretrain(data_dir)


def _pretrain(data_dir: Path) -> None:
    torch.manual_seed(0)
    folder = str(data_dir / "tiny_imagenet")
    task = load_task(TaskConfig(name="custom", path=folder, image_column="image", label_column="label"), seed=0)
    processor = ViTImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    collate = ImageCollator(processor)
    model = ViTForImageClassification(ViTConfig(num_labels=len(task.label_names), **ARCHITECTURE))

    def augmented(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = collate(rows)
        return batch | {"pixel_values": torch.stack([_flip_and_crop(image) for image in batch["pixel_values"]])}

    loader = DataLoader(task.train, batch_size=BATCH_SIZE, shuffle=True, collate_fn=augmented)
    num_steps, start = EPOCHS * len(loader), time.perf_counter()
    make_trainer(SERVER, num_steps=num_steps, on_step=_report).fit(
        PretrainModule(model, lr=LR, num_steps=num_steps), loader
    )
    accuracy = evaluate(model.eval(), task.evaluation, collate, metrics=task.metrics, batch_size=250, server=SERVER)[
        "accuracy"
    ]
    (RESULTS / "fm").mkdir(parents=True, exist_ok=True)
    made = {"epochs": EPOCHS, "seconds": time.perf_counter() - start, "architecture": ARCHITECTURE}
    write_json(RESULTS / "fm" / "vit.json", {"accuracy": accuracy, "classes": len(task.label_names), **made})
    model.save_pretrained(WORK / "vit")
    processor.save_pretrained(WORK / "vit")
    Console().print(f"ViT: {100 * accuracy:.1f} % of {len(task.label_names)} classes")


def _flip_and_crop(image: Tensor) -> Tensor:
    """Return a (3, S, S) image mirrored with probability 1/2 and moved by up to CROP_MARGIN pixels."""
    if torch.rand(()) < 0.5:
        image = image.flip(-1)
    padded = torch.nn.functional.pad(image[None], (CROP_MARGIN,) * 4, mode="reflect")[0]
    top, left = torch.randint(0, 2 * CROP_MARGIN + 1, (2,)).tolist()
    return padded[:, top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]


def _report(done: int, total: int, metrics: Any) -> None:
    if done % 125 == 0:
        Console().print(f"{done}/{total}  loss {metrics['loss']:.3f}")
