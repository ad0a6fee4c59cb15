"""JAX's strict settings, ``jax_numpy_rank_promotion`` and ``jax_numpy_dtype_promotion``, are for users' code and not for this.

Families broadcast, and sums are kept wider than what they add: the package promotes ranks and dtypes as JAX does by default,
whatever its caller has set. So every way in sets what it needs for the time of the call: public functions, the methods of
measures and integrands, and the rules of derivatives, which JAX calls where it differentiates and not where the loss is called.
A user's function that the package calls runs under the user's own settings again. Under JAX's defaults nothing is set.
"""

import contextlib
import functools
import inspect
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax

_F = TypeVar("_F", bound=Callable)
_HOME = __name__.partition(".")[0]
_OWN = "allow", "standard"


class _Thread(threading.local):
    """JAX's settings are a thread's own, and so is what its caller has set; None where that is what the package needs."""

    caller: tuple[str, str] | None = None


_thread = _Thread()


@contextlib.contextmanager
def _settings(new: tuple[str, str], caller: tuple[str, str] | None) -> Iterator[None]:
    before, _thread.caller = _thread.caller, caller
    try:
        with jax.numpy_rank_promotion(new[0]), jax.numpy_dtype_promotion(new[1]):
            yield
    finally:
        _thread.caller = before


def promoting(function: _F) -> _F:
    """Decorator: the function promotes ranks and dtypes, whatever its caller has set, and so does a function that it gives."""

    @functools.wraps(function)
    def promotes(*args, **kwargs):
        settings = jax.numpy_rank_promotion.value, jax.numpy_dtype_promotion.value
        if settings == _OWN:
            result = function(*args, **kwargs)
        else:
            with _settings(_OWN, settings):
                result = function(*args, **kwargs)
        return promoting(result) if isinstance(result, types.FunctionType) and at_home(result) else result

    return promotes  # type: ignore[return-value]


def of_user(f: Callable) -> Callable:
    """f as the package calls it: a user's function sees what the user has set, this package's own as before."""
    caller = _thread.caller
    if caller is None or at_home(f):
        return f

    def sees_settings(*args, **kwargs):
        with _settings(caller, None):
            return f(*args, **kwargs)

    return sees_settings


def seen_by_user() -> tuple[str, str] | None:
    """What a program that calls a user's functions was compiled under, beside what JAX knows of: a part of its cache's key."""
    return _thread.caller


def at_home(f: Any) -> bool:
    """Whether a function, or the class of an object, is this package's."""
    while isinstance(f, functools.partial):
        f = f.func
    return (getattr(f, "__module__", None) or "").partition(".")[0] == _HOME


def settled(cls: type) -> None:
    """Settles the methods of a class and of its bases here: the package's promote, a user's see what the user has set."""
    for base in cls.__mro__:
        if "_settled" not in vars(base) and (base is cls or at_home(base)):
            fields = inspect.get_annotations(base)
            wrap: Any = promoting if at_home(base) else _method_of_user
            for name, member in list(vars(base).items()):
                if name in fields or (name.startswith("_") and not name.endswith("_")):
                    continue  # what is called from inside only
                if isinstance(member, types.FunctionType):
                    setattr(base, name, wrap(member))
                elif isinstance(member, property):
                    setattr(base, name, property(wrap(member.fget), doc=member.__doc__))
            base._settled = True


def _method_of_user(method: Callable) -> Callable:
    @functools.wraps(method)
    def sees_settings(*args, **kwargs):
        return of_user(method)(*args, **kwargs)

    return sees_settings


def settle(module: types.ModuleType, names: Iterable[str]) -> None:
    """Makes the public functions of a module promote."""
    for name in names:
        function = getattr(module, name)
        if isinstance(function, types.FunctionType) and at_home(function):
            wrapped = promoting(function)
            for place in {module, inspect.getmodule(function)}:  # where it is public, and where pickle looks for it
                setattr(place, name, wrapped)


class custom_jvp(jax.custom_jvp):
    """``jax.custom_jvp`` whose rule promotes, for JAX may call it outside of any call of the package."""

    def defjvp(self, jvp: Callable, symbolic_zeros: bool = False) -> Callable:
        super().defjvp(promoting(jvp), symbolic_zeros)
        return jvp
