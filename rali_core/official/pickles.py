"""Reads what a pickle says without running it.

Python's own unpickler calls whatever a file names. This one is a small stack machine over `pickletools.genops`, which
only splits a file into instructions: it knows numbers, texts, lists, dictionaries, numpy arrays and the few class
names below, has no way to look up or call anything else, and refuses a file that asks for more. Instances of known
classes become a `Record`: the class's name and its attributes.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .errors import ReleaseError
from .pickled_arrays import ArrayFormatError, array_from_bytes, parse_dtype, parse_shape, read_inline_array

MARK = object()


class Global(NamedTuple):
    """A name that the file mentions; never looked up."""

    module: str
    name: str


@dataclass
class Record:
    """An instance of a known class, with no behaviour at all."""

    kind: Global
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Holder:
    """An array or dtype under construction: pickles create the object first and fill it later."""

    kind: str
    value: Any = None


def _names(modules: str, *names: str) -> set[Global]:
    return {Global(module, name) for module in modules.split() for name in names}


RECORDS = _names(
    "sklearn.decomposition sklearn.decomposition._pca sklearn.decomposition.pca"
    " sklearn.decomposition._incremental_pca sklearn.decomposition.incremental_pca",
    "PCA",
    "IncrementalPCA",
)
"""scikit-learn's two estimators under the module names of its versions."""

INLINE_ARRAYS = _names("joblib.numpy_pickle sklearn.externals.joblib.numpy_pickle", "NumpyArrayWrapper")
NEW_ARRAY = _names("numpy.core.multiarray numpy._core.multiarray", "_reconstruct")
SCALAR = _names("numpy.core.multiarray numpy._core.multiarray", "scalar")
FROM_BUFFER = _names("numpy.core.numeric numpy._core.numeric", "_frombuffer")
ARRAY_TYPES = {Global("numpy", "ndarray")} | _names("numpy numpy.core.memmap numpy._core.memmap", "memmap")
DTYPE = {Global("numpy", "dtype")}
ENCODE = {Global("_codecs", "encode")}
BYTES = _names("builtins __builtin__", "bytes")
OBJECT = _names("builtins __builtin__", "object")
RECONSTRUCTOR = _names("copyreg copy_reg", "_reconstructor")
KNOWN = RECORDS | INLINE_ARRAYS | NEW_ARRAY | SCALAR | FROM_BUFFER | ARRAY_TYPES | DTYPE | ENCODE | BYTES
KNOWN |= OBJECT | RECONSTRUCTOR


def read_pickle(data: bytes) -> Any:
    """Read a pickle, with or without joblib's arrays between the instructions.

    Args:
        data: The whole, uncompressed file.

    Returns:
        Numbers, texts, bytes, lists, tuples and dictionaries with text keys as they are; numpy arrays; instances of
        scikit-learn's PCA classes as `Record`.

    Raises:
        ReleaseError: The file is damaged, or asks for a class, function or instruction that is not known; the
            message names it.
    """
    machine = _Machine(io.BytesIO(data))
    try:
        return unwrap(machine.run())
    except ReleaseError:
        raise
    except ArrayFormatError as error:
        raise ReleaseError(str(error)) from error
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, EOFError, AttributeError) as error:
        raise ReleaseError(f"damaged pickle ({type(error).__name__})") from error


def unwrap(value: Any) -> Any:
    """The array inside a `Holder`; anything else as it is."""
    return value.value if isinstance(value, Holder) else value


