"""What a function computes, as far as its code tells: to tell two of one name apart."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import types
import weakref
from typing import Any

import numpy as np

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...))
_MOST_DEPTH = 12  # of values within values
_DESCRIBED: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def describe_function(function: Any) -> str:
    """The name of a function and a hash of what it computes: "spare_names (code 0c1f7a9e2b44d610)".

    The hash covers its compiled code, with that of functions inside it; its defaults; and what it
    takes from around itself: values of its closure and of its module's globals, if these are plain
    (numbers, strings, tuples, lists, sets, dictionaries, arrays, tensors, regular expressions), and
    functions of its own package, with all the same of theirs. Of a `partial` it covers the
    arguments, of a method or an object that can be called its fields. Of other values their name
    or type alone counts: of a library's function, a class, a tokenizer, a file. Another version of
    Python compiles to other code.

    Example:
        >>> describe_function(len)
        'len'
        >>> a, b = (lambda ids, tokenizer: ids == 3), (lambda ids, tokenizer: ids == 4)
        >>> describe_function(a) == describe_function(b)
        False
    """
    with contextlib.suppress(TypeError):  # can't be a key
        if function in _DESCRIBED:
            return _DESCRIBED[function]
    described = _describe(function)
    with contextlib.suppress(TypeError):
        _DESCRIBED[function] = described
    return described


def _describe(function: Any) -> str:
    name = getattr(function, "__qualname__", type(function).__name__)
    if isinstance(function, functools.partial):
        name = getattr(function.func, "__qualname__", name)
    if isinstance(function, types.BuiltinFunctionType):
        return name
    digest = hashlib.sha256(repr(_Walk(function).of(function, 0)).encode()).hexdigest()
    return f"{name} (code {digest[:16]})"


class _Walk:
    """Turns a function into nested tuples of plain values, the same in every process."""

    def __init__(self, function: Any) -> None:
        inner = function.func if isinstance(function, functools.partial) else function
        self._package = _package(inner)
        self._seen: dict[types.FunctionType, int] = {}

    def of(self, value: Any, depth: int) -> Any:
        if isinstance(value, _PLAIN):
            return type(value).__name__, repr(value)
        if depth > _MOST_DEPTH:  # a list that holds itself, say
            return "deep", _type(value)
        return self._inside(value, depth + 1)

    def _inside(self, value: Any, depth: int) -> Any:
        if isinstance(value, types.CodeType):
            return self._code(value, depth)
        if isinstance(value, types.FunctionType):
            return self._function(value, depth)
        if isinstance(value, types.MethodType):
            return "method", self._function(value.__func__, depth), self._fields(value, depth)
        if isinstance(value, functools.partial):
            arguments = (value.args, value.keywords)
            return "partial", self.of(value.func, depth), self.of(arguments, depth)
        if isinstance(value, (list, tuple)):
            return type(value).__name__, [self.of(one, depth) for one in value]
        if isinstance(value, (set, frozenset)):
            return "set", sorted(repr(self.of(one, depth)) for one in value)
        if isinstance(value, dict):
            return "dict", [(self.of(k, depth), self.of(v, depth)) for k, v in value.items()]
        if isinstance(value, re.Pattern):
            return "pattern", value.pattern, value.flags
        if isinstance(value, (type, types.ModuleType)):
            return "named", value.__name__
        if hasattr(value, "__array__"):
            return self._array(value)
        if callable(value) and isinstance(type(value).__call__, types.FunctionType):
            call = self._function(type(value).__call__, depth)
            return "object", call, self.of(getattr(value, "__dict__", None), depth)
        return "other", _type(value)

    def _function(self, function: Any, depth: int) -> Any:
        if _package(function) != self._package:
            return "named", function.__module__, function.__qualname__
        if function in self._seen:  # it calls itself
            return "seen", self._seen[function]
        self._seen[function] = len(self._seen)
        return (
            "function",
            self.of(function.__code__, depth),
            self.of(function.__defaults__, depth),
            self.of(function.__kwdefaults__, depth),
            [self.of(_content(cell), depth) for cell in function.__closure__ or ()],
            [
                (name, self.of(function.__globals__[name], depth))
                for name in sorted(_names(function.__code__))
                if name in function.__globals__
            ],
        )

    def _code(self, code: types.CodeType, depth: int) -> Any:
        consts = [self.of(const, depth) for const in code.co_consts]
        return "code", code.co_code.hex(), consts, code.co_names, code.co_varnames, code.co_freevars

    def _fields(self, method: types.MethodType, depth: int) -> Any:
        return self.of(getattr(method.__self__, "__dict__", None), depth)

    def _array(self, value: Any) -> Any:
        try:
            array = np.asarray(value)
        except Exception:  # on a GPU, of a type that numpy lacks, or whatever else it may raise
            return "other", _type(value)
        content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return "array", str(array.dtype), array.shape, content


def _names(code: Any) -> set[str]:
    """The names that a function and those inside it may look up among the globals."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _package(value: Any) -> str:
    return str(getattr(value, "__module__", "")).partition(".")[0]


def _type(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
