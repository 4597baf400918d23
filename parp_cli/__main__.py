"""`python -m parp_cli` is `parp`."""

from parp_cli.cli.app import main

main()
