"""`python -m stages.embed_imagebind run REQUEST.json`."""

from stages.contract import main
from stages.embed_imagebind.config import EmbedConfig
from stages.embed_imagebind.run import run

main(EmbedConfig, run)
