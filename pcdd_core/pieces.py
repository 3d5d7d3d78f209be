"""Pieces: small frozen classes that hold the settings of one part of a run.

A kind of piece is a direct subclass of `Piece`, for instance `Objective`. A subclass of a kind with
a name is one choice, for instance `class GradientMatching(Objective, name="gradient_matching")`.
Its annotated attributes are its settings, which pydantic checks. It can be used wherever the kind
is expected: as an argument, by name on the command line, in records. A notebook can add a choice:

    class MyObjective(pcdd.Objective, name="mine"):
        strength: float = 1.0

As JSON, a piece is a dictionary with its name and its settings. A kind without named choices has
one form, without a name.
"""

import dataclasses
import functools
import importlib
import json
import os
import sys
from abc import ABC
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

import pydantic
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass
from pydantic_core import core_schema
from typing_extensions import Self, dataclass_transform

from .errors import InputError, nearest_names

Function = TypeVar("Function", bound=Callable)
IMPORTED = "PCDD_IMPORT"  # environment variable with the names of imported modules
Count = Annotated[int, Field(ge=1, lt=2**31)]
Layers = Annotated[int, Field(ge=1, le=64)]
Networks = Annotated[int, Field(ge=1, le=1000)]  # classifiers are trained side by side
Channels = Annotated[int, Field(ge=1, le=2**14)]
NonNegative = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def setting(*, default: Any, help: str, kw_only: bool = False) -> Any:
    """Return a setting of a piece: a dataclass field with this default and help text."""
    return dataclasses.field(default=default, metadata={"help": help}, kw_only=kw_only)


@dataclass_transform(frozen_default=True, field_specifiers=(setting, dataclasses.field))
class Piece(ABC):
    """Base class of all pieces, see the module.

    name:    name of the choice, "" for a kind with one form
    choices: the named subclasses of the kind, by name
    """

    name: ClassVar[str] = ""
    choices: ClassVar[dict[str, type["Piece"]]]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]  # of each subclass

    def __init_subclass__(cls, name: str | None = None, **options: Any):
        super().__init_subclass__(**options)
        if Piece in cls.__bases__:
            cls.choices = {}
        cls.name = name or ""
        checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))(cls)
        cls.__init__ = _with_clear_errors(cls.__init__)  # type: ignore[method-assign]
        if name is None:
            return
        if missing := _missing_methods(cls):
            raise InputError(
                f"class {cls.__qualname__}: {' and '.join(missing)} missing; "
                f"a subclass of {cls.__mro__[1].__name__} with a name defines all its methods"
            )
        earlier = cls.choices.get(name)
        if earlier and (earlier.__module__, earlier.__qualname__) != (
            cls.__module__,
            cls.__qualname__,
        ):
            raise InputError(
                f"class {cls.__qualname__}: the name {name!r} belongs to "
                f"{earlier.__module__}.{earlier.__qualname__}; choose another name"
            )
        cls.choices[name] = cls  # a notebook cell that runs again replaces its class

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Let a setting of another piece be a piece, its name or its dictionary."""
        if cls.name or not cls.choices:
            return handler(source)
        return core_schema.no_info_plain_validator_function(cls.of)

    @classmethod
    def of(cls, value: Any, place: str = "") -> Self:
        """Return `value` as a piece of this kind: a piece, the name of one, or its dictionary.

        place: dotted name of the setting, for error messages
        Raises InputError if the name or a setting is unknown, or a value is not valid.
        """
        if isinstance(value, cls):
            return value
        settings = {"name": value} if isinstance(value, str) else value
        if not isinstance(settings, dict):
            raise InputError(
                f"setting {place or cls.__name__} = {value!r}: expected a "
                f"{cls.__name__}, its name, or its settings"
            )
        kind = cls.choice(settings.get("name", cls.name), place)
        values = {key: given for key, given in settings.items() if key != "name"}
        return kind._checked(values, place)

    @classmethod
    def choice(cls, name: Any, place: str = "") -> type[Self]:
        """Return the class with this name, among the choices of the kind.

        Raises InputError with the nearest names if there is none.
        """
        if not cls.choices or (not name and cls.name):
            return cls
        if isinstance(name, str) and name in cls.choices:
            return cls.choices[name]  # type: ignore[return-value]
        where = f"setting {place}.name = {name!r}" if place else f"{name!r}"
        hint = "; --import MODULE adds the classes of your module" if name else ""
        raise InputError(
            f"{where}: no {cls.__name__} has this name; "
            f"{nearest_names(str(name), cls.choices)}{hint}"
        )

    @classmethod
    def _checked(cls, values: dict[str, Any], place: str) -> Self:
        fields = {field.name for field in dataclasses.fields(cls)}
        dotted = f"{place}." if place else ""
        for name in values:
            if name not in fields:
                of = f" of {place}.name={cls.name}" if cls.name and place else ""
                valid = nearest_names(dotted + name, [dotted + field for field in fields])
                hint = valid if fields else "it has no settings"
                raise InputError(f"no setting{of} is called {dotted + name!r}; {hint}")
        try:
            pieces = {name: value for name, value in values.items() if isinstance(value, Piece)}
            plain = {name: value for name, value in values.items() if name not in pieces}
            text = json.dumps(plain, default=_plain)
            checked = pydantic.TypeAdapter(cls).validate_json(text, strict=True)
            return dataclasses.replace(checked, **pieces) if pieces else checked
        except pydantic.ValidationError as error:
            raise _clear(error, dotted, values) from None

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data that JSON can store, with the name if there is one."""
        settings = {"name": self.name} if self.name else {}
        for field in dataclasses.fields(self):
            settings[field.name] = _as_plain(getattr(self, field.name))
        return settings

    @classmethod
    def settings(cls) -> dict[str, tuple[Any, str]]:
        """Return the settings of this class: {name: (default as plain data, help text)}."""
        return {
            field.name: (_as_plain(field.default), field.metadata.get("help", ""))
            for field in dataclasses.fields(cls)
        }


