"""Interpret a pickle symbolically, without importing or calling anything: which names and data it uses.

torch's restricted unpickler keeps code from running, but not a file of a few bytes from asking for gigabytes
or for hours: a tensor may reach beyond its data, whose memory is then made larger; a codec may be applied to
its own result again and again; and the hash of a tuple of tuples that share their parts takes time that
doubles with each. So the opcodes are first interpreted with symbols in place of values, and only what
torch.save writes passes.

The stack holds texts, numbers and None as themselves, and for all else a `_Name`, `_Tuple` or `Symbol`.
"""

import pickle
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from math import prod
from struct import Struct
from struct import error as StructError
from typing import Any

from ldm.checkpoint.globals_in_pickle import find_names, todays_name
from ldm.checkpoint.stored import OF_STORAGES, Stored
from ldm.errors import CheckpointError, DamagedCheckpointError, NotACheckpointError

MAX_OPCODES = 300_000           # a training file with EMA weights and Adam's state has 150,000
MAX_TUPLE_DEPTH = 32
MAX_KEYS = 12                   # from the outermost dict to a tensor
MAX_HASHED = 2_000_000          # leaves of all the keys

# what an interpreter of opcodes meets in bytes that are no pickle: nothing there, or another kind of thing
OF_BAD_BYTES = (LookupError, ValueError, TypeError, AttributeError, StructError)

DICTS = ("builtins.dict", "collections.defaultdict")
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
BYTE, COUNT = Struct("B"), Struct("<I")
NUMBERS = {                     # opcode -> its argument
    pickle.BININT[0]: Struct("<i"), pickle.BININT1[0]: BYTE, pickle.BININT2[0]: Struct("<H"),
    pickle.BINFLOAT[0]: Struct(">d"),
}
TEXTS = {pickle.BINUNICODE[0]: COUNT, pickle.SHORT_BINSTRING[0]: BYTE, pickle.LONG1[0]: BYTE}    # its length
PUTS = {pickle.BINPUT[0]: BYTE, pickle.LONG_BINPUT[0]: COUNT}
GETS = {pickle.BINGET[0]: BYTE, pickle.LONG_BINGET[0]: COUNT}
CONSTANTS = {pickle.NONE[0]: None, pickle.NEWTRUE[0]: True, pickle.NEWFALSE[0]: False}
TUPLES = {pickle.TUPLE1[0]: 1, pickle.TUPLE2[0]: 2, pickle.TUPLE3[0]: 3}
MARK, STOP, TUPLE, GLOBAL, LONG1 = (
    code[0] for code in (pickle.MARK, pickle.STOP, pickle.TUPLE, pickle.GLOBAL, pickle.LONG1)
)
EMPTY_TUPLE, EMPTY_DICT, EMPTY_LIST, EMPTY_SET = b")}]\x8f"
BINPERSID, REDUCE, NEWOBJ, BUILD, PROTO = b"QR\x81b\x80"
SETITEM, SETITEMS, APPEND, APPENDS = b"suae"


class _Name(str):
    """A dotted name that the unpickler would look up."""


class _Tuple:
    __slots__ = ("items", "weight", "depth")

    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self.weight = 1 + sum(_weight(item) for item in items)
        self.depth = 1 + max((item.depth for item in items if type(item) is _Tuple), default=0)
        if self.depth > MAX_TUPLE_DEPTH or self.weight > MAX_HASHED:
            raise DamagedCheckpointError("has tuples nested too deep")


class Symbol:
    """A dict, list, tensor, storage or any other object."""

    __slots__ = ("kind", "weight", "numel", "content")

    def __init__(self, kind: str, weight: int = 0, numel: int = 0, content: Any = None) -> None:
        self.kind, self.weight, self.numel = kind, weight, numel
        self.content = content      # of a dict and a list what is in it, of a tensor its dtype and shape

    def take(self, items: list[Any]) -> None:
        """Keep keys and values that were set."""
        if type(self.content) is dict:
            pairs = zip(items[::2], items[1::2], strict=True)
            self.content |= {key: value for key, value in pairs if type(key) in (str, int)}


def _weight(value: Any) -> int:
    return value.weight if type(value) is _Tuple else 1


