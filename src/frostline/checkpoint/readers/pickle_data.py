"""Reads a pickle as data: a small machine over its instructions that imports nothing and calls nothing of the file.

Every instruction of every protocol is known, so that a file which is refused can be told what it wanted. No instruction
allocates more than the pickle has bytes: a memo index is a key of a dictionary, a length must lie in the pickle.
It is one long loop, because a checkpoint has some thirty instructions a tensor, and functions would double the time.

Source: CPython, ``Lib/pickletools.py`` (the instructions) and ``Lib/pickle.py`` (``_Unpickler``).
"""

from __future__ import annotations

import codecs
import struct
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

from frostline.checkpoint.readers.pickle_names import Damaged, Names, Opaque, Record

# Numbers of more bytes are no numbers of a checkpoint, and turning one into decimals takes the square of its length.
_LONGEST_NUMBER = 256
_LONGEST_DIGITS = 640
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


_UINT32 = struct.Struct("<I")


class BadPickle(Damaged):
    """A pickle that cannot be read.

    Attributes:
        position: the byte where the reading ended.
    """

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


def read_pickle(
    data: bytes, names: Names, persistent: Callable[[object], object], position: int = 0
) -> tuple[Any, int]:
    """Read one pickle.

    Args:
        data: bytes that hold it.
        names: what its names stand for; notes those that are refused.
        persistent: what a persistent id stands for.
        position: where in ``data`` it begins.

    Returns:
        What it holds, and where the next one begins.

    Raises:
        BadPickle: it is damaged, or ends behind ``data``.

    Example:
        >>> import json, pickle
        >>> names = Names({}, 100)
        >>> read_pickle(pickle.dumps({"a": [1, json.loads]}), names, Opaque)[0]
        {'a': [1, Global(name='json.loads', build=None)]}
        >>> names.wanted
        {'json.loads'}
    """
    machine = _Machine(data, names, persistent, position)
    try:
        return machine.run(), machine.position
    except _DAMAGE as error:
        what = str(error) if isinstance(error, Damaged) else "an instruction that does not fit what is before it"
        raise BadPickle(f"{what}, at byte {machine.position:,} of the pickle", machine.position) from error


class _CutOff(Damaged):
    """The bytes end in the middle of a value."""


