"""Embeddings and samples to a checkpoint."""

from stages.contract import main
from stages.finetune.config import FinetuneConfig
from stages.finetune.run import run

main(FinetuneConfig, run)
