"""Methods and properties that a class answers as its instances do, by the one instance that the process shares."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar


class Shared(Protocol):
    """A class with a process-wide instance."""

    @classmethod
    def init_from_env(cls) -> Any:
        """The instance, made by the first call."""
        ...

    @classmethod
    def current(cls) -> Any | None:
        """The instance, None before it was made and after it was shut down."""
        ...


S = TypeVar("S", bound=Shared)
P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class shared_method(Generic[S, P, R]):  # noqa: N801 - a decorator
    """A method that, called on the class, is one of the process-wide instance, which is made where it is missing."""

    def __init__(self, method: Callable[Concatenate[S, P], R]) -> None:
        @wraps(method)
        def on_class(owner: type[S], *args: P.args, **kwargs: P.kwargs) -> R:
            return self._call(owner, *args, **kwargs)

        self._method = method
        self._on_class = on_class
        self.__doc__ = method.__doc__

    def __get__(self, instance: S | None, owner: type[S]) -> Callable[P, R]:
        return MethodType(self._on_class, owner) if instance is None else MethodType(self._method, instance)

    def _call(self, owner: type[S], *args: P.args, **kwargs: P.kwargs) -> R:
        return self._method(owner.init_from_env(), *args, **kwargs)


class shared_end(shared_method[S, P, None]):  # noqa: N801 - a decorator
    """A method that ends the process-wide instance when called on the class, and does nothing where there is none."""

    def _call(self, owner: type[S], *args: P.args, **kwargs: P.kwargs) -> None:
        instance = owner.current()
        if instance is not None:
            self._method(instance, *args, **kwargs)


class shared_property(Generic[S, R_co]):  # noqa: N801 - a decorator
    """A property that the class has too, once the process-wide instance is made: looking at a class loads no model."""

    def __init__(self, getter: Callable[[S], R_co]) -> None:
        self._getter = getter
        self.__doc__ = getter.__doc__

    def __get__(self, instance: S | None, owner: type[S]) -> R_co:
        found = owner.current() if instance is None else instance
        if found is None:
            raise AttributeError(f"{owner.__name__} has no {self._getter.__name__} before init_from_env() was called")
        return self._getter(found)