@dataclass
class SymbolicUnpickler:
    """Reads pickles with symbols in place of values; keeps what they name and claim."""

    names: set[str] = field(default_factory=set)
    storages: dict[str, int] = field(default_factory=dict)      # key -> bytes
    results: list[Any] = field(default_factory=list)            # one per pickle
    hashed: int = 0
    count: int = 0

    @property
    def content(self) -> Any:
        """What the file holds: of a file in the old format the fourth of its pickles."""
        return self.results[min(3, len(self.results) - 1)]

    def load(self, file: BytesIO) -> None:
        """Read one pickle; if that fails, its names have still been collected.

        Raises:
            CheckpointError: its text says what is wrong, without the file's name.
        """
        start = file.tell()
        try:
            self.results.append(self._run(file))
        except (CheckpointError, *OF_BAD_BYTES) as error:
            file.seek(start)
            find_names(file, self.names)
            if isinstance(error, CheckpointError):
                raise
            raise DamagedCheckpointError(f"is truncated or damaged ({_first_line(error)})") from error

    def _run(self, file: BytesIO) -> Any:
        data, at = file.getvalue(), file.tell()
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}

        def since_mark() -> list[Any]:
            start = marks.pop()
            items = stack[start:]
            del stack[start:]
            return items

        while True:
            self.count += 1
            if self.count > MAX_OPCODES:
                raise DamagedCheckpointError(f"has a pickle of more than {MAX_OPCODES} opcodes")
            code = data[at]
            at += 1
            if code in PUTS:
                memo[PUTS[code].unpack_from(data, at)[0]] = stack[-1]
                at += PUTS[code].size
            elif code in GETS:
                stack.append(memo[GETS[code].unpack_from(data, at)[0]])
                at += GETS[code].size
            elif code in NUMBERS:
                stack.append(NUMBERS[code].unpack_from(data, at)[0])
                at += NUMBERS[code].size
            elif code in TEXTS:
                start = at + TEXTS[code].size
                at = start + TEXTS[code].unpack_from(data, at)[0]
                if at > len(data):
                    raise DamagedCheckpointError("is truncated or damaged")
                text = data[start:at]
                stack.append(int.from_bytes(text, "little", signed=True) if code == LONG1 else text.decode())
            elif code == MARK:
                marks.append(len(stack))
            elif code == TUPLE:
                stack.append(_Tuple(since_mark()))
            elif code in TUPLES:
                items = stack[-TUPLES[code]:]
                del stack[-TUPLES[code]:]
                stack.append(_Tuple(items))
            elif code == GLOBAL:
                middle = data.index(b"\n", at)
                end = data.index(b"\n", middle + 1)
                name = _Name(todays_name(data[at:middle].decode(), data[middle + 1 : end].decode()))
                at = end + 1
                stack.append(name)
                self.names.add(str(name))
            elif code == BINPERSID:
                stack.append(self._storage(stack.pop()))
            elif code in (REDUCE, NEWOBJ):
                arguments = stack.pop()
                stack.append(self._made(stack.pop(), arguments))
            elif code in CONSTANTS:
                stack.append(CONSTANTS[code])
            elif code == EMPTY_TUPLE:
                stack.append(_Tuple([]))
            elif code == EMPTY_DICT:
                stack.append(Symbol("dict", content={}))
            elif code == EMPTY_LIST:
                stack.append(Symbol("list", content=[]))
            elif code == EMPTY_SET:
                stack.append(Symbol("set"))
            elif code in (SETITEM, SETITEMS):
                items = since_mark() if code == SETITEMS else [stack.pop(-2), stack.pop()]
                self._hash(stack[-1], items[::2])
                stack[-1].take(items)
            elif code in (APPEND, APPENDS):
                items = since_mark() if code == APPENDS else [stack.pop()]
                stack[-1].weight += sum(_weight(item) for item in items)
                if type(stack[-1].content) is list:
                    stack[-1].content += items
            elif code == BUILD:
                state = stack.pop()
                self._build(stack[-1], state)
            elif code == PROTO:
                at += 1
            elif code == STOP:
                file.seek(at)
                return stack.pop()
            else:
                raise _unknown(code)

    def _hash(self, target: Any, keys: list[Any]) -> None:
        weight = sum(_weight(key) for key in keys)
        target.weight += weight
        self._count_hashed(weight)

    def _count_hashed(self, weight: int) -> None:
        self.hashed += weight
        if self.hashed > MAX_HASHED:
            raise DamagedCheckpointError("has keys of too many parts")

    def _storage(self, identity: Any) -> Symbol:
        """Take note of the data that a tensor will refer to."""
        kind, name, key, _, numel, *view = identity.items
        if kind != "storage" or type(name) is not _Name or type(key) is not str or not _is_count(numel):
            raise DamagedCheckpointError("is damaged: a reference to no data")
        if name not in OF_STORAGES:
            raise NotACheckpointError(f"holds data that is not plain ({str(name)[:50]!r})")
        size = Stored(OF_STORAGES[name], (numel,)).nbytes
        if self.storages.setdefault(key, size) != size:
            raise DamagedCheckpointError(f"contradicts itself: data {key[:20]!r} has two sizes")
        if view and view[0] is not None:
            _, offset, part = view[0].items
            if not (_is_count(offset) and _is_count(part) and offset + part <= numel):
                raise DamagedCheckpointError(f"claims more than it holds: a part beyond data {key[:20]!r}")
            numel = part
        return Symbol("storage", numel=numel, content=name)

    def _made(self, name: Any, arguments: Any) -> Any:
        """Return the symbol of what calling `name` gives."""
        if type(name) is not _Name or name in OF_STORAGES:
            raise DamagedCheckpointError("is damaged: it calls what cannot be called")
        items = arguments.items
        if name in TENSORS:
            _check_geometry(*items[:4])
            return Symbol("tensor", content=Stored(OF_STORAGES[items[0].content], tuple(items[2].items)))
        if name == "torch._utils._rebuild_parameter":
            return items[0]
        if name == "_codecs.encode" and items[1:] not in (["latin1"], ["latin-1"]):
            raise DamagedCheckpointError("has a text in an encoding that torch.save does not write")
        if name == "numpy.dtype" and not (type(items[0]) is str and len(items[0]) <= 8):
            raise DamagedCheckpointError("has a numpy type that is no number")
        if name in ("collections.Counter", "builtins.set") and items:
            self._count_hashed(items[0].weight)
        if name == "collections.OrderedDict":
            if items:
                raise DamagedCheckpointError("has a dict in a form that torch.save does not write")
            return Symbol("dict", content={})
        return Symbol("dtype" if name == "numpy.dtype" else "object", content={} if name in DICTS else None)

    def _build(self, target: Any, state: Any) -> None:
        """Refuse a state that would move a tensor to other data, or bend a numpy type."""
        if type(target) is not Symbol or target.kind in ("tensor", "storage"):
            raise DamagedCheckpointError("is damaged: a tensor that is changed after it was made")
        if target.kind == "dtype" and not (
            type(state) is _Tuple and all(value is None or type(value) in (int, str) for value in state.items)
        ):
            raise DamagedCheckpointError("has a numpy type that is no number")
        if target.kind == "object" and target.content is None and type(state) is Symbol:
            target.content = state.content


