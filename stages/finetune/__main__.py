"""Embeddings and samples to a checkpoint."""

from stages.contract import main
from stages.finetune.config import FinetuneConfig
from stages.finetune.launch import rank, run

main(FinetuneConfig, run, rank=rank())
