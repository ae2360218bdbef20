"""The store: artifacts by key, ledgers, the feature bank (Zarr v3), tables (Arrow). No torch, no Prefect.

artifacts/<kind>/<key>/   manifest.json  ledger.parquet  and the data
features/<encoder>/       shards/<id>.zarr  index/<id>.parquet
"""

from storage.artifacts import Artifact, Draft, find, is_current, is_published, published
from storage.errors import CorruptArtifact, MissingArtifact, MissingEmbedding, StorageError
from storage.keys import canonical, differences, key_of
from storage.ledger import Ledger
from storage.store import Store

__all__ = [
    "Artifact",
    "CorruptArtifact",
    "Draft",
    "Ledger",
    "MissingArtifact",
    "MissingEmbedding",
    "StorageError",
    "Store",
    "canonical",
    "differences",
    "find",
    "is_current",
    "is_published",
    "key_of",
    "published",
]
