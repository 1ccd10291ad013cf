"""What a run is given and cannot use: refused in one line before an actor starts, and without a trace."""

import errno
import json
import os
import resource
import signal
import sys

import datasets
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fedpft.cli import main as cli
from fedpft.config import ConfigError, load_config
from fedpft.config.trials import Trial
from fedpft.federated.client import LocalClient
from fedpft.federated.observer import SilentObserver
from fedpft.federated.pool import SequentialPool
from fedpft.interrupt import NotCountedError
from fedpft.models.loading import load_sub_fm
from fedpft.run import inputs
from fedpft.run.pipeline import run
from fedpft.run.resume import go_on
from fedpft.storage.output import ROUNDS_FILE, RUN
from fedpft.sweeps.sweep import play_trial
from fedpft.trainer import SilentProgress
from tests.tiny import tiny_fm, tiny_text_run, tiny_tokenizer, tiny_vision_run

SHORT = ["federated.rounds=1", "align.layers.num_steps=1"]


def write_train(folder, texts, labels):
    (folder / "task/train.csv").unlink()
    datasets.Dataset.from_dict({"text": texts, "label": labels}).to_parquet(folder / "task/train.parquet")


def labelled(*labels):
    return lambda folder: write_train(folder, ["w1"] * len(labels), list(labels))


def vision_fm(folder):
    tiny_fm("vit").save_pretrained(folder / "fm")


def without_pad(folder):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder / "fm")


REFUSED = {
    "LoRA on what is no linear layer": (
        "lora.target_modules=[query,LayerNorm]",
        "lora.target_modules: found 'LayerNorm', which matches a LayerNorm, allowed: all-linear, or linear layers ou",
    ),
    "layers that the FM does not have": ("method.uncompressed_layers=[3]", "method.uncompressed_layers: found 3, all"),
    "an adapter beside the FM": (
        lambda folder: (folder / "fm/adapter_config.json").write_text("{}"),
        "fm.path: found ",
    ),
    "a tokenizer that cannot pad": (without_pad, "fm.path: found "),
    "an architecture that cannot be built": ("fm.config.num_attention_heads=3", "fm.config: found "),
    "fewer examples than clients": (labelled(0, 1, 0), "federated.num_clients: found 4, allowed: at most 3 examples"),
    "a negative label": (labelled(0, 1, -1, 0, 1), "task.label_column: found 'label -1 in column label', allowed: 0.."),
    "an id as a label": (labelled(0, 1, 10**12, 0, 1), "task.label_column: found 'label 1000000000000 in column"),
    "one label": (labelled(*[0] * 9), "task.label_column: found 'label 1 in column label', allowed: 0..0, the labels"),
    "no label": (labelled(0, 1, None, 0, 1), "task.label_column: found '1 nulls in column label', allowed: no nulls"),
    "a fraction as a label": (labelled(0.5, 1, 0), "task.label_column: found 'column label of type double', allowed:"),
    "texts beyond the FM's positions": ("fm.max_length=41", "fm.max_length: found 41, allowed: at most 40, the pos"),
    "chunks beyond the FM's positions": (
        "public.chunk_length=41",
        "public.chunk_length: found 41, allowed: at most 40",
    ),
    "an FM of images": (vision_fm, "fm.path: found "),
    "an FM of an unknown kind": (
        lambda folder: (folder / "fm/config.json").write_text('{"model_type": "nonsense"}'),
        "fm.path: found ",
    ),
    "an output folder that is a file": (
        lambda folder: (folder / "out").write_text("mine"),
        "output_dir: found ",
    ),
    "standardized inputs of a head without a bias": (
        lambda folder: tiny_fm("llama").save_pretrained(folder / "fm") or "federated.head_inputs=standardized",
        "federated.head_inputs: found standardized for a head whose first layer has no bias (Llama",
    ),
    "a GPU that is not there": ("server.accelerator=cuda", "server.accelerator: found 'cuda', allowed: auto or cpu"),
    "a stop by a metric that is not evaluated": (
        "stop={metric: loss, patience: 2}",
        "stop.metric: found 'loss', allowed: null, accuracy",
    ),
    "W&B without a key": ("tracking.wandb=online", "tracking.wandb: found 'online', but W&B says: "),
}


