"""The command line. `python -m hf_tasksel.cli` is what launchers start."""
