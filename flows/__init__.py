"""The DAG, its runners and the `malmm` command. Knows Prefect; never torch."""
