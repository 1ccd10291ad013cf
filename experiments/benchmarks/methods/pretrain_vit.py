"""Pre-train the small ViT of the vision row on public images and save it with its own accuracy.

    python -m experiments.benchmarks.methods.pretrain_vit DATA_DIR [--epochs 30]

DATA_DIR holds `tiny_imagenet` (200 classes). Written once: `outputs/methods_benchmark/vit/`, a folder that `fm.path`
takes, and `experiments/results/methods/fm/vit.json`.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from experiments.benchmarks.methods.run import RESULTS, WORK
from fedpft.config import ServerConfig, TaskConfig
from fedpft.data.collate import ImageCollator
from fedpft.data.tasks import load_task
from fedpft.evaluate import evaluate
from fedpft.models.pretrain import PretrainModule
from fedpft.output import write_json
from fedpft.trainer import make_trainer

IMAGE_SIZE = 32
ARCHITECTURE = {
    "image_size": IMAGE_SIZE, "patch_size": 4, "hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4,
    "intermediate_size": 512, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
LR, BATCH_SIZE, CROP_MARGIN = 1e-3, 64, 4
SERVER = ServerConfig(accelerator="cpu", num_threads=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    folder = str(options.data_dir / "tiny_imagenet")
    task = load_task(TaskConfig(name="custom", path=folder, image_column="image", label_column="label"), seed=0)
    processor = ViTImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    collate = ImageCollator(processor)
    model = ViTForImageClassification(ViTConfig(num_labels=len(task.label_names), **ARCHITECTURE))

    def augmented(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = collate(rows)
        return batch | {"pixel_values": torch.stack([_flip_and_crop(image) for image in batch["pixel_values"]])}

    loader = DataLoader(task.train, batch_size=BATCH_SIZE, shuffle=True, collate_fn=augmented)
    num_steps, start = options.epochs * len(loader), time.perf_counter()
    make_trainer(SERVER, num_steps=num_steps, on_step=_report).fit(
        PretrainModule(model, lr=LR, num_steps=num_steps), loader
    )
    accuracy = evaluate(model.eval(), task.evaluation, collate, metrics=task.metrics, batch_size=250, server=SERVER)[
        "accuracy"
    ]
    model.save_pretrained(WORK / "vit")
    processor.save_pretrained(WORK / "vit")
    (RESULTS / "fm").mkdir(parents=True, exist_ok=True)
    made = {"epochs": options.epochs, "seconds": time.perf_counter() - start, "architecture": ARCHITECTURE}
    write_json(RESULTS / "fm" / "vit.json", {"accuracy": accuracy, "classes": len(task.label_names), **made})
    Console().print(accuracy)


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


if __name__ == "__main__":
    main()
