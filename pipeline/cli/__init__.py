"""What ``python -m pipeline`` does: list what there is, show a text as it is written, compare two methods."""
