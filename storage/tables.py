"""Arrow schemas of the tables that pass between stages. docs/storage.md describes every column."""

import pyarrow as pa

TURN = pa.struct([("question", pa.string()), ("answer", pa.string())])

# One row a thing to answer.
SAMPLES = pa.schema(
    [
        pa.field("sample", pa.string(), nullable=False),  # "<split>/<dialogue>/<turn>", "<split>/<record's own id>"
        pa.field("split", pa.string(), nullable=False),  # train | val | test
        pa.field("task", pa.string(), nullable=False),  # dialogue | question | caption | classification
        pa.field("dialogue", pa.string(), nullable=False),  # clusters of the bootstrap: "<split>/<image or video>"
        pa.field("media", pa.string()),  # SHA-256 of the file's bytes; null when the file is missing
        pa.field("media_kind", pa.string(), nullable=False),  # image | video
        pa.field("media_path", pa.string(), nullable=False),  # below the media root
        pa.field("start", pa.float64()),  # seconds in the video where the sample begins; null: at its begin
        pa.field("end", pa.float64()),  # seconds in the video where it ends; null: at its end
        pa.field("turn", pa.int8(), nullable=False),  # 0-9; 0 outside dialogues
        pa.field("category", pa.string()),  # kind of question, where the set tells
        pa.field("caption", pa.string()),  # what is told of the media beforehand; null where nothing is
        pa.field("history", pa.list_(TURN), nullable=False),  # the turns before this one, oldest first
        pa.field("question", pa.string(), nullable=False),
        pa.field("answer", pa.string()),  # null where the set keeps it back
        pa.field("candidates", pa.list_(pa.string())),  # 100 in VisDial; null where there are none
        pa.field("gt_index", pa.int16()),  # the true one among the candidates
        pa.field("relevance", pa.list_(pa.float32())),  # dense annotation, one a candidate, 0-1
    ]
)

# One row a video of a frames artifact (videos.parquet).
VIDEOS = pa.schema(
    [
        pa.field("video", pa.string(), nullable=False),  # SHA-256 of the file's bytes
        pa.field("media_path", pa.string(), nullable=False),
        pa.field("frames", pa.int32(), nullable=False),  # how many were planned, and taken
        pa.field("pts", pa.list_(pa.float64()), nullable=False),  # seconds since the first frame, one a taken frame
        pa.field("width", pa.int32(), nullable=False),  # of the taken frames: rotated, short side scaled
        pa.field("height", pa.int32(), nullable=False),
        pa.field("codec", pa.string(), nullable=False),
        pa.field("rate", pa.float64(), nullable=False),  # frames a second in the file, on average
        pa.field("duration", pa.float64(), nullable=False),  # seconds, from the packets
        pa.field("rotation", pa.int16(), nullable=False),  # degrees that were applied
        pa.field("audio", pa.bool_(), nullable=False),  # has an audio track
        pa.field("warnings", pa.list_(pa.string()), nullable=False),
        pa.field("shard", pa.string()),  # the file with its frames; null with format: direct
        pa.field("first_row_group", pa.int32()),
        pa.field("row_groups", pa.int32()),
    ]
)

# One row a taken frame (frames-<number>.parquet); a row group holds frames of one video alone.
FRAMES = pa.schema(
    [
        pa.field("video", pa.string(), nullable=False),
        pa.field("k", pa.int32(), nullable=False),  # the frame shown at k / fps seconds
        pa.field("pts", pa.float64(), nullable=False),  # seconds since the first frame
        pa.field("image", pa.binary(), nullable=False),  # JPEG or PNG
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
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
        pa.field("modality", pa.string(), nullable=False),  # vision | text | frames | audio
        pa.field("digest", pa.string(), nullable=False),  # SHA-256 of the content, hexadecimal
    ]
)

# When the rows of a video's features are (timelines.parquet of a features artifact): one row a video and modality.
TIMELINES = pa.schema(
    [
        pa.field("video", pa.string(), nullable=False),  # SHA-256 of the file's bytes
        pa.field("modality", pa.string(), nullable=False),  # frames | audio
        pa.field("start", pa.list_(pa.float64()), nullable=False),  # seconds since the first frame, one a step
        pa.field("end", pa.list_(pa.float64()), nullable=False),  # of a frame: when the next one is taken
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