@pytest.mark.parametrize(("spoil", "expected"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_before_an_actor_starts_and_leaves_no_trace(tmp_path, monkeypatch, spoil, expected):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr("fedpft.run.pipeline.make_pool", lambda *_: pytest.fail("an actor was started"))
    settings = tiny_text_run(tmp_path)
    setting = spoil(tmp_path) if callable(spoil) else spoil
    if isinstance(setting, str):
        settings.append(setting)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError) as error:
        run(load_config(None, settings))
    assert str(error.value).startswith(expected)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_fm_that_would_be_partly_random_is_refused_before_the_last_run_moves_aside(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(SequentialPool, "close", lambda self: closed.append(self))
    settings = tiny_text_run(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/rounds.jsonl").write_text("a run\n")
    with pytest.raises(ConfigError, match=r"^fm\.path: found .* without bert\.encoder\.layer\..*whole backbone"):
        run(load_config(None, [*settings, "fm.config.num_hidden_layers=4"]))
    assert (tmp_path / "out/rounds.jsonl").read_text() == "a run\n"
    assert len(closed) == 1


def test_an_architecture_that_cannot_take_the_tasks_images_is_one_line(tmp_path):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    with pytest.raises(ConfigError, match=r"^fm\.path / fm\.config: found 'scratch://vit', which fails on") as error:
        run(load_config(None, [*tiny_vision_run(tmp_path), "fm.config.num_channels=1"]))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_clients_with_one_example_each_train(tmp_path):
    alone = ["task.max_train_examples=4", "federated.sampling=full", "align.neurons={interval: 1}"]
    result = run(load_config(None, [*tiny_text_run(tmp_path), *SHORT, *alone, "federated.rounds=2"])).result
    records = [json.loads(line) for line in (tmp_path / "out/rounds.jsonl").read_text().splitlines()]
    assert [record["clients"] for record in records] == [[0, 1, 2, 3]] * 2
    assert all(record["train_loss"] > 0 for record in records)
    assert 0 <= result["fm"] <= 1


def test_empty_texts_train(tmp_path):
    settings = tiny_text_run(tmp_path)
    write_train(tmp_path, [""] * 8, [0, 1] * 4)
    assert run(load_config(None, [*settings, *SHORT])).result["rounds"] == 1


def test_alignments_that_diverge_are_named_and_not_cached(tmp_path):
    settings = [*tiny_text_run(tmp_path), f"cache.dir={tmp_path / 'cache'}"]
    with pytest.raises(ConfigError, match=r"^align\.layers: found settings after which .* try a lower lr$"):
        run(load_config(None, [*settings, "align.layers.lr=1e30"]))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    with pytest.raises(ConfigError, match=r"^align\.neurons: found settings after which .* try a lower lr$"):
        run(load_config(None, [*settings, "align.neurons.lr=1e30"]))
    saved = sorted(path.name for path in (tmp_path / "out/checkpoints").iterdir())
    assert saved == ["round-0000", "round-0001"], "the rounds before stay"


def test_a_disk_that_fills_up_stops_the_run_which_then_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch):
    settings = tiny_text_run(tmp_path)
    straight = run(load_config(None, [*settings, f"output_dir={tmp_path / 'straight'}"])).result
    flush, room = os.fsync, iter(range(14))

    def filling(descriptor):
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", filling)
    with pytest.raises(OSError, match="No space left"), pytest.warns(UserWarning, match="checkpoint not written"):
        run(load_config(None, settings))
    monkeypatch.undo()
    assert not (tmp_path / "out/result.json").exists()
    resumed = go_on(load_config(None, settings)).result
    assert {key: resumed[key] for key in ("fm", "sub_fm", "best")} == {
        key: straight[key] for key in ("fm", "sub_fm", "best")
    }
    rounds = [json.loads(line)["round"] for line in (tmp_path / "out/rounds.jsonl").read_text().splitlines()]
    assert rounds == [1, 2, 3, 4]


class FullAtTheEnd(SilentObserver):
    """Lets no file grow beyond 1 kB once the results are written."""

    def stage(self, title):
        if title == "write results":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_disk_that_is_full_at_the_end_leaves_nothing_half_written_and_the_run_is_finished_by_resume(tmp_path):
    config = load_config(None, [*tiny_text_run(tmp_path), *SHORT])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match="File too large"):
            run(config, FullAtTheEnd())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["checkpoints", "config.yaml", "ended.json", "partition.json", ROUNDS_FILE, "tracking.json"]
    go_on(config)
    assert {path.name for path in (tmp_path / "out").iterdir()} <= set(RUN.entries)


def test_what_is_saved_bears_the_tasks_labels_and_a_result_that_is_cut_off_is_named(tmp_path):
    config = load_config(None, [*tiny_text_run(tmp_path), *SHORT])
    (tmp_path / "task/classes.txt").write_text("calm\nangry\n")
    run(config)
    sub_fm = load_sub_fm(tmp_path / "out/sub_fm", modality="text")
    assert sub_fm.config.id2label == {0: "calm", 1: "angry"}
    assert sub_fm.config.label2id == {"calm": 0, "angry": 1}
    (tmp_path / "out/result.json").write_text('{"fm": ')
    with pytest.raises(ConfigError, match=r"^output_dir: found a result\.json in .* that is not JSON"):
        go_on(config)


def test_results_that_could_not_be_saved_are_refused_before_an_actor_starts(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise ValueError("no\nsuch file")

    monkeypatch.setattr("fedpft.run.pipeline.make_pool", lambda *_: pytest.fail("an actor was started"))
    settings = tiny_text_run(tmp_path)
    monkeypatch.setattr("transformers.PretrainedConfig.save_pretrained", fails)
    with pytest.raises(
        ConfigError, match=r"^fm\.path / fm\.config: found .*be saved and opened again \(ValueError: no su"
    ):
        run(load_config(None, settings))


@pytest.mark.parametrize(
    "field", [pytest.param("attn_implementation=flex_attention", marks=pytest.mark.cluster), "sliding_window=0"]
)
def test_an_fm_that_fails_on_longer_texts_or_backwards_alone_is_refused_before_the_rounds(tmp_path, field):
    settings = tiny_text_run(tmp_path, "gemma")
    file = tmp_path / "fm/config.json"
    key, value = field.split("=")
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: int(value) if value.isdigit() else value}))
    with pytest.raises(ConfigError, match=r"^fm\.path / fm\.config: found .*, which fails on examples of the task"):
        run(load_config(None, settings))
    assert not (tmp_path / "out").exists()


