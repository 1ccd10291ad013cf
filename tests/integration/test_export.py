"""What `fedpft export` writes opens with transformers and peft alone and is the run's tuned FM."""

import copy
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BertForSequenceClassification,
    PreTrainedModel,
)

from fedpft.cli import main as cli
from fedpft.config import load_config
from fedpft.data.collate import rows
from fedpft.run.export import export
from fedpft.run.inputs import load_fm_and_data
from fedpft.run.pipeline import run
from fedpft.trainer import SilentProgress
from tests.tiny import tiny_fm, tiny_text_run, tiny_vision_run

SHORT = ["federated.rounds=1", "evaluation.fidelity_examples=0", "align.layers.kind=none"]
VARIANTS = {"text": tiny_text_run, "image": tiny_vision_run}
SCRIPT = """
import sys, torch
from peft import PeftModel
from transformers import {auto}

merged = {auto}.from_pretrained("merged")
fm = {auto}.from_pretrained("beside")
plugged = PeftModel.from_pretrained(fm, "beside/adapter")

batch = torch.load("batch.pt")
answers = [(model.eval()(**batch).logits.detach(), dict(model.config.id2label)) for model in (merged, plugged)]
torch.save(answers, "answers.pt")
"""
ALONE = 'assert not any(name.startswith("fedpft") for name in sys.modules)'
AUTO = {"text": "AutoModelForSequenceClassification", "image": "AutoModelForImageClassification"}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Return a function that runs a variant, once for all tests; it gives the folder around it and its config."""

    @cache
    def run_once(kind):
        folder = tmp_path_factory.mktemp(kind)
        config = load_config(None, [*VARIANTS[kind](folder), *SHORT])
        run(config)
        return folder, config

    return run_once


@pytest.fixture(scope="module", params=VARIANTS)
def finished(request, ran):
    """Remember a batch and what the tuned FM says to it."""
    if request.param == "image":
        pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    folder, config = ran(request.param)
    out = folder / "out"
    saved_fm = out / "fm" if request.param == "image" else None
    fm, data = load_fm_and_data(config, SilentProgress(), saved_fm)
    batch = data.collate(rows(data.evaluation, range(8)))
    labels = batch.pop("labels")
    untuned = fm(**batch).logits.detach()
    tuned = PeftModel.from_pretrained(fm, str(out / "adapter")).eval()
    logits = tuned(**batch).logits.detach()
    assert (logits - untuned).abs().max() > 1e-3, "tuning changed something"
    assert len(labels) == 8
    return SimpleNamespace(
        kind=request.param, folder=folder, out=out, batch=batch, logits=logits, names=list(data.label_names)
    )


@pytest.fixture(scope="module")
def text_run(ran):
    return ran("text")[0] / "out"


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_two_lines_of_transformers_open_the_tuned_fm(finished, monkeypatch):
    for name in ("merged", "beside"):
        out = finished.folder / name
        assert export(finished.out, out, merge=name == "merged") == out.resolve()
    torch.save(finished.batch, finished.folder / "batch.pt")
    script = SCRIPT.format(auto=AUTO[finished.kind])
    if finished.kind == "text":
        subprocess.run([sys.executable, "-c", script + ALONE], check=True, cwd=finished.folder)
    else:
        monkeypatch.chdir(finished.folder)
        exec(script, {})
    answers = torch.load(finished.folder / "answers.pt")
    for (logits, id2label), tolerance in zip(answers, (1e-5, 1e-7), strict=True):  # merging rounds
        assert (logits - finished.logits).abs().max() <= tolerance
        assert id2label == dict(enumerate(finished.names))
    assert not [path.name for path in finished.folder.iterdir() if path.name.startswith(".export")]
    processor = {"text": AutoTokenizer, "image": AutoImageProcessor}[finished.kind].from_pretrained(out)
    if finished.kind == "text":
        assert (
            processor("w1 w2")["input_ids"]
            == AutoTokenizer.from_pretrained(finished.folder / "fm")("w1 w2")["input_ids"]
        )
    else:
        assert dict(processor.size) == {"height": 8, "width": 8}
    card = ModelCard.load(out / "README.md")
    result = json.loads((finished.out / "result.json").read_text())
    assert card.data.eval_results[0].metric_value == result["fm"]
    assert "from_pretrained" in card.text


def test_the_adapter_folder_of_a_run_has_the_label_names(finished):
    config = AutoConfig.from_pretrained(finished.out / "adapter")
    assert config.id2label == dict(enumerate(finished.names))


def test_the_run_is_left_as_it_was(text_run):
    before = files(text_run)
    out = export(text_run)
    assert out == (text_run / "export").resolve()
    assert [name for name in files(text_run) if not name.startswith("export/")] == before
    assert "adapter/adapter_model.safetensors" in files(out)
    assert "adapter/README.md" not in files(out)
    shutil.rmtree(out)


@pytest.fixture
def fails(monkeypatch, capsys):
    """Return a function that runs `fedpft export ...`, checks exit code 2 and returns the one line of the error."""

    def run_cli(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedpft", "export", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert exit_.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run_cli


@pytest.fixture
def copy_of_run(text_run, tmp_path):
    return shutil.copytree(text_run, tmp_path / "run")


def test_what_is_no_finished_run_is_refused(fails, copy_of_run, tmp_path):
    assert "RUN_DIR: found" in fails(tmp_path / "nowhere")
    (copy_of_run / "result.json").unlink()
    assert "without result.json, allowed: a finished run (go on with: fedpft resume RUN_DIR)" in fails(copy_of_run)
    (copy_of_run / "result.json").write_text("{")
    assert "is not JSON" in fails(copy_of_run)
    (copy_of_run / "result.json").write_text("{}")
    assert "result.json without kind and modality and label_names" in fails(copy_of_run)


def test_nothing_is_overwritten(fails, copy_of_run, tmp_path):
    taken, file = tmp_path / "taken", tmp_path / "file"
    taken.mkdir()
    (taken / "mine").write_text("precious")
    file.write_text("mine")
    for out in (taken, file):
        assert f"--out: found {str(out)!r}, which exists, allowed: a new or empty folder" in fails(
            copy_of_run, "--out", out
        )
    assert (taken / "mine").read_text() == "precious"
    assert "allowed: a folder that can be written" in fails(copy_of_run, "--out", file / "below")


def test_an_empty_folder_is_taken(copy_of_run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "README.md" in files(export(copy_of_run, tmp_path / "empty", merge=True))


def test_an_adapter_of_another_model_is_refused_and_leaves_nothing(fails, copy_of_run):
    path = copy_of_run / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "lora_A" in name)
    save_file({key: value for key, value in tensors.items() if key != name}, path)
    assert re.search(
        r"adapter: found .*lora_A.* is not the FM's \(1 tensors so\), allowed: one for this FM", fails(copy_of_run)
    )
    save_file(tensors | {name: tensors[name][:, :3].contiguous()}, path)
    assert "size mismatch" in fails(copy_of_run)
    path.write_bytes(b"broken")
    assert "allowed: one for this FM" in fails(copy_of_run)
    assert not (copy_of_run / "export").exists()


def test_an_fm_that_is_gone_is_one_line(fails, copy_of_run):
    config = (copy_of_run / "config.yaml").read_text()
    fm = re.search(r"path: (.*/fm)\n", config)[1]
    (copy_of_run / "config.yaml").write_text(config.replace(fm, f"{fm}/gone"))
    assert "fm.path: found" in fails(copy_of_run)


def test_another_fm_behind_the_same_path_is_refused(fails, copy_of_run, tmp_path):
    config = (copy_of_run / "config.yaml").read_text()
    fm = re.search(r"path: (.*/fm)\n", config)[1]
    shutil.copytree(fm, tmp_path / "fm")
    tiny_fm("bert", seed=1).save_pretrained(tmp_path / "fm")
    (copy_of_run / "config.yaml").write_text(config.replace(fm, str(tmp_path / "fm")))
    found = fails(copy_of_run)
    assert re.search(
        r"fm\.path: found .* with digest \w{12}, the run began with \w{12}, allowed: the FM of the r", found
    )
    assert not (copy_of_run / "export").exists()


@pytest.mark.parametrize("merge", [True, False])
def test_an_export_that_is_another_model_is_refused_and_leaves_nothing(fails, copy_of_run, monkeypatch, merge):
    def spoil(model, folder, **_):
        model = copy.deepcopy(model)  # what is written is wrong, not what the export compares it with
        with torch.no_grad():
            next(p for name, p in model.named_parameters() if "query" in name).mul_(1.5)
        PreTrainedModel.save_pretrained(model, folder)

    monkeypatch.setattr(BertForSequenceClassification, "save_pretrained", spoil, raising=False)
    before = files(copy_of_run)
    found = fails(copy_of_run, *["--merge"] * merge)
    assert (
        "export: found what was written to answer 4 stored examples otherwise than the FM with the run's ada" in found
    )
    assert files(copy_of_run) == before


def test_an_fm_that_answers_otherwise_than_in_the_run_is_refused(fails, copy_of_run):
    path = copy_of_run / "examples.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"logits": tensors["logits"] * 1.1}, path)
    assert "export: found the FM with the run's adapter to answer 4 stored examples otherwise than" in fails(
        copy_of_run
    )
    path.write_bytes(b"broken")
    assert "RUN_DIR: found a damaged examples.safetensors" in fails(copy_of_run)
    path.unlink()
    with pytest.warns(UserWarning, match=r"no examples\.safetensors: the export is not compared with the run"):
        export(copy_of_run)
