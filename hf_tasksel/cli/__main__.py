"""Lets `accelerate launch -m hf_tasksel.cli` and `python -m hf_tasksel.cli` start the command line."""

import sys

from .main import main

if __name__ == "__main__":
    sys.exit(main())
