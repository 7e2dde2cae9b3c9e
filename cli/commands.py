"""Every command of ``llmrun``, by name. Importing it must stay cheap: ``--help`` pays for all of it."""

from __future__ import annotations

from typing import Annotated

import typer

from . import chat, doctor, eval, inspect, pull, run, tokenize
from .options import expand_options

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: no Rich at start-up, and the same text on every terminal
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("chat")(expand_options(chat.chat))
app.command("run")(expand_options(run.run))
app.command("inspect")(inspect.inspect)
app.command("tokenize")(tokenize.tokenize)
app.command("detokenize")(tokenize.detokenize)
app.command("pull")(pull.pull)
app.command("list")(pull.list_models)
app.command("rm")(pull.remove)
app.command("doctor")(doctor.doctor)

eval_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure a model.")
eval_app.command("perplexity")(expand_options(eval.perplexity))
app.add_typer(eval_app, name="eval")


def _show_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"llmrun {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Run quantised language models on this machine's CPU."""
