"""What a run gives away, on the command line."""

import typer
from rich.console import Console

from fedpft.cli.arguments import FinishedRun, Format, print_json

privacy_app = typer.Typer(rich_markup_mode=None)


@privacy_app.command()
def audit(run_dir: FinishedRun, form: Format = "text") -> None:
    """Measure what a run gives away: membership in the clients' data, the FM's skill, epsilon by canaries."""
    from fedpft.report.screen import Screen

    console = Console(stderr=form == "json")
    with Screen(console) as screen:
        screen.stage("load libraries")
        from fedpft.report.audit import print_audit
        from fedpft.run.audit import audit as audit_run

        found = audit_run(run_dir, screen)
    if form == "json":
        print_json(found)
    else:
        print_audit(console, found)
