"""The registry of surrogates. Adding one is adding a class here and a line to its test."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import ConfigError, did_you_mean
from .closed_form import (
    EmpiricalFisherRidge,
    GradientCosine,
    GradientFlow,
    GradientInnerProduct,
    TokenFisherRidge,
    ZeroOrder,
)
from .logistic import OffsetLogistic, PlainLogistic
from .surrogate import Surrogate

SURROGATES: dict[str, type[Surrogate]] = {
    cls.name: cls
    for cls in (
        EmpiricalFisherRidge,
        TokenFisherRidge,
        GradientFlow,
        OffsetLogistic,
        PlainLogistic,
        GradientInnerProduct,
        GradientCosine,
        ZeroOrder,
    )
}
DEFAULT_SURROGATE = EmpiricalFisherRidge.name


def surrogate_class(name: str) -> type[Surrogate]:
    """Return a surrogate class by its registered name; `default` is the best one known.

    Raises:
        ConfigError: for an unknown name.
    """
    name = DEFAULT_SURROGATE if name == "default" else name
    if name not in SURROGATES:
        known = ["default", *SURROGATES]
        raise ConfigError(f"estimator.surrogate {name!r} is not one of {known}{did_you_mean(name, known)}")
    return SURROGATES[name]


def surrogate_classes(names: str | Sequence[str]) -> list[type[Surrogate]]:
    """Return the classes of one or several registered names; errors as `surrogate_class`."""
    return [surrogate_class(name) for name in ([names] if isinstance(names, str) else names)]