def test_on_the_command_line_a_run_to_which_nobody_comes_is_one_line_and_an_exit_code(tmp_path, monkeypatch, capsys):
    (tmp_path / "base.yaml").write_text("")
    tiny = [*tiny_text_run(tmp_path), *SHORT, "align.neurons.kind=none", "federated.dropout_ratio=0.999999"]
    monkeypatch.setattr(sys, "argv", ["fedpft", "run", str(tmp_path / "base.yaml"), *tiny])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stopped: 1 rounds in a row did not count: ")


def test_a_run_in_which_a_client_never_got_through_ends_with_exit_code_1_unless_that_is_allowed(tmp_path, monkeypatch):
    fit = LocalClient.fit

    def fails(client, plan, client_id):
        if client_id == 2:
            raise ValueError("broken here")
        return fit(client, plan, client_id)

    monkeypatch.setattr(LocalClient, "fit", fails)
    (tmp_path / "base.yaml").write_text("")
    settings = [*tiny_text_run(tmp_path), *SHORT, "federated.sampling=full", "align.neurons.kind=none"]
    for allowed, code in (("false", 1), ("true", 0)):
        done = CliRunner().invoke(
            cli.app, ["run", str(tmp_path / "base.yaml"), *settings, f"federated.allow_dropped={allowed}"]
        )
        assert done.exit_code == code, done.output
        assert "never trained: 1 of the clients that were drawn, 2;" in done.output
        assert json.loads((tmp_path / "out/result.json").read_text())["never_trained"] == [2]
    again = CliRunner().invoke(cli.app, ["resume", str(tmp_path / "out"), "federated.allow_dropped=false"])
    assert again.exit_code == 1, "also when it only gives its result"
    strict = load_config(tmp_path / "out/config.yaml", ["federated.allow_dropped=false"])
    with pytest.raises(NotCountedError, match=r"^never trained: 1 of the clients"):  # so a sweep's trial has failed
        play_trial("fm", None, Trial(name="a", settings={}, config=strict), lambda *_: None)