class _Machine:
    def __init__(self, data: bytes, names: Names, persistent: Callable[[object], object], position: int) -> None:
        self.data = data
        self.names = names
        self.persistent = persistent
        self.position = position

    def run(self) -> object:
        data, names, persistent = self.data, self.names, self.persistent
        call, set_items, uint32 = names.call, self._set_items, _UINT32.unpack_from
        position, end = self.position, 0
        stack: list[Any] = []
        marks: list[list[Any]] = []
        memo: dict[int, Any] = {}
        push = stack.append
        try:
            while True:
                code = data[position]
                position += 1
                # The most frequent ones first.
                if code == 0x72:  # LONG_BINPUT
                    memo[uint32(data, position)[0]] = stack[-1]
                    position += 4
                elif code == 0x68:  # BINGET
                    push(memo[data[position]])
                    position += 1
                elif code == 0x4B:  # BININT1
                    push(data[position])
                    position += 1
                elif code == 0x28:  # MARK
                    marks.append(stack)
                    stack = []
                    push = stack.append
                elif code == 0x74:  # TUPLE
                    items = tuple(stack)
                    stack = marks.pop()
                    push = stack.append
                    push(items)
                elif code == 0x58:  # BINUNICODE
                    end = position + 4 + uint32(data, position)[0]
                    push(data[position + 4 : end].decode())
                    position = end
                elif code == 0x86:  # TUPLE2
                    item = stack.pop()
                    stack[-1] = (stack[-1], item)
                elif code == 0x85:  # TUPLE1
                    stack[-1] = (stack[-1],)
                elif code == 0x71:  # BINPUT
                    memo[data[position]] = stack[-1]
                    position += 1
                elif code == 0x52:  # REDUCE
                    args = stack.pop()
                    stack[-1] = call(stack[-1], args)
                elif code == 0x29:  # EMPTY_TUPLE
                    push(())
                elif code == 0x51:  # BINPERSID
                    stack[-1] = persistent(stack[-1])
                elif code == 0x89:  # NEWFALSE
                    push(False)
                elif code == 0x4D:  # BININT2
                    push(data[position] | data[position + 1] << 8)
                    position += 2
                elif code == 0x87:  # TUPLE3
                    stack[-3:] = [(stack[-3], stack[-2], stack[-1])]
                elif code == 0x6A:  # LONG_BINGET
                    push(memo[uint32(data, position)[0]])
                    position += 4
                elif code == 0x94:  # MEMOIZE
                    memo[len(memo)] = stack[-1]
                elif code == 0x8C:  # SHORT_BINUNICODE
                    end = position + 1 + data[position]
                    push(data[position + 1 : end].decode())
                    position = end
                elif code == 0x4A:  # BININT
                    push(struct.unpack_from("<i", data, position)[0])
                    position += 4
                elif code == 0x47:  # BINFLOAT
                    push(struct.unpack_from(">d", data, position)[0])
                    position += 8
                elif code == 0x88:  # NEWTRUE
                    push(True)
                elif code == 0x4E:  # NONE
                    push(None)
                elif code == 0x5D:  # EMPTY_LIST
                    push([])
                elif code == 0x7D:  # EMPTY_DICT
                    push({})
                elif code == 0x8F:  # EMPTY_SET
                    push(set[object]())
                elif code == 0x63:  # GLOBAL
                    module, position = _line(data, position)
                    name, position = _line(data, position)
                    push(names.find(module.decode(), name.decode()))
                elif code == 0x93:  # STACK_GLOBAL
                    name = stack.pop()
                    stack[-1] = names.find(stack[-1], name)
                elif code in (0x75, 0x73):  # SETITEMS, SETITEM
                    items = stack if code == 0x75 else stack[-2:]
                    if code == 0x75:
                        stack = marks.pop()
                        push = stack.append
                    else:
                        del stack[-2:]
                    set_items(stack[-1], items)
                elif code in (0x65, 0x61):  # APPENDS, APPEND
                    items = stack if code == 0x65 else [stack.pop()]
                    if code == 0x65:
                        stack = marks.pop()
                        push = stack.append
                    _extend(stack[-1], items)
                elif code in (0x90, 0x91):  # ADDITEMS, FROZENSET
                    items = [names.key(each) for each in stack]
                    stack = marks.pop()
                    push = stack.append
                    if code == 0x91:
                        push(frozenset(items))
                    else:
                        _add(stack[-1], items)
                elif code in (0x6C, 0x64):  # LIST, DICT
                    items = stack
                    stack = marks.pop()
                    push = stack.append
                    push(items if code == 0x6C else {})
                    if code == 0x64:
                        set_items(stack[-1], items)
                elif code == 0x62:  # BUILD
                    state = stack.pop()
                    _build(stack[-1], state)
                elif code in (0x81, 0x92):  # NEWOBJ, NEWOBJ_EX
                    if code == 0x92:
                        stack.pop()
                    args = stack.pop()
                    stack[-1] = call(stack[-1], args)
                elif code in (0x69, 0x6F):  # INST, OBJ
                    if code == 0x69:
                        module, position = _line(data, position)
                        name, position = _line(data, position)
                        function = names.find(module.decode(), name.decode())
                        args = tuple(stack)
                    else:
                        function, args = stack[0], tuple(stack[1:])
                    stack = marks.pop()
                    push = stack.append
                    push(call(function, args))
                elif code in _EXTENSIONS:
                    width = _EXTENSIONS[code]
                    number = int.from_bytes(data[position : position + width], "little")
                    push(names.find("copyreg", f"extension {number}"))
                    position += width
                elif code == 0x30:  # POP
                    if stack:
                        stack.pop()
                    else:
                        stack = marks.pop()
                        push = stack.append
                elif code == 0x31:  # POP_MARK
                    stack = marks.pop()
                    push = stack.append
                elif code == 0x32:  # DUP
                    push(stack[-1])
                elif code in _COUNTED:
                    width, kind = _COUNTED[code]
                    begin = position + width
                    end = begin + int.from_bytes(data[position:begin], "little")
                    if end > len(data):
                        raise _CutOff("a value that is cut off")
                    push(_value(kind, data[begin:end]))
                    position = end
                elif code in _LINES:
                    line, position = _line(data, position)
                    if code == 0x70:  # PUT
                        memo[_decimal(line)] = stack[-1]
                    elif code == 0x67:  # GET
                        push(memo[_decimal(line)])
                    elif code == 0x50:  # PERSID
                        push(persistent(line.decode("ascii")))
                    else:
                        push(_text(code, line))
                elif code == 0x80:  # PROTO
                    if data[position] > 5:
                        raise Damaged(f"protocol {data[position]}")
                    position += 1
                elif code == 0x95:  # FRAME
                    position += 8
                elif code == 0x2E:  # STOP
                    return stack.pop()
                else:
                    raise Damaged(f"no instruction: 0x{code:02x}")
        except _CutOff:
            position = len(data)
            raise
        except UnicodeDecodeError:
            position = max(position, end)  # a text that is cut off may end in the middle of a letter
            raise
        finally:
            self.position = position

    def _set_items(self, target: object, items: list[Any]) -> None:
        if isinstance(target, dict):
            if len(items) % 2:
                raise Damaged("a key without a value")
            entries = cast("dict[object, object]", target)
            key = self.names.key
            for index in range(0, len(items), 2):
                name = items[index]
                entries[name if type(name) is str else key(name)] = items[index + 1]
        elif type(target) is not Opaque:  # an object, and not the name of its type
            raise Damaged(f"entries for a {type(target).__name__}")


