"""`python -m stages.evaluate run REQUEST.json`."""

from stages.contract import main
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.run import run

main(EvaluateConfig, run)
