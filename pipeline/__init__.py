"""What the DAG runs: one module a rule. Every step can be run by hand as ``python -m pipeline.<rule>``."""
