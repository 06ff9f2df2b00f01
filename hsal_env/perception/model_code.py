"""What decides the output of an activation model beside its weights: attributes, and the code that it reaches.

Features and checkpoints are recognised by it. It is empty for models made of classes of HSAL, torch and torchvision alone. Of all
other classes it holds

- every attribute: numbers, texts, containers, arrays, tensors, and other objects with all that they hold;
- the source of the class, and of the functions and classes that it reaches by name, in this module and in others;
- the values of the global variables and of the defaults and closures that these functions read.

Hooks, and functions that were set on a module, count for all classes. Comments, docstrings and layout do not count.

It does not see what a file or the environment decides, names that are computed (``getattr``, ``importlib``), compiled code, and
packages that are installed beside the model's own: those it knows by their names alone.
"""

from __future__ import annotations

import ast
import copyreg
import dis
import hashlib
import importlib
import inspect
import sys
import textwrap
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hsal_env.errors import ConfigError

_KNOWN = {"hsal_env", "agents", "torch", "torchvision", "numpy", *sys.stdlib_module_names}
_INSTALLED = {"site-packages", "dist-packages"}
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))
_DATA = (*_PLAIN, list, tuple, dict, set, frozenset, np.ndarray, Tensor)
_seen: weakref.WeakKeyDictionary[nn.Module, str | ConfigError] = weakref.WeakKeyDictionary()


def look_at(model: nn.Module) -> None:
    """Remember what :func:`code_of` says of a model that was just made. Some models fill caches of their own when used."""
    try:
        _seen[model] = _Look(model).text()
    except ConfigError as error:
        _seen[model] = error.with_traceback(None)


def code_of(model: nn.Module) -> str:
    """What decides the output of ``model`` beside its weights, as 64 hexadecimal digits; empty if nothing does.

    Raises:
        ConfigError: the source of a class or function cannot be read, or an attribute cannot be described.
    """
    if model not in _seen:
        look_at(model)
    seen = _seen[model]
    if isinstance(seen, ConfigError):
        raise seen
    return seen


