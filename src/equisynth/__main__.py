"""``python -m equisynth``."""

from equisynth.cli import main

main()
