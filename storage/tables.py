"""Arrow schemas of the tables that pass between stages. docs/storage.md describes every column."""

import pyarrow as pa

TURN = pa.struct([("question", pa.string()), ("answer", pa.string())])

# One row a thing to answer.
SAMPLES = pa.schema(
    [
        pa.field("sample", pa.string(), nullable=False),  # "<split>/<dialogue>/<turn>"
        pa.field("split", pa.string(), nullable=False),  # train | val | test
        pa.field("task", pa.string(), nullable=False),  # dialogue
        pa.field("dialogue", pa.string(), nullable=False),  # clusters of the bootstrap: "<split>/<image id>"
        pa.field("media", pa.string()),  # SHA-256 of the file's bytes; null when the file is missing
        pa.field("media_path", pa.string(), nullable=False),  # below the media root
        pa.field("turn", pa.int8(), nullable=False),  # 0-9
        pa.field("caption", pa.string(), nullable=False),
        pa.field("history", pa.list_(TURN), nullable=False),  # the turns before this one, oldest first
        pa.field("question", pa.string(), nullable=False),
        pa.field("answer", pa.string()),  # null where the set keeps it back
        pa.field("candidates", pa.list_(pa.string())),  # 100 in VisDial; null where there are none
        pa.field("gt_index", pa.int16()),  # the true one among the candidates
        pa.field("relevance", pa.list_(pa.float32())),  # dense annotation, one a candidate, 0-1
    ]
)

# One row an item that a stage worked on, in every artifact.
LEDGER = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # done | reused | failed | skipped
        pa.field("error", pa.string()),  # class name
        pa.field("message", pa.string()),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("seconds", pa.float64()),
    ]
)

# What a features artifact vouches for: every item is in the bank it names.
FEATURE_ITEMS = pa.schema(
    [
        pa.field("modality", pa.string(), nullable=False),  # vision | text | audio
        pa.field("digest", pa.string(), nullable=False),  # SHA-256 of the content, hexadecimal
    ]
)

# One index part a shard of the feature bank.
FEATURE_INDEX = pa.schema(
    [
        pa.field("digest", pa.binary(32), nullable=False),
        pa.field("modality", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("first_row", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
    ]
)