class _Look:
    """Follows a model's attributes and code, each object once, and hashes what it finds."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.own = model, _package(type(model).__module__)
        self.digest, self.empty = hashlib.sha256(), True
        self.met: dict[int, int] = {}
        self.followed: set[int] = set()
        self.reached: set[tuple[str, frozenset[str]]] = set()
        self.kept: list[Any] = []  # an id may come back once its object is gone
        for part in (*model.modules(), *model.parameters(), *model.buffers()):
            self._meet(part)  # the weights are known

    def text(self) -> str:
        for name, part in self.model.named_modules():
            self._part(name, part)
        return "" if self.empty else self.digest.hexdigest()

    def _write(self, text: str, data: bytes = b"") -> None:
        self.empty = False
        self.digest.update(f"{len(text)} {text} {len(data)} ".encode() + data)

    def _meet(self, value: object) -> None:
        self.met[id(value)] = len(self.met)
        self.kept.append(value)

    def _is_users(self, module: str) -> bool:
        """Whether the code of a module is looked at."""
        package = _package(module)
        if package in _KNOWN:
            return False
        file = getattr(sys.modules.get(module), "__file__", None)  # None: made at run time, or in a notebook
        return package == self.own or file is None or not _INSTALLED & {*Path(file).parts}

    # --- modules of torch ---------------------------------------------------------------------------------------------

    def _part(self, name: str, part: nn.Module) -> None:
        users = any(self._is_users(base.__module__) for base in type(part).__mro__)
        found = {
            key: value
            for key, value in vars(part).items()
            if key not in _OF_EVERY_MODULE and (users or isinstance(value, FunctionType | MethodType))
        }
        found |= {hooks: list(vars(part)[hooks].values()) for hooks in _HOOKS if vars(part)[hooks]}
        if users:
            found |= {key: part.get_buffer(key).clone() for key in sorted(part._non_persistent_buffers_set)}
            self._write(f"module {name}")
            self._class(type(part))
        for key, value in found.items():
            self._write(f"{name}.{key}")
            self._value(value, f"{type(part).__name__}.{key}")

    # --- values -------------------------------------------------------------------------------------------------------

    def _value(self, value: Any, where: str) -> None:
        kind = type(value)
        if kind in _PLAIN:
            self._write(f"{kind.__name__} {value!r}")
            return
        if id(value) in self.met:
            self._write(f"again {self.met[id(value)]}")
            return
        if kind not in (tuple, frozenset):  # whether two equal ones are one object is Python's affair
            self._meet(value)
        if isinstance(value, Tensor) and value.layout == torch.strided:
            raw = value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
            self._write(f"tensor {value.dtype} {tuple(value.shape)}", raw)
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            self._write(f"array {value.dtype.descr} {value.shape}", value.tobytes())
        elif kind in (list, tuple, dict):
            self._write(f"{kind.__name__} {len(value)}")
            self._values(value.items() if kind is dict else value, where)
        elif kind in (set, frozenset):
            self._write(f"{kind.__name__} {sorted(map(self._alone, value))}")
        elif isinstance(value, nn.Module):
            for name, part in value.named_modules():
                self._part(name, part)
            self._values(value.state_dict().items(), where)
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, MethodType):
            self._values((value.__func__, value.__self__), where)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, ModuleType | BuiltinFunctionType):
            self._write(f"{getattr(value, '__module__', '')} {value.__name__}")
        elif isinstance(wrapped := getattr(value, "__wrapped__", None), FunctionType):  # a cached function, for example
            self._function(wrapped)
        else:
            self._object(value, where)

    def _values(self, values: Iterable[Any], where: str) -> None:
        for value in values:
            self._value(value, where)

    def _alone(self, value: Any) -> str:
        """What one value of a set says, so that they can be sorted."""
        look = _Look(self.model)
        look._value(value, "a set")
        return look.digest.hexdigest()

    def _object(self, value: Any, where: str) -> None:
        """Any other object: what pickle would write of it."""
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            parts = reduce(value) if reduce else value.__reduce_ex__(4)
        except Exception as error:  # of many types
            raise ConfigError(
                f"The activation model {type(self.model).__name__} holds something whose changes cannot be noticed: {where} is a "
                f"{type(value).__name__} ({error}). Keep numbers, texts, arrays or objects that pickle takes, or leave it out of "
                "the model."
            ) from error
        self._class(type(value))
        if isinstance(parts, str):
            self._write(parts)
            return
        make, arguments, state, items, pairs, *_ = (*parts, None, None, None, None)
        self._values((make, arguments, state), where)
        self._values([*(items or ()), *(pairs or ())], where)

    # --- code ---------------------------------------------------------------------------------------------------------

    def _class(self, kind: type) -> None:
        self._write(f"class {kind.__module__} {kind.__qualname__}")
        for base in kind.__mro__:
            if not self._is_users(base.__module__) or not self._first(base):
                continue
            self._write(_source(base))
            for name, value in vars(base).items():
                if isinstance(value, _DATA) and not name.startswith("__"):
                    self._write(name)
                    self._value(value, f"{base.__name__}.{name}")
                for function in _functions(value):
                    self._function(function)

    def _function(self, function: FunctionType) -> None:
        module = function.__globals__.get("__name__", "")  # a decorated one says the module of what it decorates
        self._write(f"function {module} {function.__qualname__}")
        of_dataclass = function.__code__.co_filename == "<string>" and function.__name__.startswith("__")
        if of_dataclass or not self._first(function):  # what a dataclass has made follows from its source
            return
        if self._is_users(module):
            self._write(_source(function.__code__))
            self._values((function.__defaults__, function.__kwdefaults__), function.__qualname__)
            for cell in function.__closure__ or ():
                if cell != CellType():  # it is empty
                    self._value(cell.cell_contents, function.__qualname__)
            self._names(function)
        if isinstance(wrapped := getattr(function, "__wrapped__", None), FunctionType):
            self._function(wrapped)

    def _names(self, function: FunctionType) -> None:
        """What the names in a function's code mean: global variables, and what it imports."""
        codes = [*_codes(function.__code__)]
        names = frozenset(name for code in codes for name in code.co_names)
        for name in sorted(names & function.__globals__.keys()):
            self._write(name)
            self._reached(function.__globals__[name], names, name)
        for module in _imported(codes, function.__globals__.get("__package__") or ""):
            self._reached(module, names, module.__name__)

    def _reached(self, value: Any, names: frozenset[str], where: str) -> None:
        if not isinstance(value, ModuleType) or not self._is_users(value.__name__):
            self._value(value, where)
        elif (value.__name__, names) not in self.reached:
            self.reached.add((value.__name__, names))
            for name in sorted(names & vars(value).keys()):
                self._write(name)
                self._reached(vars(value)[name], names, f"{value.__name__}.{name}")

    def _first(self, code: Any) -> bool:
        if id(code) in self.followed:
            return False
        self.followed.add(id(code))
        self.kept.append(code)
        return True


def _package(module: str) -> str:
    return module.partition(".")[0]


def _functions(value: Any) -> Iterator[FunctionType]:
    """The functions in an entry of a class: a method, or what a property or another descriptor calls."""
    for found in (value, *(getattr(value, name, None) for name in ("__func__", "fget", "fset", "func", "__wrapped__"))):
        if isinstance(found, FunctionType):
            yield found


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _imported(codes: Iterable[CodeType], package: str) -> Iterator[ModuleType]:
    """The modules that import statements in functions name, be it from ``package`` on or not."""
    for code in codes:
        for step in dis.get_instructions(code):
            if step.opname != "IMPORT_NAME" or _package(step.argval) in _KNOWN:
                continue
            parents = [
                ".".join(package.split(".")[:depth]) for depth in range(package.count(".") + 1, 0, -1) if package
            ]
            for name in (step.argval, *(f"{parent}.{step.argval}".rstrip(".") for parent in parents)):
                with suppress(ImportError, ValueError):  # a ValueError for an empty name
                    yield importlib.import_module(name)


def _source(code: type | CodeType) -> str:
    """Source text without comments, docstrings and layout."""
    try:
        text = textwrap.dedent(inspect.getsource(code))
    except (OSError, TypeError) as error:
        name = getattr(code, "__qualname__", None) or getattr(code, "co_name", "")
        raise ConfigError(
            f"The source of {name}, which the activation model uses, cannot be read ({error}), so that its changes cannot be "
            "noticed. Put it into a file that is imported."
        ) from error
    if isinstance(code, CodeType) and code.co_name == "<lambda>" and text.count("lambda") > 1:
        plain = [value for value in code.co_consts if isinstance(value, _PLAIN)]
        return f"{text} {code.co_code.hex()} {code.co_names} {plain}"  # which of them it is
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return text  # a lambda in the middle of a statement
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
