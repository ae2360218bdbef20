from stages.contract import main
from stages.ingest.config import IngestConfig
from stages.ingest.run import run

main(IngestConfig, run)
