"""Optimizers of Keras that average gradients over the server's ranks before they apply them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from melissa.server.deep_learning.tf_ranks import TensorflowRanks

__all__ = ["average_gradients_of", "leaves"]


def leaves(value: Any) -> Iterator[Any]:
    """Yield what is in `value`, a thing or a tuple, list or dictionary of things; None is no thing."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        for item in value:
            yield from leaves(item)
    elif value is not None:
        yield value


def average_gradients_of(optimizer: Any, ranks: TensorflowRanks) -> None:
    """Make an optimizer of Keras average the gradients that it is given over all ranks, as DDP does.

    Every way into it does then: ``apply_gradients``, ``apply``, and Keras's own ``train_on_batch``; inside
    of a ``tf.function`` and outside. Inside of a ``strategy.run`` it is what TensorFlow has made it.
    """
    if hasattr(optimizer, "_averaging_ranks"):
        return
    cls: type = type(optimizer)
    optimizer.__class__ = _averaging(cls, ranks)


@functools.cache
def _averaging(base: type, ranks: TensorflowRanks) -> type:
    """Return the class `base` with an `apply` that averages; its name stays, for Keras saves it."""

    def apply(self: Any, grads: Iterable[Any], trainable_variables: Iterable[Any] | None = None) -> Any:
        # Of an optimizer that wraps another one, for scaled losses, the outer one averages.
        plain: Callable[..., Any] = functools.partial(base.apply, self)  # type: ignore[attr-defined]
        if ranks.is_in_replica:
            return plain(grads, trainable_variables)
        if self._distribution_strategy is not ranks.strategy:
            return plain(ranks.average(grads), trainable_variables)
        # Made in the strategy's scope, so its variables are mirrored ones: they can be changed only inside of
        # strategy.run, where gradients are summed.
        gradients = list(grads)

        def step() -> Any:
            shares = [None if gradient is None else gradient / ranks.comm.size for gradient in gradients]
            return plain(shares, trainable_variables)

        return ranks.strategy.run(step)

    names = {
        "apply": apply,
        "_averaging_ranks": ranks,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
    }
    return type(base.__name__, (base,), names)
