"""`python -m sapp_cli` is `sapp`."""

from sapp_cli.cli.main import main

main()