def _shorten(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


class _Machine:
    def __init__(self, file: io.BytesIO) -> None:
        self.file = file
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        # genops decodes one instruction at a time, so joblib's raw bytes can be taken from the file in between.
        argument: Any
        for opcode, argument, _ in pickletools.genops(self.file):
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in PUSH:
                self.stack.append(argument)
            elif opcode.name in CONSTANTS:
                self.stack.append(CONSTANTS[opcode.name]())
            elif opcode.name in STORE:
                self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
            elif opcode.name in FETCH:
                self.stack.append(self.memo[argument])
            elif opcode.name in NAME:
                self.name(*argument.rsplit(" ", 1))
            elif opcode.name in INSTRUCTIONS:
                INSTRUCTIONS[opcode.name](self)
            elif opcode.name not in IGNORED:
                raise ReleaseError(f"refused: the pickle uses {opcode.name}, which a PCA has no need of")
        raise ReleaseError("damaged pickle (it has no end)")

    def since_mark(self) -> list[Any]:
        for position in range(len(self.stack) - 1, -1, -1):
            if self.stack[position] is MARK:
                items = self.stack[position + 1 :]
                del self.stack[position:]
                return items
        raise ReleaseError("damaged pickle (no mark)")

    def make_tuple(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) != count:
            raise ReleaseError("damaged pickle (stack)")
        self.stack[-count:] = [items]

    def append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ReleaseError("damaged pickle (not a list)")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        # Only texts as keys: hashing what a hostile file nests a million deep would overflow C's stack.
        if type(target) is not dict or len(items) % 2 or not all(type(key) is str for key in items[::2]):
            raise ReleaseError("refused: the pickle holds a dictionary whose keys are not texts")
        target.update(zip(items[::2], items[1::2], strict=True))

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ReleaseError("damaged pickle (a name that is not a text)")
        found = Global(module, name)
        if found not in KNOWN:
            raise ReleaseError(
                f"refused: the pickle asks for {_shorten(f'{module}.{name}')}, which is not part of a fitted PCA; "
                "nothing of it was run"
            )
        self.stack.append(found)

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple or not isinstance(function, Global):
            raise ReleaseError("refused: the pickle calls something that is not a known name")
        self.stack.append(_construct(function, arguments))

    def new_object(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        self.stack.append(_new(kind, arguments))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record) and type(state) is dict:
            target.attributes.update(state)
        elif isinstance(target, Holder) and target.kind == "dtype" and type(state) is tuple:
            target.value = parse_dtype(target.value, state[1])
        elif isinstance(target, Holder) and target.kind == "array" and type(state) is tuple and len(state) == 5:
            _, shape, dtype, fortran, data = state
            target.value = array_from_bytes(_as_bytes(data), unwrap(dtype), parse_shape(shape), fortran=bool(fortran))
        elif isinstance(target, Holder) and target.kind == "inline" and type(state) is dict:
            target.value = read_inline_array(self.file, {key: unwrap(value) for key, value in state.items()})
        else:
            raise ReleaseError("refused: the pickle sets the state of something that is not a known object")


def _construct(function: Global, arguments: tuple[Any, ...]) -> Any:
    if function in NEW_ARRAY:
        return Holder("array")
    if function in DTYPE:
        return Holder("dtype", parse_dtype(arguments[0], "="))
    if function in SCALAR and len(arguments) == 2:
        return array_from_bytes(_as_bytes(arguments[1]), unwrap(arguments[0]), ()).item()
    if function in FROM_BUFFER and len(arguments) == 4:
        data, dtype, shape, order = arguments
        return Holder(
            "array", array_from_bytes(_as_bytes(data), unwrap(dtype), parse_shape(shape), fortran=order == "F")
        )
    if function in ENCODE and arguments[1:] == ("latin1",) and type(arguments[0]) is str:
        return arguments[0].encode("latin-1")
    if function in BYTES and not arguments:
        return b""
    if function in RECONSTRUCTOR and len(arguments) == 3:
        return _new(arguments[0], ())
    raise ReleaseError(f"refused: the pickle calls {function.module}.{function.name} in a way that a PCA does not")


def _new(kind: Any, arguments: Any) -> Record | Holder:
    if arguments == () and isinstance(kind, Global):
        if kind in RECORDS:
            return Record(kind)
        if kind in INLINE_ARRAYS:
            return Holder("inline")
    raise ReleaseError("refused: the pickle creates an object that is not part of a fitted PCA")


def _as_bytes(value: Any) -> bytes:
    if isinstance(value, str):  # Python 2 kept bytes in texts
        return value.encode("latin-1")
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    raise ReleaseError("refused: the pickle holds an array of Python objects, or array data that are not bytes")


PUSH = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
STORE = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
FETCH = {"GET", "BINGET", "LONG_BINGET"}
NAME = {"GLOBAL", "INST"}
IGNORED = {"PROTO", "FRAME"}
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "MARK": lambda: MARK,
}


def _dictionary(machine: _Machine) -> None:
    items = machine.since_mark()
    machine.stack.append({})
    machine.set_items(items)


INSTRUCTIONS: dict[str, Callable[[_Machine], Any]] = {
    "TUPLE1": lambda machine: machine.make_tuple(1),
    "TUPLE2": lambda machine: machine.make_tuple(2),
    "TUPLE3": lambda machine: machine.make_tuple(3),
    "TUPLE": lambda machine: machine.stack.append(tuple(machine.since_mark())),
    "LIST": lambda machine: machine.stack.append(machine.since_mark()),
    "DICT": _dictionary,
    "APPEND": lambda machine: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine: machine.append(machine.since_mark()),
    "SETITEM": lambda machine: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine: machine.set_items(machine.since_mark()),
    "STACK_GLOBAL": lambda machine: machine.name(machine.stack.pop(-2), machine.stack.pop()),
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new_object,
    "BUILD": _Machine.build,
}
