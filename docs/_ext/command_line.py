"""The page of commands, by Typer itself."""

import re

import typer
from typer.cli import get_docs_for_click

from fedpft.cli.main import app


def commands() -> str:
    """Return usage, arguments and options of every command, a section each."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="fedpft"), name="fedpft")
    text = text.partition("**Options**")[2].partition("\n## ")[2]  # the commands' list is the page's own contents
    text = re.sub(r"[{]([A-Z_.]+)[}]", r"\1", text).replace("[[KEY=VALUE]...]...", "[KEY=VALUE]...")
    return f"## {text}"
