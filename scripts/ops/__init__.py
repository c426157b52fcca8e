"""Running and watching the processes of a run."""
