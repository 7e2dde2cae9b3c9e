"""Every command of ``llmrun`` as a Typer application: for help, for wrong usage, and for what ``quick.py`` leaves."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
import typer.core

from .command_table import COMMANDS, load_command
from .declare import Option, Parameter, UsageError, call, parameters_of


class PlainUsage(typer.core.TyperCommand):
    """A command whose usage line names arguments in the same way with every version of Typer."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002  # the signature is Typer's
        """Return the parts of the usage line that follow the command's name."""
        return ["[OPTIONS]", *(usage_name(p) for p in self.params if p.param_type_name == "argument")]


def usage_name(argument: Any) -> str:
    """Return an argument as a usage line shows it, in brackets where it may be left out."""
    name = bare_name(argument)
    return name if argument.required else f"[{name}]"


def bare_name(argument: Any) -> str:
    """Return an argument's name without the brackets around the whole of it."""
    name = str(argument.metavar or argument.name.upper())
    return name[1:-1] if name.startswith("[") and name.endswith("]") else name


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: no Rich at start-up, and the same text on every terminal
    context_settings={"help_option_names": ["-h", "--help"]},
)
eval_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure a model.")
bench_app = typer.Typer(rich_markup_mode=None, subcommand_metavar="[COMMAND]")


def typer_command(command: Callable[..., None]) -> Callable[..., None]:
    """Return ``command`` with a signature that Typer reads, groups replaced by their fields."""
    parameters = parameters_of(command)

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        try:
            call(command, values)
        except UsageError as error:
            raise typer.BadParameter(str(error), param_hint=error.hint) from None

    signature = [
        inspect.Parameter(
            p.name, inspect.Parameter.KEYWORD_ONLY, default=p.default, annotation=Annotated[p.type, _typer_info(p)]
        )
        for p in parameters
    ]
    expanded.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    expanded.__annotations__ = {}
    return expanded


def _group_command(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that has commands of its own below it: it runs when none of them is named."""
    run: Any = typer_command(command)

    @functools.wraps(command)
    def either(context: typer.Context, **values: Any) -> None:
        if context.invoked_subcommand is None:
            run(**values)

    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    either.__signature__ = inspect.Signature([context, *run.__signature__.parameters.values()])  # type: ignore[attr-defined]
    either.__annotations__ = {}
    return either


def _typer_info(parameter: Parameter) -> Any:
    declared = parameter.declared
    if isinstance(declared, Option):
        return typer.Option(
            *declared.names,
            help=declared.help,
            metavar=declared.metavar,
            min=declared.min,
            max=declared.max,
            show_default=declared.show_default,
        )
    return typer.Argument(metavar=declared.metavar, help=declared.help, show_default=declared.show_default)


groups = {"": app, "eval": eval_app, "bench": bench_app}
for words in COMMANDS:
    group, _, name = words.rpartition(" ")
    if words in groups:
        groups[words].callback(invoke_without_command=True)(_group_command(load_command(words)))
    else:
        groups[group].command(name, cls=PlainUsage)(typer_command(load_command(words)))
app.add_typer(bench_app, name="bench")
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
