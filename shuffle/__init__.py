"""Models that generate in parallel, one file or folder each. Empty for now: the baselines come first."""
