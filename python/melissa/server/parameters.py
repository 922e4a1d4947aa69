"""Drawing the input parameters of simulations: uniform, Halton and Latin hypercube designs, and a user's own.

A sampler is an *experiment*, which knows how many parameters and simulations there are and between which
bounds, and a mix-in, which knows how to spread points. A study chooses one with ``set_parameter_sampler``::

    self.set_parameter_sampler(ParameterSamplerType.HALTON, l_bounds=[100.0], u_bounds=[500.0])

or gives a class of its own, which overrides `BaseExperiment.sample`, `BaseExperiment.draw` or
`BaseExperiment.process_drawn`::

    class LogUniform(RandomUniform):
        def sample(self, nb_samples=1):
            return 10.0 ** super().sample(nb_samples)
"""

import difflib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from melissa.exceptions import ConfigurationFileError

__all__ = [
    "BaseExperiment",
    "HaltonGenerator",
    "HaltonSamplerMixIn",
    "LHSGenerator",
    "LatinHypercubeSamplerMixIn",
    "ParameterSamplerType",
    "RandomUniform",
    "RandomUniformSamplerMixIn",
    "StaticExperiment",
    "make_parameter_sampler",
]


class ParameterSamplerType(Enum):
    """The designs that come with Melissa, for `make_parameter_sampler`."""

    RANDOM_UNIFORM = 0
    HALTON = 1
    LHS = 2


