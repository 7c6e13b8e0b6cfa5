"""The registry of surrogates. Adding one is adding a class here and a line to its test."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import ConfigError
from ..core.extensions import find_part, is_subclass
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
    """Return a surrogate class by its registered name (`default`: the best one known), entry point or `module:Class`.

    Raises:
        ConfigError: for an unknown name, or what is no surrogate.
    """
    known = {"default": SURROGATES[DEFAULT_SURROGATE], **SURROGATES}
    found: type[Surrogate] = find_part(name, known, "estimator.surrogate")
    if not is_subclass(found, Surrogate):
        raise ConfigError(f"estimator.surrogate {name!r} is no subclass of estimation.surrogate.Surrogate")
    return found


def surrogate_classes(names: str | Sequence[str]) -> list[type[Surrogate]]:
    """Return the classes of one or several registered names; errors as `surrogate_class`."""
    return [surrogate_class(name) for name in ([names] if isinstance(names, str) else names)]
