"""``python -m adder_zoo`` is ``adder-zoo``."""

from .cli import main

main(prog_name="adder-zoo")