class BaseExperiment(ABC):
    """The parameters of an ensemble of simulations.

    Constructing it draws nothing: a class with several mix-ins then initialises the one that is to sample.

    Parameters
    ----------
    nb_params
        Parameters per simulation.
    nb_sims
        Simulations of the study.
    l_bounds, u_bounds
        Lowest and highest value of each parameter; one value stands for all. Needed by the mix-ins of this
        module. With an integer `dtype` the upper bound itself is not drawn.
    dtype
        Of the parameters: a floating-point or an integer type.
    seed
        The same seed gives the same parameters; None gives others each time.
    **kwargs
        Left to subclasses, and not looked at here.

    Raises
    ------
    ConfigurationFileError
        For bounds that do not fit `nb_params`, each other or `dtype`, and for a dtype that is no number. It
        is a `ValueError`, too.
    """

    def __init__(
        self,
        nb_params: int,
        nb_sims: int,
        l_bounds: ArrayLike | None = None,
        u_bounds: ArrayLike | None = None,
        dtype: DTypeLike = np.float64,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Check and keep the arguments."""
        self.nb_params = _count("nb_params", nb_params, least=0)
        self.nb_sims = _count("nb_sims", nb_sims, least=1)
        self.dtype = np.dtype(dtype)
        if self.dtype.kind not in "fiu":
            raise ConfigurationFileError(
                f"dtype: {self.dtype} given, expected a floating-point or integer type."
            )
        self.seed = seed
        self.l_bounds: NDArray[np.float64] | None = _bounds("l_bounds", l_bounds, self.nb_params)
        self.u_bounds: NDArray[np.float64] | None = _bounds("u_bounds", u_bounds, self.nb_params)
        if self.l_bounds is not None and self.u_bounds is not None:
            _check_order(self.l_bounds, self.u_bounds, self.dtype)
        self._parameters: NDArray[Any] | None = None
        self._nb_drawn = 0

    @property
    def parameters(self) -> NDArray[Any]:
        """The parameters of all simulations, shape ``(nb_sims, nb_params)``: sampled when first needed."""
        if self._parameters is None:
            self._parameters = self._sampled(self.nb_sims)
        return self._parameters

    @parameters.setter
    def parameters(self, values: ArrayLike) -> None:
        self._parameters = np.asarray(values)

    @abstractmethod
    def sample(self, nb_samples: int = 1) -> NDArray[Any]:
        """Return further points of the design, shape ``(nb_samples, nb_params)``."""

    def draw(self) -> NDArray[Any]:
        """Return the parameters of the next simulation, shape ``(nb_params,)``.

        These are the rows of `parameters` in their order, and fresh samples when all of them are drawn.
        """
        parameters = self.parameters
        drawn = parameters[self._nb_drawn] if self._nb_drawn < len(parameters) else self._sampled(1)[0]
        self._nb_drawn += 1
        return np.array(drawn)

    def sample_further(self, nb_samples: int) -> NDArray[Any]:
        """Return points that are none of `parameters`, shape ``(nb_samples, nb_params)``.

        Those of all simulations are sampled before, so that they do not depend on this.
        """
        self.parameters  # noqa: B018
        return self._sampled(nb_samples)

    def process_drawn(self, parameters: ArrayLike) -> list[Any]:
        """Return what was drawn as the words that the solver's command line gets: here the plain numbers.

        Strings stay as they are, and the shell reads their quotes.
        """
        values: list[Any] = np.asarray(parameters).tolist()
        return values

    def _sampled(self, nb_samples: int) -> NDArray[Any]:
        """Call `sample`, which may be a user's, and hold it to its shape."""
        values = np.asarray(self.sample(nb_samples))
        if values.shape != (nb_samples, self.nb_params):
            raise ConfigurationFileError(
                f"{type(self).__name__}.sample({nb_samples}) returned an array of shape {values.shape}, "
                f"expected {(nb_samples, self.nb_params)}: a row per simulation, a column per parameter "
                "(study_options.nb_parameters)."
            )
        return values


class StaticExperiment(BaseExperiment):
    """An experiment whose parameters do not depend on what the study learns while it runs."""


class _SamplerMixIn:
    """Spreads points over the bounds of an experiment; of several, the one initialised last samples."""

    nb_params: int
    seed: int | None
    dtype: np.dtype[Any]
    l_bounds: NDArray[np.float64] | None
    u_bounds: NDArray[np.float64] | None

    _unit_points: Callable[[int], NDArray[np.float64]] | None = None
    """Gives that many points of the unit cube, one per row."""

    def __init__(self, **kwargs: Any) -> None:
        """Initialise the experiment that the mix-in is mixed into."""
        super().__init__(**kwargs)

    def sample(self, nb_samples: int = 1) -> NDArray[Any]:
        """Return further points of the design, shape ``(nb_samples, nb_params)``."""
        if self.nb_params == 0:
            return np.empty((nb_samples, 0), dtype=self.dtype)
        if self._unit_points is None:
            raise ConfigurationFileError(
                f"{type(self).__name__} has no mix-in that samples yet: call the __init__ of one, say "
                "RandomUniformSamplerMixIn.__init__(self), after that of the experiment."
            )
        if self.l_bounds is None or self.u_bounds is None:
            missing = "l_bounds" if self.l_bounds is None else "u_bounds"
            raise ConfigurationFileError(
                f"{type(self).__name__} needs {missing}: one value, or one per parameter."
            )
        return _scaled(self._unit_points(nb_samples), self.l_bounds, self.u_bounds, self.dtype)


class RandomUniformSamplerMixIn(_SamplerMixIn):
    """Independent, uniformly distributed points."""

    def __init__(self, **kwargs: Any) -> None:
        """Prepare the generator; keywords are those of the experiment, where it is not initialised yet."""
        if kwargs:
            super().__init__(**kwargs)
        generator = np.random.default_rng(self.seed)
        self._unit_points = lambda nb_points: generator.random((nb_points, self.nb_params))


class HaltonSamplerMixIn(_SamplerMixIn):
    """Points of a scrambled Halton sequence, which fill the space evenly at any length [1]_.

    .. [1] J. H. Halton, "On the efficiency of certain quasi-random sequences of points in evaluating
       multi-dimensional integrals", Numerische Mathematik 2, 1960. See `scipy.stats.qmc.Halton`.
    """

    def __init__(self, nb_params: int, seed: int | None = None, **kwargs: Any) -> None:
        """Prepare the sequence; keywords are those of the experiment, where it is not initialised yet."""
        if kwargs:
            super().__init__(nb_params=nb_params, seed=seed, **kwargs)
        from scipy.stats import qmc

        if nb_params > 0:
            self._unit_points = qmc.Halton(nb_params, seed=np.random.default_rng(seed)).random


class LatinHypercubeSamplerMixIn(_SamplerMixIn):
    """A Latin hypercube: of n points, each parameter has one in each of n equal strata [1]_.

    .. [1] M. D. McKay, R. J. Beckman, W. J. Conover, "A comparison of three methods for selecting values of
       input variables in the analysis of output from a computer code", Technometrics 21, 1979. See
       `scipy.stats.qmc.LatinHypercube`.
    """

    def __init__(self, nb_params: int, seed: int | None = None, **kwargs: Any) -> None:
        """Prepare the design; keywords are those of the experiment, where it is not initialised yet."""
        if kwargs:
            super().__init__(nb_params=nb_params, seed=seed, **kwargs)
        from scipy.stats import qmc

        if nb_params > 0:
            self._unit_points = qmc.LatinHypercube(nb_params, seed=np.random.default_rng(seed)).random


class RandomUniform(RandomUniformSamplerMixIn, StaticExperiment):
    """Independent, uniformly distributed parameters; arguments as those of `BaseExperiment`."""

    def __init__(
        self,
        nb_params: int,
        nb_sims: int,
        l_bounds: ArrayLike,
        u_bounds: ArrayLike,
        dtype: DTypeLike = np.float64,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the arguments and prepare the design."""
        StaticExperiment.__init__(self, nb_params, nb_sims, l_bounds, u_bounds, dtype, seed, **kwargs)
        RandomUniformSamplerMixIn.__init__(self)


class HaltonGenerator(HaltonSamplerMixIn, StaticExperiment):
    """Parameters of a scrambled Halton sequence; arguments as those of `BaseExperiment`."""

    def __init__(
        self,
        nb_params: int,
        nb_sims: int,
        l_bounds: ArrayLike,
        u_bounds: ArrayLike,
        dtype: DTypeLike = np.float64,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the arguments and prepare the design."""
        StaticExperiment.__init__(self, nb_params, nb_sims, l_bounds, u_bounds, dtype, seed, **kwargs)
        HaltonSamplerMixIn.__init__(self, self.nb_params, seed)


class LHSGenerator(LatinHypercubeSamplerMixIn, StaticExperiment):
    """Parameters of a Latin hypercube; arguments as those of `BaseExperiment`."""

    def __init__(
        self,
        nb_params: int,
        nb_sims: int,
        l_bounds: ArrayLike,
        u_bounds: ArrayLike,
        dtype: DTypeLike = np.float64,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the arguments and prepare the design."""
        StaticExperiment.__init__(self, nb_params, nb_sims, l_bounds, u_bounds, dtype, seed, **kwargs)
        LatinHypercubeSamplerMixIn.__init__(self, self.nb_params, seed)


_GENERATORS: dict[ParameterSamplerType, type[BaseExperiment]] = {
    ParameterSamplerType.RANDOM_UNIFORM: RandomUniform,
    ParameterSamplerType.HALTON: HaltonGenerator,
    ParameterSamplerType.LHS: LHSGenerator,
}


def make_parameter_sampler(sampler_t: ParameterSamplerType | type[Any], **kwargs: Any) -> Any:
    """Make a sampler: one that comes with Melissa, or one of the user's class, with all keywords.

    ``seed``, which the server gives without being asked, is left out for a class that cannot take it.
    `ConfigurationFileError` is raised for what is no sampler, and for a keyword that is missing or that a
    sampler of Melissa does not have.
    """
    if isinstance(sampler_t, type):
        keywords = _keywords(sampler_t)
        if keywords is not None and "seed" not in keywords:
            kwargs.pop("seed", None)
        return sampler_t(**kwargs)
    if not isinstance(sampler_t, ParameterSamplerType):
        kinds = ", ".join(str(kind) for kind in ParameterSamplerType)
        raise ConfigurationFileError(f"sampler_t: {sampler_t!r} given, expected a class or one of {kinds}.")
    known = ["nb_params", "nb_sims", "l_bounds", "u_bounds", "dtype", "seed"]
    for keyword in kwargs:
        if keyword not in known:
            nearest = difflib.get_close_matches(keyword, known, n=1)
            advice = f"Is {nearest[0]!r} meant?" if nearest else f"It has {', '.join(known)}."
            raise ConfigurationFileError(f"{sampler_t} has no keyword {keyword!r}. {advice}")
    if missing := [keyword for keyword in known[:4] if keyword not in kwargs]:
        raise ConfigurationFileError(f"{sampler_t} needs {' and '.join(missing)}, not given.")
    return _GENERATORS[sampler_t](**kwargs)


def _keywords(sampler_class: type[Any]) -> Sequence[str] | None:
    """Return the keywords with which a class can be made, None if it takes any."""
    parameters = inspect.signature(sampler_class).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters]


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ConfigurationFileError(f"{name}: {value!r} given, expected a whole number, at least {least}.")
    return int(value)


def _bounds(name: str, values: ArrayLike | None, nb_params: int) -> NDArray[np.float64] | None:
    """Return one bound per parameter; a single one is repeated."""
    if values is None:
        return None
    try:
        bounds = np.atleast_1d(np.asarray(values, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ConfigurationFileError(f"{name}: {values!r} given, expected a list of numbers.") from error
    if bounds.shape == (1,):
        bounds = np.repeat(bounds, nb_params)
    if bounds.shape != (nb_params,):
        raise ConfigurationFileError(
            f"{name}: an array of shape {bounds.shape} given, expected {nb_params} values, one per parameter "
            "(study_options.nb_parameters), or one for all."
        )
    if not np.isfinite(bounds).all():
        raise ConfigurationFileError(f"{name}: {bounds.tolist()} given, expected finite numbers.")
    return bounds


def _check_order(l_bounds: NDArray[np.float64], u_bounds: NDArray[np.float64], dtype: np.dtype[Any]) -> None:
    for index, (lowest, highest) in enumerate(zip(l_bounds.tolist(), u_bounds.tolist(), strict=True)):
        if lowest > highest:
            raise ConfigurationFileError(
                f"parameter {index} has l_bounds {lowest} above u_bounds {highest}: are they exchanged?"
            )
        if dtype.kind not in "iu":
            continue
        whole = lowest.is_integer() and highest.is_integer()
        limits = np.iinfo(dtype)
        if not whole or lowest < limits.min or max(lowest, highest - 1) > limits.max:
            raise ConfigurationFileError(
                f"parameter {index} has bounds {lowest} and {highest}, and dtype is {dtype}: expected whole "
                "numbers in its range."
            )


def _scaled(
    points: NDArray[np.float64],
    l_bounds: NDArray[np.float64],
    u_bounds: NDArray[np.float64],
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    """Stretch points of the unit cube to the bounds."""
    values = (1.0 - points) * l_bounds + points * u_bounds
    if dtype.kind in "iu":
        # The upper bound is not reached, as with NumPy's integers; equal bounds name their one value.
        return np.clip(np.floor(values), l_bounds, np.maximum(l_bounds, u_bounds - 1)).astype(dtype)
    return np.clip(values, l_bounds, u_bounds).astype(dtype)
