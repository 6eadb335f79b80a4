"""`python -m bge_pipeline` is the command `bge-pipeline`."""

from bge_pipeline.cli import main

main()
