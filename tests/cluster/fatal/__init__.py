"""A folder for PYTHONPATH: Python loads its sitecustomize before anything else."""
