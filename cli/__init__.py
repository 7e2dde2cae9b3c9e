"""The command line: Typer commands and what they draw in the terminal."""
