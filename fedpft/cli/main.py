"""The command line: words to functions, nothing else."""

import os
import shlex
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedpft.cli.arguments import ConfigPath, FinishedRun, Format, Overrides, Resume, print_json
from fedpft.cli.board import board_app
from fedpft.cli.compare import compare_app
from fedpft.cli.console import say_on, take_any_text
from fedpft.cli.dashboard import dashboard_app
from fedpft.cli.environment import hush_libraries, settle_caches
from fedpft.cli.jobs import jobs_app
from fedpft.cli.privacy import privacy_app
from fedpft.cli.start import start_app
from fedpft.cli.sweeps import sweep_app
from fedpft.cli.sync import sync_app
from fedpft.config import Config, ConfigError, doubtful_settings, load_config
from fedpft.interrupt import Interrupted, RunStoppedError, interruptible, lack_of_memory, unmasked
from fedpft.storage.whole import full_disk

app = typer.Typer(
    help="Federated Proxy Fine-Tuning of foundation models.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

app.add_typer(start_app)
app.add_typer(jobs_app)
app.add_typer(sweep_app)
app.add_typer(compare_app)
app.add_typer(board_app)
app.add_typer(dashboard_app)
app.add_typer(privacy_app)
app.add_typer(sync_app)
cache_app = typer.Typer(
    help="What earlier runs built: sub-FMs, and training data on disk.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(cache_app, name="cache")

RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The output_dir of a run that did not get to its end.")]
Out = Annotated[Path | None, typer.Option("--out", help="New or empty folder; default: RUN_DIR/export.")]
Merge = Annotated[
    bool, typer.Option("--merge", help="Fold LoRA into the FM; else it lies beside the untuned FM, in adapter/.")
]
Rounds = Annotated[int, typer.Option(help="Rounds of each run, at least 2.")]
Full = Annotated[bool, typer.Option("--full", help="Show all settings, also those that are the defaults.")]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster that this machine is in: `auto` or host:port; default: one of its own.")
]
CacheDir = Annotated[str | None, typer.Option("--dir", help="Cache folder; default: $FEDPFT_CACHE or ~/.cache/fedpft.")]
KeyPrefixes = Annotated[list[str] | None, typer.Argument(metavar="[KEY_PREFIX]...", help="First digits of keys.")]


@app.command()
def run(
    config_path: ConfigPath,
    overrides: Overrides = None,
    address: Address = None,
    resume: Resume = False,
    form: Format = "text",
) -> None:
    """Run an experiment: construct, align, tune federatedly, plug in, evaluate."""
    _run(_load(config_path, overrides, address), resume=resume, form=form)


@app.command()
def resume(run_dir: RunDir, overrides: Overrides = None, address: Address = None, form: Format = "text") -> None:
    """Go on with a run that was stopped; only settings without influence on its numbers may change."""
    if not (run_dir / "config.yaml").exists():
        raise ConfigError(f"RUN_DIR: found {str(run_dir)!r}, allowed: the output_dir of a run (it has a config.yaml)")
    config = _load(run_dir / "config.yaml", overrides, address)
    _run(replace(config, output_dir=str(run_dir)), resume=True, form=form)


@app.command()
def plan(
    config_path: ConfigPath,
    overrides: Overrides = None,
    address: Address = None,
    full: Full = False,
    form: Format = "text",
) -> None:
    """Show what a run would do, without training: settings, partition, parameters, bytes, memory, actors."""
    config = _load(config_path, overrides, address)
    from fedpft.report.plan import print_plan
    from fedpft.run.planning import plan as make_plan

    planned = make_plan(config)
    if form == "json":
        print_json(planned)
    else:
        print_plan(Console(), planned, full=full)


@app.command()
def verify(
    config_path: ConfigPath,
    overrides: Overrides = None,
    address: Address = None,
    rounds: Rounds = 3,
    form: Format = "text",
) -> None:
    """Prove that runs, actors, Ray and resuming make no difference on this machine; exit code 1 if one does."""
    config = _load(config_path, overrides, address)
    from fedpft.report.screen import Screen
    from fedpft.report.verification import print_checks

    console = Console(stderr=form == "json")
    with Screen(console) as screen:
        screen.stage("load libraries")
        from fedpft.run.verify import likely_causes
        from fedpft.run.verify import verify as verify_config

        checks = verify_config(config, rounds, screen.stage)
    differences = {check.name: str(check.difference) if check.difference else None for check in checks}
    causes = likely_causes(config, checks)
    if form == "json":
        print_json({"differences": differences, "causes": causes})
    else:
        print_checks(console, differences, causes)
    raise typer.Exit(int(any(check.difference for check in checks)))


@app.command()
def export(run_dir: FinishedRun, out: Out = None, merge: Merge = False) -> None:
    """Write a run's plugged-in FM in Hugging Face layout, with its tokenizer or image processor and a model card."""
    from fedpft.report.screen import Screen

    console = Console()
    with Screen(console) as screen:
        screen.stage("load libraries")
        from fedpft.run.export import export as export_run

        folder = export_run(run_dir, out, merge=merge, progress=screen)
    say_on(console)(f"exported to {folder}")


@cache_app.command("list")
def list_cache(folder: CacheDir = None, form: Format = "text") -> None:
    """Show the sub-FMs and the prepared training data in the cache, the last used first."""
    from fedpft.construct.store import Store, cache_dir
    from fedpft.data.sources.in_use import DATA_FOLDER
    from fedpft.report.cache import print_data, print_entries

    store = Store(cache_dir(folder))
    data = Store(store.folder / DATA_FOLDER)
    if form == "json":
        found = {"entries": store.entries(), "data": data.entries()}
        listed = {name: [vars(entry) for entry in entries] for name, entries in found.items()}
        print_json({"folder": str(store.folder), **listed})
    else:
        print_entries(Console(), store.folder, store.entries())
        print_data(Console(), data.folder, data.entries())


@cache_app.command("clear")
def clear_cache(prefixes: KeyPrefixes = None, folder: CacheDir = None) -> None:
    """Remove sub-FMs and prepared data: all, or those whose keys start so; those that a run is using stay."""
    from fedpft.construct.store import cache_dir
    from fedpft.construct.store import clear_cache as clear
    from fedpft.report.cache import print_cleared

    of_sub_fms, of_data = clear(cache_dir(folder), prefixes or ())
    print_cleared(Console(), of_sub_fms)
    if of_data.num_entries or of_data.num_in_use:
        print_cleared(Console(), of_data, "prepared data set(s)")


def main() -> None:
    """Run the command line; a setting that the user must change ends in one line and exit code 2.

    A run that stops, a disk that is full or memory that is not there ends in one line and exit code 1. Ctrl-C and
    SIGTERM close everything and end with 130 and 143.
    """
    take_any_text()
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # one line, without the code's
    hush_libraries()
    settle_caches()
    # waiting threads spin for some microseconds only: longer stalls every process on the same cores, our actors first
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        with interruptible():
            app()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunStoppedError as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        short = full_disk(error) or lack_of_memory(error)
        if short is None:
            raise
        print(f"error: {short}{_notes(error)}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as stop:
        print(f"interrupted{_notes(stop)}", file=sys.stderr)
        sys.exit(stop.exit_code)


def _run(config: Config, *, resume: bool, form: str) -> None:
    from fedpft.report.screen import Screen, print_note, print_result

    console = Console(stderr=form == "json")
    for line in doubtful_settings(config):
        print_note(console, line)
    try:
        with unmasked(), Screen(console) as screen:
            screen.stage("load libraries")
            from fedpft.run.launch import launch  # torch and transformers, after the config was checked

            finished = launch(config, screen, resume=resume)
    except (Interrupted, Exception) as stop:
        has_own_line = isinstance(stop, ConfigError | RunStoppedError)
        if not has_own_line and any(Path(config.output_dir, "checkpoints").glob("round-*/state.json")):
            stop.add_note(f"; go on with: fedpft resume {shlex.quote(config.output_dir)}")
        raise
    if form == "json":
        print_json({**finished.result, "locations": {name: str(place) for name, place in finished.locations.items()}})
    else:
        print_result(console, finished.result, finished.locations)
    if finished.result.get("never_trained") and not config.federated.allow_dropped:
        console.print("exit code 1, as federated.allow_dropped is false", highlight=False)
        raise typer.Exit(1)


def _notes(error: BaseException) -> str:
    return "".join(getattr(error, "__notes__", ()))


def _load(path: Path, overrides: list[str] | None, address: str | None) -> Config:
    extra = [] if address is None else [f"pool.address={address}"]
    return load_config(path, [*(overrides or []), *extra])


if __name__ == "__main__":
    main()
