"""Exact estimates from gradients that are much longer than there are samples: the dual form, as a change of basis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError, StoreError
from ..gradients.store.reader import GradientStore

MAX_GRADIENTS = 10_000


def isometric_store(store: GradientStore, output_dir: str | Path, *, tolerance: float = 1e-10) -> GradientStore:
    """Rewrite gradients in an orthonormal basis of their span: at most as many numbers as there are gradients.

    All surrogates depend on gradients through inner products only, so that estimates from the new store are those
    from the old one, exactly. With `projection: identity` this gives estimates without any projection: where G Gᵀ is
    V Λ Vᵀ, the rows of V Λ^½ take the place of the rows of G, which are those of all objectives of the store.

    Args:
        store: a store, usually of unprojected gradients, with p numbers each.
        output_dir: where the new store goes.
        tolerance: directions whose eigenvalue is this small beside the largest are left out.

    Raises:
        DataError: for more than 10,000 gradients. StoreError: when the folder holds a store already, or `store` a
            sample of rows.
    """
    store.require_all_rows()
    objectives, n = store.layout.objectives, len(store)
    if n * len(objectives) > MAX_GRADIENTS:
        raise DataError(
            f"{store.path} has {n * len(objectives)} gradients, and a basis of their span is found for at most "
            f"{MAX_GRADIENTS}: use a sketch (projection count_sketch), or fewer samples"
        )
    gram = np.empty((n * len(objectives),) * 2)
    for i, objective in enumerate(objectives):
        for rows, block in store.blocks(objective):
            left = block.astype(np.float64)
            for j, second in enumerate(objectives):
                for columns, other in store.blocks(second):
                    gram[np.ix_(i * n + rows, j * n + columns)] = left @ other.T.astype(np.float64)
    values, vectors = np.linalg.eigh(gram)
    kept = values > tolerance * values[-1]
    if not kept.any():
        raise StoreError(f"all gradients of {store.path} are zero")
    side: dict[str, Any] = {name: getattr(store, name) for name in ("task", "split", "value", "loss", "num_tokens")}
    found = np.split((vectors[:, kept] * np.sqrt(values[kept])).astype(np.float32), len(objectives))
    gradients: dict[str, Any] = {
        f"{objective}_gradient": part for objective, part in zip(objectives, found, strict=True)
    }
    return GradientStore.from_arrays(output_dir, **side, **gradients)
