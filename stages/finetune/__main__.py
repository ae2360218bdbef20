"""Embeddings and samples to a checkpoint."""

from stages.contract import main
from stages.finetune.config import FinetuneConfig
from stages.finetune.launch import leads, run

main(FinetuneConfig, run, leads=leads())
