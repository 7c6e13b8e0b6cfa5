"""Exact estimates from gradients that are much longer than there are samples: the dual form, as a change of basis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, StoreError
from ..gradients.store import GradientStore

MAX_SAMPLES = 10_000


def isometric_store(
    store: GradientStore, output_dir: str | Path, *, objective: str = "loss", tolerance: float = 1e-10
) -> GradientStore:
    """Rewrite gradients in an orthonormal basis of their span: at most num_samples numbers each.

    All surrogates depend on gradients through inner products only, so that estimates from the new store are those
    from the old one, exactly. With `projection: identity` this gives estimates without any projection: where G Gᵀ is
    V Λ Vᵀ, the rows of V Λ^½ take the place of the rows of G.

    Args:
        store: a store, usually of unprojected gradients, with p numbers each.
        output_dir: where the new store goes.
        objective: which gradients, `loss` or `log_odds`.
        tolerance: directions whose eigenvalue is this small beside the largest are left out.

    Raises:
        DataError: for more than 10,000 samples. StoreError: when the folder already holds a store.
    """
    if len(store) > MAX_SAMPLES:
        raise DataError(
            f"{store.path} has {len(store)} samples, and a basis of their span is found for at most {MAX_SAMPLES}: "
            "use a sketch (projection count_sketch), or fewer samples"
        )
    gram = np.empty((len(store), len(store)))
    for rows, block in store.blocks(objective):
        left = block.astype(np.float64)
        for columns, other in store.blocks(objective):
            gram[np.ix_(rows, columns)] = left @ other.T.astype(np.float64)
    values, vectors = np.linalg.eigh(gram)
    kept = values > tolerance * values[-1]
    if not kept.any():
        raise StoreError(f"all {objective} gradients of {store.path} are zero")
    side: dict[str, Any] = {name: getattr(store, name) for name in ("task", "split", "value", "loss", "num_tokens")}
    gradient = (vectors[:, kept] * np.sqrt(values[kept])).astype(np.float32)
    return GradientStore.from_arrays(output_dir, **side, **{f"{objective}_gradient": gradient})
