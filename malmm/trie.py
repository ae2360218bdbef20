"""Token sequences merged where they begin alike: for scoring many answers in one pass, or for choosing among them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch import Tensor

Row = tuple[int, ...]


@dataclass
class Trie:
    """
    Node 0 is the prompt's end; node n > 0 holds ``tokens[n - 1]``, below ``parents[n - 1]``, ``depths[n - 1]`` tokens
    after the first. ``paths``: for each sequence the nodes that predict its tokens.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    paths: dict[Row, list[int]] = field(default_factory=dict)

    @cached_property
    def ancestry(self) -> Tensor:
        """(N,N) bool: row n - 1 is True at n itself and at its ancestors."""
        seen = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):  # a parent comes before its children
            if parent:
                seen[node] |= seen[parent - 1]
        return seen


@lru_cache(maxsize=8)  # a data set's class names are the candidates of every sample
def tries(rows: tuple[Row, ...], chunk: int) -> tuple[Trie, ...]:
    """Tries of ``chunk`` sequences each; their last tokens are left out, which are predicted but predict nothing."""
    unique = sorted(set(rows))
    return tuple(_trie(unique[start : start + chunk]) for start in range(0, len(unique), chunk))


def _trie(rows: Sequence[Row]) -> Trie:
    trie, children = Trie(), {}
    for row in rows:
        nodes = [0]
        for depth, token in enumerate(row[:-1]):
            key = (nodes[-1], token)
            if key not in children:
                trie.tokens.append(token)
                trie.parents.append(nodes[-1])
                trie.depths.append(depth)
                children[key] = len(trie.tokens)
            nodes.append(children[key])
        trie.paths[row] = nodes
    return trie


@lru_cache(maxsize=8)
def following(rows: tuple[Row, ...]) -> dict[Row, list[int]]:
    """For each beginning of a sequence the tokens that may come next."""
    found: dict[Row, dict[int, None]] = {}
    for row in rows:
        for end, token in enumerate(row):
            found.setdefault(row[:end], {})[token] = None
    return {begin: list(tokens) for begin, tokens in found.items()}