def test_good_images_are_decoded_once_and_broken_ones_named_before_an_actor_starts(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    for split in ("train", "validation"):
        for name in ("cat", "dog"):
            (tmp_path / f"task/{split}/{name}").mkdir(parents=True)
            for number in range(3):
                Image.effect_noise((8, 8), 50).save(tmp_path / f"task/{split}/{name}/{number}.png")
    task = f"task={{name: custom, path: {tmp_path / 'task'}, image_column: image, label_column: label}}"
    looked, look = [], inputs.look_at_pixels
    monkeypatch.setattr(inputs, "look_at_pixels", lambda *arguments: looked.append(1) or look(*arguments))
    config = load_config(None, [*tiny_vision_run(tmp_path), task, f"cache.dir={tmp_path / 'cache'}"])
    inputs.load_data(config, SilentProgress())
    inputs.load_data(config, SilentProgress())
    assert len(looked) == 2, "each split once"
    broken = tmp_path / "task/train/dog/1.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    monkeypatch.setattr("fedpft.run.pipeline.make_pool", lambda *_: pytest.fail("an actor was started"))
    with pytest.raises(ConfigError, match=r"found 'a broken image .* in train/dog/1\.png, row 4 of column image'"):
        run(config)
    dropped = load_config(None, [*tiny_vision_run(tmp_path), task, "task.on_bad_example=drop"])
    with pytest.warns(UserWarning, match=r"dropped 1 of 6 training examples"):
        data = inputs.load_data(dropped, SilentProgress())
    assert len(data.train) == 5


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "rounds.jsonl"), "No space left on device: 'rounds.jsonl'"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "rounds.jsonl"), "Read-only file system: 'rounds.jsonl'"),
        (OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)), None),
        (MemoryError(), "error: not enough memory for these settings (MemoryError)"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 64 bytes\nmore"),
            "can't allocate memory: 64 bytes)",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried"),
            "error: not enough memory for these settings (CUDA",
        ),
    ],
)
def test_a_full_disk_or_memory_is_one_line_with_the_way_on(tmp_path, monkeypatch, capsys, error, said):
    def fails(*_, **__):
        (tmp_path / "out/checkpoints/round-0003").mkdir(parents=True)
        (tmp_path / "out/checkpoints/round-0003/state.json").write_text("{}")
        raise error

    monkeypatch.setattr("fedpft.run.launch.run", fails)
    (tmp_path / "base.yaml").write_text(f"output_dir: {tmp_path / 'out'}")
    monkeypatch.setattr(sys, "argv", ["fedpft", "run", str(tmp_path / "base.yaml")])
    with pytest.raises(SystemExit if said else OSError) as ended:
        cli.main()
    if said:
        assert ended.value.code == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert said in line
        assert line.endswith(f"; go on with: fedpft resume {tmp_path / 'out'}")


def test_data_are_loaded_where_no_file_can_be_written_and_the_fm_is_not_blamed_for_that(tmp_path, monkeypatch):
    config = load_config(None, [*tiny_text_run(tmp_path), "task.max_train_examples=20"])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            inputs.load_data(config, SilentProgress())
        monkeypatch.setattr(inputs, "rehearse", lambda *_: None)  # which writes an FM without weights
        assert len(inputs.load_data(config, SilentProgress()).train) == 20
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_check_of_the_fm_changes_no_random_state(tmp_path):
    from fedpft.run.inputs import load_fm_and_data
    from fedpft.trainer import SilentProgress

    config = load_config(None, tiny_text_run(tmp_path))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    load_fm_and_data(config, SilentProgress())
    assert torch.equal(torch.get_rng_state(), before)
