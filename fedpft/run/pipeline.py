"""From a config to a tuned foundation model: the one page that wires everything.

task, data -> pool (actors start importing) -> FM -> method.build_proxy [construct, align layers] -> pool.broadcast
-> rounds [fit, aggregate, align neurons, carry adapter over, evaluate, checkpoint]
-> adapter/ (the FM's), sub_fm/, sub_fm_adapter/, examples.safetensors, result.json, report.html

A run that goes on from a checkpoint takes the same way: FM and data are loaded again, the proxy and all other state
come from the checkpoint, and the rounds that are left follow.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedpft.config import Config, dump_config
from fedpft.data.histogram import partition_table
from fedpft.data.sources.memory import GivenData
from fedpft.federated.broadcast import check_quantize, local_settings
from fedpft.federated.dropped import never_through
from fedpft.federated.memory import process_peak_memory_bytes
from fedpft.federated.observer import Forwarding, RunObserver, SilentObserver
from fedpft.federated.pool import ClientPool, SequentialPool
from fedpft.federated.secure_aggregation import SecureAggregation
from fedpft.metrics.table import METRICS
from fedpft.models.loading import architecture
from fedpft.models.lora import save_adapter, without_adapter
from fedpft.models.origin import origin_of
from fedpft.models.quantized_linear import quantizer
from fedpft.models.spread import gpu_of_layers
from fedpft.privacy.table import guarantee_of
from fedpft.report.curves import Curves
from fedpft.report.page import write_page
from fedpft.run.examples import save_examples
from fedpft.run.inputs import load_data, load_fm
from fedpft.run.same_fm import check_same_fm
from fedpft.run.tuning import tune
from fedpft.storage.checkpoint import FOLDER, Checkpoints, RunCheckpoint
from fedpft.storage.client_states import ClientStatesOnDisk
from fedpft.storage.ending import forget_ending, note_ending
from fedpft.storage.lock import held, tell
from fedpft.storage.output import (
    PARTITION_FILE,
    ROUNDS_FILE,
    RUN_FILE,
    check_claimable,
    check_writable,
    claim_output_dir,
    cut_rounds,
    machine,
    new_run_id,
    package_versions,
    run_record,
    write_json,
    write_text,
)
from fedpft.storage.whole import written_whole
from fedpft.tracking.notify import notifying
from fedpft.tracking.services import check_trackers, make_trackers
from fedpft.tracking.trackers import Tracker
from fedpft.trainer import check_devices, gpus_of_fm, set_arithmetic


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves."""

    result: Mapping[str, Any]
    """The content of result.json."""
    locations: Mapping[str, Path | str]
    """What -> where it was written."""


def run(
    config: Config,
    observer: RunObserver | None = None,
    saved: RunCheckpoint | None = None,
    given: GivenData | None = None,
) -> RunResult:
    """Run an experiment and write everything to `config.output_dir`.

    Args:
        config: the run's.
        observer: hears what happens.
        saved: the checkpoint in `config.output_dir` from which to go on (see `fedpft.run.resume`); None: a new run.
        given: data that the caller has in memory, where `task.path` or `public.path` say so.

    Raises:
        ConfigError: settings or data that cannot work, or a run that is in progress in `config.output_dir`; raised
            before an actor starts wherever that can be known.

    """
    with held(Path(config.output_dir)):
        output_dir = Path(config.output_dir).resolve()
        with notifying(config, output_dir) as hearing:
            return _run(config, output_dir, _Telling(observer or SilentObserver(), output_dir), saved, given, hearing)


class _Telling(Forwarding):
    """Tells who looks at the folder what the server is doing; the clients' part of a round is no stage."""

    def __init__(self, observer: RunObserver, folder: Path) -> None:
        super().__init__(observer)
        self._folder = folder

    def stage(self, title: str) -> None:
        tell(self._folder, title)
        super().stage(title)

    def round_started(self, round_index: int, num_rounds: int, client_ids: Sequence[int]) -> None:
        tell(self._folder, "")
        super().round_started(round_index, num_rounds, client_ids)


