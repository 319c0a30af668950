"""What the files in ``results/`` must look like."""
