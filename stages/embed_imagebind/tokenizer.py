"""CLIP's byte-pair tokenizer (Radford et al., 2021), token for token as ImageBind uses it.

The merges come from the vocabulary file inside the package open_clip_torch, which is never imported. `regex`
splits the text and `tokenizers` merges, so nothing of the algorithm is written again here.
"""

import gzip
import hashlib
import html
import importlib.metadata
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import ftfy
import numpy as np
import regex
from tokenizers.models import BPE

from stages.contract import WrongConfig
from stages.embed_imagebind.stems import CONTEXT_LENGTH, END_OF_TEXT, VOCABULARY_SIZE

START_OF_TEXT = 49406
SPECIAL = {"<|startoftext|>": START_OF_TEXT, "<|endoftext|>": END_OF_TEXT}
MERGES = VOCABULARY_SIZE - len(SPECIAL) - 2 * 256  # the file holds more than CLIP uses
VOCABULARY_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
# Unicode properties must be those of `regex`: other engines' tables are of other Unicode versions.
WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


def tokenize(texts: Sequence[str]) -> np.ndarray:
    """(n, 77) uint16 token ids: start, at most 75 of the text, end, then zeros.

    A longer text is cut and keeps its end-of-text. A text that spells out `<|endoftext|>` has two: ImageBind
    reads the first. Raises WrongConfig when the vocabulary file is not there or not CLIP's."""
    out = np.zeros((len(texts), CONTEXT_LENGTH), np.uint16)
    for row, text in zip(out, texts):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
        words = WORDS.findall(regex.sub(r"\s+", " ", text).lower())
        ids = [START_OF_TEXT, *(token for word in words for token in _word(word))][: CONTEXT_LENGTH - 1]
        row[: len(ids)] = ids
        row[len(ids)] = END_OF_TEXT
    return out


def prompt_lengths(tokens: np.ndarray) -> np.ndarray:
    """How many leading tokens of each row count, the first end-of-text included: (n,) int64, 2 to 77."""
    return tokens.argmax(axis=1) + 1  # end-of-text is the largest id


@lru_cache(maxsize=1 << 17)
def _word(word: str) -> tuple[int, ...]:
    if word in SPECIAL:
        return (SPECIAL[word],)
    symbols, bpe = _vocabulary()
    return tuple(token.id for token in bpe.tokenize("".join(symbols[byte] for byte in word.encode())))


@cache
def _vocabulary() -> tuple[list[str], BPE]:
    """The printable character that stands for each byte, and the merges over them."""
    lines = gzip.decompress(_vocabulary_file()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 1 + MERGES]]
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in plain]
    symbol = dict(zip([*plain, *moved], map(chr, [*plain, *range(256, 256 + len(moved))]), strict=True))
    alphabet = [symbol[byte] for byte in (*plain, *moved)]
    entries = [*alphabet, *(s + "</w>" for s in alphabet), *("".join(pair) for pair in merges), *SPECIAL]
    bpe = BPE({entry: place for place, entry in enumerate(entries)}, merges, end_of_word_suffix="</w>")
    return [symbol[byte] for byte in range(256)], bpe


def _vocabulary_file() -> bytes:
    try:
        package = importlib.metadata.distribution("open_clip_torch")
        data = Path(package.locate_file("open_clip/bpe_simple_vocab_16e6.txt.gz")).read_bytes()
    except (importlib.metadata.PackageNotFoundError, FileNotFoundError):
        raise WrongConfig(
            "CLIP's vocabulary is not there: the package open_clip_torch carries it; "
            "run `malmm env sync embed_imagebind`"
        ) from None
    if (found := hashlib.sha256(data).hexdigest()) != VOCABULARY_SHA256:
        raise WrongConfig(
            f"the vocabulary inside open_clip_torch has SHA-256 {found}, CLIP's has "
            f"{VOCABULARY_SHA256}; run `malmm env sync embed_imagebind`"
        )
    return data
