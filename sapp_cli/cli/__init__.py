"""The command line: Typer verbs, rich rendering, and the one place where errors become exit codes."""
