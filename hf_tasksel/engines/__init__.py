"""Where independent pieces of work run: on this machine, on a Ray cluster, or on Slurm."""
