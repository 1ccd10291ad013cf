"""The model card of an exported FM: the hub's metadata, and what a reader must know of the run."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id, yaml_dump

from fedpft.config import Config
from fedpft.config.compare import own_settings
from fedpft.data.corpora.public import CORPORA
from fedpft.data.tasks.table import TASKS
from fedpft.report.compute import compute_rows
from fedpft.report.privacy import privacy_rows
from fedpft.report.scores import MODELS, metric_change, shown_models
from fedpft.report.wording import rounds_done

PIPELINES = {"text": "text-classification", "image": "image-classification", "causal_lm": "text-generation"}
"""Modality, or kind of task -> the hub's name of what the model does."""

PRIVATE_SETTINGS = ("output_dir", "pool", "cache", "checkpoint", "tracking")
"""About this machine and who watches: hardly a number depends on them, and they are nobody's business."""

_FOLDER = "PATH/TO/THIS/FOLDER"


def model_card(result: Mapping[str, Any], config: Config, auto_class: str, *, merged: bool) -> ModelCard:
    """Return the card of a run's plugged-in FM.

    Args:
        result: the run's `result.json`.
        config: the run's.
        auto_class: name of the class of transformers that opens the FM.
        merged: whether LoRA is folded into the weights; else it lies in `adapter/` beside the untuned FM.

    """
    data = _metadata(result, config, merged)
    sections = {
        "Use": _usage(auto_class, merged),
        "Results": _results(result),
        "How it was made": "\n".join(f"- **{what}**: {said}" for what, said in _facts(result, config)),
        "Settings other than the defaults": f"```yaml\n{yaml_dump(_settings(config)).strip()}\n```",
        "Versions": ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items()),
    }
    title = f"{result['name']}: an FM tuned without seeing the clients' data"
    text = "\n\n".join([f"# {title}", _summary(config), *(f"## {name}\n\n{body}" for name, body in sections.items())])
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n", ignore_metadata_errors=True)


def hub_id(path: str | None) -> str | None:
    """Return a path that names a repository of the hub; None for folders, packages and models from scratch."""
    if not path or "://" in path or Path(path).exists():
        return None
    try:
        validate_repo_id(path)
    except HFValidationError:
        return None
    return path


def _metadata(result: Mapping[str, Any], config: Config, merged: bool) -> ModelCardData:
    row = TASKS.get(config.task.name)
    pipeline = PIPELINES.get(result["kind"]) or PIPELINES[result["modality"]]
    dataset = hub_id(config.task.path or (row.path if row else None))
    scores = _scores(result)["fm"]
    evaluations = [
        EvalResult(
            task_type=pipeline,
            dataset_type=dataset or config.task.name,
            dataset_name=config.task.name,
            dataset_config=row.config_name if row else None,
            dataset_split=config.task.eval_split or (row.eval_split if row and dataset else None),
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in scores.items()
    ]
    return ModelCardData(
        base_model=hub_id(config.fm.path),
        library_name="transformers" if merged else "peft",
        pipeline_tag=pipeline,
        tags=list(dict.fromkeys(["fedpft", "federated-learning", "lora", result["method"], *config.tracking.tags])),
        datasets=[dataset] if dataset else None,
        metrics=list(scores),
        model_name=result["name"],
        eval_results=evaluations,
    )


def _scores(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return model -> metric -> value."""
    return {model: dict(result["metrics"][model]) for model in shown_models(MODELS, result)}


def _summary(config: Config) -> str:
    federated = config.federated
    proxy = "the FM itself" if config.method.name == "full" else "a compressed sub-FM"
    return (
        f"`{config.fm.path}`, tuned on {config.task.name} by federated proxy fine-tuning "
        f"([FedPFT](https://arxiv.org/abs/2404.11536)): {federated.num_clients} clients tuned LoRA and the task head "
        f"on {proxy}, each on data that never left it; the server plugged the averaged adapter into the FM."
    )


def _usage(auto_class: str, merged: bool) -> str:
    opened = f'model = {auto_class}.from_pretrained("{_FOLDER}")'
    lines = [f"from transformers import {auto_class}", "", opened]
    if not merged:
        plugged = f'model = PeftModel.from_pretrained(model, "{_FOLDER}/adapter")'
        lines = ["from peft import PeftModel", *lines, plugged]
    if auto_class != "AutoModelForCausalLM":
        lines.append("model.config.id2label  # names of the labels")
    return "\n".join(["```python", *lines, "```"])


def _results(result: Mapping[str, Any]) -> str:
    scores = _scores(result)
    metrics = list(scores["fm"])
    lines = [f"| model | {' | '.join(metrics)} |", f"| --- |{' ---: |' * len(metrics)}"]
    for model, values in scores.items():
        title, cells = MODELS[model], [f"{values[metric]:.4f}" for metric in metrics]
        mark = "**" if model == "fm" else ""
        lines.append(f"| {mark}{title}{mark} | {' | '.join(cells)} |")
    examples = f"On {result['num_eval_examples']} evaluation examples" if "num_eval_examples" in result else ""
    gap = result.get("fidelity", {}).get("leakage_gap")
    said = (
        f"; leakage gap (plugged-in FM minus sub-FM) {metric_change(gap, result['metric'])}" if gap is not None else ""
    )
    return "\n".join(lines) + (f"\n\n{examples}{said}." if examples else "")


def _facts(result: Mapping[str, Any], config: Config) -> Iterator[tuple[str, str]]:
    federated, align, method = config.federated, config.align, config.method
    partition = federated.partition
    law = f" (alpha {partition.dirichlet_alpha:g}, {partition.concentration})" if partition.kind == "dirichlet" else ""
    corpus = CORPORA.get(config.public.name)
    public = hub_id(config.public.path or (corpus.path if corpus else None))
    yield "Method", f"{result['method']}, {rounds_done(result)}, seed {result['seed']}"
    yield "Private data", f"{config.task.name}, {partition.kind} partition{law} among {federated.num_clients} clients"
    yield "Public data", config.public.name + (f" ({public})" if public else "") + ", read by the server alone"
    yield (
        "Local tuning",
        (
            f"{federated.local_epochs} epoch(s) of batches of {federated.batch_size}, rate {federated.lr:g}; "
            f"LoRA rank {config.lora.rank}, alpha {config.lora.lora_alpha}"
        ),
    )
    if method.name != "full":
        how = f"{100 * method.retained_ratio:g} % of the FFN neurons, by {method.scorer}"
        yield (
            "Compression",
            f"{how if method.name == 'fedpft' else 'fewer layers'}; "
            f"{result['num_params_fm'] / 1e6:.2f} M parameters in the FM, {result['num_params_sub_fm'] / 1e6:.2f} M in "
            f"the sub-FM (its transformer layers {result['compression_ratio']:.2f} x smaller)",
        )
        aligned = align.neurons.kind != "none" and method.name == "fedpft"
        neurons = f", neurons every {align.neurons.interval} rounds by {align.neurons.kind}" if aligned else ""
        yield "Alignment", f"layers by {align.layers.kind}{neurons}"
    if rows := list(privacy_rows(result)):
        yield "Differential privacy", "; ".join(f"{title} {value} ({note})" for title, value, note in rows)
    traffic = f"{result['bytes_up_per_client_round']} bytes up, {result['bytes_down_per_client_round']} down"
    yield "Traffic", f"{traffic}, per client and round"
    yield from ((title.capitalize(), f"{value} {note}") for title, value, note in compute_rows(result))


def _settings(config: Config) -> dict[str, Any]:
    return {key: value for key, value in own_settings(config).items() if key not in PRIVATE_SETTINGS}