def _run(
    config: Config,
    output_dir: Path,
    observer: RunObserver,
    saved: RunCheckpoint | None,
    given: GivenData | None,
    hearing: Sequence[Tracker],
) -> RunResult:
    start = time.perf_counter() - (saved.seconds if saved else 0.0)
    (check_writable if saved else check_claimable)(output_dir)
    check_trackers(config.tracking)
    check_devices(config)
    check_quantize(config)
    set_arithmetic(config)
    if config.server.num_threads is not None:
        torch.set_num_threads(config.server.num_threads)
    data = load_data(config, observer, given)
    if saved is None:
        guarantee_of(config, data.partition.sizes)  # says what cannot be, before any actor starts
    SecureAggregation.of_run(config, data.partition.sizes)  # the same
    if num_gpus := gpus_of_fm(config):
        gpu_of_layers(architecture(config.fm, data.modality, len(data.label_names), data.kind), num_gpus)  # and this
    observer.stage("start actors" if config.pool.kind == "ray" else "start")
    pool = make_pool(config, observer.note)
    try:
        if pool.dashboard:
            observer.note(f"dashboard  {pool.dashboard}")
        own_fm = output_dir / "fm" if config.fm.pretrain.num_epochs else None  # nobody else has this FM
        fm = load_fm(config, data, observer, own_fm if saved else None)
        for line in origin_of(fm).notes:
            observer.note(line)
        past: list[dict[str, Any]] = []
        if saved is None:
            claim_output_dir(output_dir, say=observer.note)
            (output_dir / ROUNDS_FILE).touch()  # first of all, so that the folder is known for what it is
        else:
            check_same_fm(fm, saved.extra.get("fm", {}), saved.environment, str(own_fm or config.fm.path))
            past = cut_rounds(output_dir, saved.rounds_done)
            forget_ending(output_dir)
        write_text(output_dir / "config.yaml", dump_config(config))
        if not config.privacy.strict:
            write_json(output_dir / PARTITION_FILE, partition_table(data))
        run_id = saved.run_id if saved else new_run_id()
        write_json(output_dir / RUN_FILE, run_record(output_dir) | {"run_id": run_id})
        more = [*pool.trackers(f"{config.name}-{run_id}"), *hearing]
        done = {"rounds_done": saved.rounds_done, "align_steps": saved.align_steps} if saved else {}
        tracker = make_trackers(config, output_dir, run_id, METRICS[data.metrics[0]].goal, more, **done)
        curves = Curves(observer, tracker, saved.align_steps if saved else 0, past)
        checkpoints = Checkpoints(output_dir / FOLDER, config.checkpoint.interval)
        states = ClientStatesOnDisk(output_dir / FOLDER, saved.rounds_done if saved else 0)

        settings, environment = asdict(config), run_environment(config)

        def keep(checkpoint: RunCheckpoint) -> None:
            complete = replace(
                checkpoint,
                run_id=run_id,
                align_steps=curves.steps,
                seconds=time.perf_counter() - start,
                config=settings,
                environment=environment,
            )
            checkpoints.save(complete)
            oldest = checkpoints.oldest_round
            states.prune(checkpoint.rounds_done if oldest is None else oldest)

        try:
            if own_fm and saved is None:
                with written_whole(own_fm) as folder:
                    fm.save_pretrained(folder)
                    if data.tokenizer is not None:
                        data.tokenizer.save_pretrained(folder)
            outcome = tune(config, fm, data, pool, tracker, curves, saved=saved, keep=keep, states=states)
            checkpoints.flush()
            observer.stage("write results")
            files = {"adapter": output_dir / "adapter"}
            with written_whole(files["adapter"]) as folder:
                save_adapter(outcome.tuned_fm, folder)
            if outcome.sub_fm is not outcome.tuned_fm:
                files |= {name: output_dir / name for name in ("sub_fm_adapter", "sub_fm")}
                with written_whole(files["sub_fm_adapter"]) as folder:
                    save_adapter(outcome.sub_fm, folder)
                with written_whole(files["sub_fm"]) as folder:
                    without_adapter(outcome.sub_fm).save_pretrained(folder)
            if not config.privacy.strict:
                save_examples(outcome.tuned_fm, data, output_dir)
            versions = package_versions()
            memory = {"driver": process_peak_memory_bytes(), "actors": pool.peak_memory_bytes()}
            seconds = time.perf_counter() - start
            result = (
                outcome.result
                | _never_trained(output_dir)
                | {
                    "peak_memory_bytes": memory,
                    "wall_seconds": seconds,
                    "versions": versions,
                    "environment": {key: value for key, value in environment.items() if key not in versions},
                }
            )
            files["result"] = output_dir / "result.json"
            write_json(files["result"], result)
            if own_fm:
                files["fm"] = own_fm
            files |= write_page(output_dir)
            tracker.finish(result, files)
            checkpoints.discard()
        except BaseException as error:
            checkpoints.flush()
            note_ending(output_dir, config, error)
            tracker.fail()
            raise
    finally:
        pool.close()
    return RunResult(result, {"config": output_dir / "config.yaml", **tracker.locations, **files})


def _never_trained(output_dir: Path) -> dict[str, list[int]]:
    """Return what result.json says of clients without any update, if there are such."""
    lines = (output_dir / ROUNDS_FILE).read_text(encoding="utf-8").splitlines()
    clients = never_through(json.loads(line) for line in lines)
    return {"never_trained": clients} if clients else {}


def make_pool(config: Config, say: Callable[[str], None] = lambda line: None) -> ClientPool:
    """Return the pool that the config asks for, which may `say` a line; Ray is imported only when it is used."""
    if config.pool.kind == "sequential":
        return SequentialPool(config.pool.max_retries)
    from fedpft.simulation.pool.packed_pool import PackedPool

    return PackedPool(config.pool, config.federated.cohort_size, say)


def run_environment(config: Config) -> dict[str, Any]:
    """Return on what the last bits of the run's numbers depend besides the config."""
    threads = config.server.num_threads or torch.get_num_threads()
    products = (config.server if config.pool.kind == "sequential" else config.pool).matmul_precision
    return machine() | {
        "driver threads": threads,
        "clients' accelerator": local_settings(config).accelerator,
        "clients' matmul precision": products,
        **({} if config.fm.dtype == "float32" else {"frozen weights": config.fm.dtype}),
        **({} if config.pool.quantize == "none" else {"clients' frozen weights by": quantizer()}),
    }