def import_pieces(modules: Sequence[str]) -> None:
    """Import modules that define pieces. Modules in the working directory are found too.

    Processes that this one starts import them with `import_pieces_of_parent`. Raises InputError if
    a module cannot be imported.
    """
    for module in modules:
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InputError(f"--import {module}: cannot be imported ({error})") from None
    if modules:
        os.environ[IMPORTED] = ",".join(modules)


def import_pieces_of_parent() -> None:
    """Import the modules that the parent process has imported."""
    import_pieces([module for module in os.environ.get(IMPORTED, "").split(",") if module])


def registered(
    kind: str,
) -> tuple[dict[str, Callable], Callable[[Function], Function], pydantic.PlainValidator]:
    """Return a table of functions, a decorator that adds to it, and the validator of a setting.

    A setting `Annotated[Callable[..., Result], validator]` takes a function of the table or its
    name, and JSON stores the name. A function that is not in the table can be passed from Python,
    but not stored.
    kind: what the functions are, for error messages
    """
    table: dict[str, Callable] = {}

    def add(function: Function) -> Function:
        table[function.__name__] = function
        return function

    def check(value: Any) -> Callable:
        if callable(value):
            return value
        if value not in table:
            raise ValueError(f"no {kind} has this name; {nearest_names(str(value), table)}")
        return table[value]

    return table, add, pydantic.PlainValidator(check)


def _missing_methods(cls: type) -> list[str]:
    """Return the abstract methods that a class does not define.

    ABC lists them after `__init_subclass__`, and refuses the first piece, not the class.
    """
    names = {name for base in cls.__mro__[1:] for name in getattr(base, "__abstractmethods__", ())}
    return sorted(name for name in names if _is_abstract(getattr(cls, name)))


def _is_abstract(method: Any) -> bool:
    return getattr(method, "__isabstractmethod__", False)


def _as_plain(value: Any) -> Any:
    if isinstance(value, Piece):
        return value.to_dict()
    if isinstance(value, (tuple, list)):
        return [_as_plain(part) for part in value]
    return value.__name__ if callable(value) else value


def _plain(value: Any) -> Any:
    """Return a NumPy or torch scalar as a Python number, a function as its name.

    Raises InputError for any other value.
    """
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    if hasattr(value, "item"):
        return value.item()
    raise InputError(
        f"value {value!r} cannot be the value of a setting; expected a number, a word, true, "
        "false, null or a list"
    )


def _with_clear_errors(make: Callable) -> Callable:
    @functools.wraps(make)
    def __init__(self: Any, *arguments: Any, **settings: Any) -> None:
        try:
            make(self, *arguments, **settings)
        except pydantic.ValidationError as error:
            raise _clear(error, f"{type(self).__name__}.", settings) from None

    return __init__


def _clear(error: pydantic.ValidationError, prefix: str, values: dict[str, Any]) -> InputError:
    # For a union, pydantic reports an error per member. The longest location matches best.
    first = max(error.errors(), key=lambda entry: len(entry["loc"]))
    name = str(first["loc"][0]) if first["loc"] else ""
    value = values.get(name, first["input"])
    return InputError(f"setting {prefix}{name} = {value!r}: {first['msg']}")
