"""Texts as LAVIS hands them to its models: MA-LMM's scores are on texts of this form.

The rules of LAVIS' "blip_caption" and "blip_question" processors (Li et al., "LAVIS", ACL 2023; BSD-3-Clause).
"""

import re

_MARKS = re.compile(r'[.!"()*#:;~]')
_SPACES = re.compile(r"\s{2,}")
MAX_WORDS = 50


def caption(text: str) -> str:
    """Small letters, marks as spaces, runs of white space as one space, at most 50 words."""
    cleaned = _SPACES.sub(" ", _MARKS.sub(" ", text.lower())).rstrip("\n").strip(" ")
    return " ".join(cleaned.split(" ")[:MAX_WORDS])


def question(text: str) -> str:
    """Small letters, marks left out (a question mark stays), no spaces at the end, at most 50 words."""
    return " ".join(_MARKS.sub("", text.lower()).rstrip(" ").split(" ")[:MAX_WORDS])