# How their lengths are written, and what they are.
_COUNTED = {
    0x8A: (1, "number"),
    0x8B: (4, "number"),
    0x55: (1, "text of Python 2"),
    0x54: (4, "text of Python 2"),
    0x43: (1, "bytes"),
    0x42: (4, "bytes"),
    0x8E: (8, "bytes"),
    0x96: (8, "bytearray"),
    0x8D: (8, "text"),
}
_LINES = frozenset(b"pgPIFLSV")
_EXTENSIONS = {0x82: 1, 0x83: 2, 0x84: 4}


def _line(data: bytes, position: int) -> tuple[bytes, int]:
    end = data.find(b"\n", position)
    if end < 0:
        raise _CutOff("a line that is cut off")
    return data[position:end], end + 1


def _value(kind: str, content: bytes) -> object:
    if kind == "number":
        if len(content) > _LONGEST_NUMBER:
            raise Damaged("a number that is too large")
        return int.from_bytes(content, "little", signed=True)
    if kind == "text":
        return content.decode()
    if kind == "text of Python 2":
        try:
            return content.decode()
        except UnicodeDecodeError:  # it made no difference between texts and bytes
            return content
    return bytearray(content) if kind == "bytearray" else content


def _decimal(line: bytes) -> int:
    if len(line) > _LONGEST_DIGITS:
        raise Damaged("a number that is too large")
    return int(line)


def _text(code: int, line: bytes) -> object:
    """The value of an instruction of protocol 0, which are lines of text."""
    if code == 0x49:  # INT
        return line == b"01" if line in (b"00", b"01") else _decimal(line)
    if code == 0x4C:  # LONG
        return _decimal(line.removesuffix(b"L"))
    if code == 0x46:  # FLOAT
        return float(line[:_LONGEST_DIGITS])
    if code == 0x56:  # UNICODE
        text = line.decode("raw-unicode-escape")
        text.encode()  # half of a surrogate pair is no text
        return text
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise Damaged("a text without quotes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unknown escapes
        return _value("text of Python 2", codecs.escape_decode(line[1:-1])[0])  # pyright: ignore[reportAttributeAccessIssue]


def _extend(target: object, items: list[Any]) -> None:
    if type(target) is list:
        cast("list[Any]", target).extend(items)
    elif type(target) is not Opaque:
        raise Damaged(f"elements for a {type(target).__name__}")


def _add(target: object, items: list[Any]) -> None:
    if type(target) is set:
        cast("set[Any]", target).update(items)
    elif type(target) is not Opaque:
        raise Damaged(f"elements for a {type(target).__name__}")


def _build(target: object, state: object) -> None:
    """Attributes: those of a state dict say which versions its modules have, those of a record are its fields.

    All others are left out.
    """
    if type(target) is Record:
        target.state = state
    if type(target) is OrderedDict and isinstance(state, dict):
        metadata = cast("dict[object, object]", state).get("_metadata")
        if metadata is not None:
            target.__dict__["_metadata"] = metadata
