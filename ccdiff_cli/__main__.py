"""``python -m ccdiff_cli``."""

from .cli import main

main()
