"""Check of scikit-learn's decision trees, which are computed without looking at the numbers of their nodes.

skops does not trust them for this reason: a file could make them read any memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.tree._tree import TREE_LEAF, Tree

TREE = "sklearn.tree._tree.Tree"


def trees_in(estimator: object) -> Iterator[Tree]:
    """Yield the trees in an estimator and in those that it consists of."""
    pending, seen = [estimator], {id(estimator)}
    while pending:
        each = pending.pop()
        if isinstance(each, Tree):
            yield each
        for part in _parts(each):
            if id(part) not in seen:
                seen.add(id(part))
                pending.append(part)


def is_sound(tree: Tree) -> bool:
    """Return whether each node leads to later nodes of the tree, by one of its features."""
    count = tree.node_count
    inner = np.flatnonzero(tree.children_left != TREE_LEAF)
    children = np.stack([tree.children_left[inner], tree.children_right[inner]])
    features = tree.feature[inner]
    return bool(
        np.all((children > inner) & (children < count)) and np.all((features >= 0) & (features < tree.n_features))
    )


def _parts(node: object) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    if isinstance(node, list | tuple | set):
        return list(node)
    if isinstance(node, np.ndarray):
        return node.ravel().tolist() if node.dtype == object else []
    return list(vars(node).values()) if hasattr(node, "__dict__") else []