def nameless(value: Any) -> str | None:
    """Return in words what a result of `load` is that has no names in it; None for a dict or an object."""
    if type(value) is _Tuple:
        return "a tuple"
    if type(value) is not Symbol:
        return "nothing" if value is None else "a text" if isinstance(value, str) else "a number"
    if value.kind == "tensor":
        return f"one tensor {value.content.shape} without a name"
    return None if value.kind in ("dict", "object", "dtype") else f"a {value.kind}"


def walk(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (keys, leaf) of a result of `load`: `Stored` for a tensor, or a plain value.

    A container that stands in several places, perhaps in itself, is entered once.
    """
    entered: set[int] = set()

    def enter(value: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        items = value.items if type(value) is _Tuple else value.content if type(value) is Symbol else value
        if type(items) not in (dict, list):
            yield keys, items
        elif id(items) not in entered and len(keys) < MAX_KEYS:
            entered.add(id(items))
            for key, item in items.items() if type(items) is dict else enumerate(items):
                yield from enter(item, (*keys, str(key)))

    return enter(value, ())


def _unknown(code: int) -> CheckpointError:
    opcode = pickletools.code2op.get(chr(code))
    if opcode is None:
        return DamagedCheckpointError("is truncated or damaged")
    return NotACheckpointError(
        f"is a pickle with {opcode.name}, which torch.save does not write of itself; save it again with "
        "pickle_protocol=2, or as .safetensors"
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _check_geometry(storage: Any, offset: Any, size: Any, stride: Any) -> None:
    """Refuse a tensor that reaches beyond its data; torch would make the data larger."""
    if type(storage) is not Symbol or storage.kind != "storage":
        raise DamagedCheckpointError("is damaged: a tensor without data")
    sizes, strides = size.items, stride.items
    counts = [offset, *sizes, *strides]
    if len(sizes) != len(strides) or len(sizes) > 64 or not all(_is_count(value) for value in counts):
        raise DamagedCheckpointError("is damaged: a tensor without a sensible shape")
    reach = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) + 1
    if prod(sizes) and reach > storage.numel:
        raise DamagedCheckpointError(
            f"claims more than it holds: a tensor of shape {tuple(sizes)} over {storage.numel} numbers"
        )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}".rstrip(": ")
