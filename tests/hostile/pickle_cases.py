"""Pickles that attack: calls, giant numbers, values that contain themselves, tensors that lie about their bytes."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path

from tests.hostile.cases import OK, REFUSED, Case, Maker, file_name, of_bytes
from tests.hostile.opcodes import SHELL, call, glob, mapping, num, numbers, stop, storage, tensor, text, tup
from tests.hostile.zips import checkpoint

CANARY = "canary"
"""Name of the file that a case creates if its code is run."""
_TOUCH = text("touch CANARY")
_HUGE = 1 << 61
ATTACKS = {
    "reduce": SHELL + tup(_TOUCH) + pickle.REDUCE,
    "newobj": SHELL + tup(_TOUCH) + pickle.NEWOBJ,
    "newobj ex": SHELL + tup(_TOUCH) + pickle.EMPTY_DICT + pickle.NEWOBJ_EX,
    "inst": pickle.MARK + _TOUCH + pickle.INST + b"os\nsystem\n",
    "obj": pickle.MARK + SHELL + _TOUCH + pickle.OBJ,
    "eval": call(glob("builtins", "eval"), text("open('CANARY', 'w')")),
    "eval of Python 2": call(glob("__builtin__", "eval"), text("open('CANARY', 'w')")),
    "exec": call(glob("builtins", "exec"), text("open('CANARY', 'w')")),
    "stack global": text("os") + text("system") + pickle.STACK_GLOBAL + tup(_TOUCH) + pickle.REDUCE,
    "dotted global": text("os") + text("path.os.system") + pickle.STACK_GLOBAL + tup(_TOUCH) + pickle.REDUCE,
    "getattr": call(call(glob("builtins", "getattr"), glob("os", "path"), text("os")), _TOUCH),
    "resolve name": call(call(glob("pkgutil", "resolve_name"), text("os:system")), _TOUCH),
    "pip": call(glob("pip", "main"), tup(text("install"), text("CANARY"))),
    "runpy": call(glob("runpy", "run_path"), text("CANARY")),
    "subprocess": call(glob("subprocess", "Popen"), tup(text("touch"), text("CANARY"))),
    "webbrowser": call(glob("webbrowser", "open"), text("file://CANARY")),
    "torch name": call(glob("torch.os", "system"), _TOUCH),
    "torch load": call(glob("torch", "load"), text("CANARY")),
    "torch hub": call(glob("torch.hub", "load"), text("CANARY")),
    "rebuild by type": call(glob("torch._tensor", "_rebuild_from_type_v2"), SHELL, SHELL, tup(_TOUCH), pickle.NONE),
    "build": glob("x", "y") + pickle.EMPTY_TUPLE + pickle.REDUCE + mapping(__class__=SHELL) + pickle.BUILD,
    "build on a name": SHELL + mapping(__call__=SHELL) + pickle.BUILD,
    "build on a dictionary": pickle.EMPTY_DICT + mapping(update=SHELL) + pickle.BUILD,
    "setstate": call(glob("x", "y")) + tup(SHELL, _TOUCH) + pickle.BUILD,
    "setattr": call(glob("builtins", "setattr"), glob("os", "path"), text("x"), num(1)),
    "extension": pickle.EXT1 + b"\x01" + tup(_TOUCH) + pickle.REDUCE,
    "extension 4": pickle.EXT4 + b"\x01\x01\x01\x01" + tup(_TOUCH) + pickle.REDUCE,
    "called record": call(call(SHELL, _TOUCH)),
    "copyreg": call(glob("copyreg", "_reconstructor"), SHELL, glob("builtins", "object"), pickle.NONE),
    "codecs": call(glob("_codecs", "encode"), _TOUCH, text("rot13")),
    "open": call(glob("io", "open"), text("CANARY"), text("w")),
    "numpy load": call(glob("numpy", "load"), text("CANARY")),
    "ctypes": call(glob("ctypes", "CDLL"), text("CANARY")),
    "defaultdict": call(glob("collections", "defaultdict"), SHELL) + text("a") + pickle.NONE + pickle.SETITEM,
}


def laughs(levels: int, leaf: bytes = b")") -> bytes:
    """Push a value that contains itself twice at every level: two to the ``levels`` leaves in a few bytes."""
    return leaf + b"2\x86" * levels


def _shared(use: bytes, times: int) -> bytes:
    """Push a dictionary; its values are made from memo 0 and 1."""
    return b"}(" + b"".join(text(f"k{number}") + use for number in range(times)) + b"u"


_LONG_TUPLE = b"(" + b"K\x01" * 100_000 + b"tq\x000"
_LONG_LIST = b"](" + b"K\x01" * 100_000 + b"eq\x000"
_SIZE = glob("torch", "Size") + b"q\x010"
BOMBS: dict[str, tuple[bytes, str]] = {
    "memo of 2**32": (b"Nr\xff\xff\xff\xff.", "no state dict found"),
    "memo of many digits": (b"Np" + b"9" * 4000 + b"\n.", "more than 64 bits"),
    "memos far apart": (b"".join(b"Nr" + struct.pack("<I", 4096 * k) + b"0" for k in range(99_999)) + b"N.", ""),
    "bytes of 2**62": (b"\x8e" + struct.pack("<Q", 1 << 62) + b"x.", "damaged pickle"),
    "text of 2**64": (b"\x8d" + struct.pack("<Q", (1 << 64) - 1) + b"x.", "damaged pickle"),
    "bytearray of 2**40": (b"\x96" + struct.pack("<Q", 1 << 40) + b"x.", "damaged pickle"),
    "frame of 2**64": (b"\x95" + struct.pack("<Q", (1 << 64) - 1) + b"N.", "no state dict found"),
    "number of 2 GB": (b"\x8b\xff\xff\xff\x7f.", "damaged pickle"),
    "number of a megabyte": (b"\x8b" + struct.pack("<I", 1 << 20) + b"\x01" * (1 << 20) + b".", "number of"),
    "negative length": (b"\x8b\xff\xff\xff\xff.", "damaged pickle"),
    "digits": (b"I" + b"9" * 100_000 + b"\n.", "damaged pickle"),
    "digits of a long": (b"L" + b"9" * 100_000 + b"L\n.", "damaged pickle"),
    "nested lists": (b"]" * 200_000 + b"a" * 199_999 + b".", ""),
    "nested tuples": (b")" + b"\x85" * 1_000_000 + b".", ""),
    "nested dictionaries": (b"}" + (text("a") + b"}") * 50_000 + b"s" * 50_000 + b".", ""),
    "nested objects": (call(glob("x", "y")) + (call(glob("x", "y")) + b"b") * 50_000 + b".", ""),
    "nested marks": (b"(" * 200_000 + b".", "nests more than"),
    "nested calls": (call(glob("x", "y")) + b"\x85R" * 50_000 + b".", ""),
    "laughing tuples": (laughs(200) + b".", ""),
    "laughing lists": (b"]" + b"".join(b"q%c0](h%ch%ce" % (k, k, k) for k in range(200)) + b".", ""),
    "laughing key": (b"}" + laughs(200) + b"Ns.", ""),
    "laughing keys that are equal": (b"}" + laughs(200) + b"N" + laughs(200) + b"N(u.", ""),
    "laughing shape": (
        mapping(w=call(glob("torch._utils", "_rebuild_tensor_v2"), storage(), num(0), laughs(60), laughs(60))) + b".",
        "damaged shape",
    ),
    "laughing name": (laughs(60) + laughs(60) + b"\x93.", "not a string"),
    "laughing storage": (laughs(60) + b"Q.", "not a torch storage"),
    "laughing call": (SHELL + laughs(60) + b"R.", ""),
    "laughing tensor": (call(glob("torch._utils", "_rebuild_tensor_v2"), laughs(60)) + b".", ""),
    "laughing step": (mapping(model=mapping(w=b"N"), step=laughs(60)) + b".", "no state dict found"),
    "list as key": (b"}]Ns.", "cannot be a key"),
    "dictionary as key": (b"}}Ns.", "cannot be a key"),
    "giant key": (b"}" + num((1 << 2000) - 1) + b"Ns.", "more than 64 bits"),
    "long key": (b"}" + text("k" * (1 << 21)) + b"Ns.", "cannot be a key"),
    "itself": (b"}q\x00" + text("self") + b"h\x00s.", ""),
    "list in itself": (b"]q\x00h\x00a.", ""),
    "object in itself": (call(glob("x", "y")) + b"q\x00h\x00b.", ""),
    "long shape shared": (
        _LONG_TUPLE + _shared(b"h\x00", 10) + b"0" + mapping(w=tensor()) + b"0h\x00.",
        "no state dict found",
    ),
    "size of a long tuple": (_LONG_TUPLE + _SIZE + b"h\x01h\x00\x85R.", "damaged shape"),
    "sizes of a long list": (_LONG_LIST + _SIZE + b"h\x01h\x00\x85R.", "damaged shape"),
    "copies of a long list": (
        _LONG_LIST + glob("collections", "OrderedDict") + b"q\x010" + _shared(b"h\x01h\x00\x85R", 5000) + b".",
        "more than",
    ),
    "calls of a long tuple": (
        _LONG_TUPLE + glob("collections", "OrderedDict") + b"q\x010" + _shared(b"h\x01h\x00R", 50_000) + b".",
        "more than",
    ),
    "nested rebuilds": (
        glob("torch._tensor", "_rebuild_from_type_v2")
        + b"q\x00)q\x010"
        + b"h\x00Nh\x01\x87q\x010" * 2000
        + b"h\x00h\x01R.",
        "",
    ),
    "a name of a megabyte": (glob("m" * (1 << 20), "n") + b".", "a class name has"),
}
LARGE: dict[str, tuple[Callable[[], bytes], str]] = {
    "20 MB of lists": (lambda: b"]" * 20_000_000 + b".", "more than"),
    "20 MB of dictionaries": (lambda: b"}" * 20_000_000 + b".", "more than"),
    "20 MB of sets": (lambda: b"\x8f" * 20_000_000 + b".", "more than"),
    "20 MB of calls": (lambda: glob("x", "y") + b"q\x00" + b"h\x00)R" * 5_000_000 + b".", "more than"),
    "30 MB of undecodable text": (
        lambda: (b"X" + struct.pack("<I", 1 << 19) + b"\xff" * (1 << 19)) * 60 + b".",
        "more than",
    ),
}
NONSENSE: dict[str, tuple[bytes, str]] = {
    "no stop": (b"N", "truncated"),
    "empty stack": (b".", "damaged at byte"),
    "unknown opcode": (b"\xff.", "unknown opcode"),
    "protocol 6": (b"\x80\x06N.", "protocol 6"),
    "negative memo": (b"g-1\n.", "damaged at byte"),
    "no such memo": (b"h\x07.", "damaged at byte"),
    "append to a number": (b"K\x01Na.", "not a list"),
    "set in a list": (b"]NNs.", "not a dictionary"),
    "odd pairs": (b"}(Nu.", "damaged at byte"),
    "odd dictionary": (b"(Nd.", "damaged at byte"),
    "name of numbers": (b"K\x01K\x02\x93.", "not a string"),
    "call without a tuple": (b"cx\ny\nNR.", "without an argument tuple"),
    "object of nothing": (b"(o.", "damaged at byte"),
    "open quote": (b"S'x\n.", "damaged at byte"),
    "no quotes": (b"Sx\n.", "damaged at byte"),
    "no integer": (b"Ix\n.", "damaged at byte"),
    "no float": (b"Fx\n.", "damaged at byte"),
    "no storage": (b"NQ.", "not a torch storage"),
    "text as storage": (b"P1\n.", "not a torch storage"),
    "pop of nothing": (b"0.", "damaged at byte"),
    "tuple of nothing": (b"\x87.", "damaged at byte"),
    "arguments again": (storage()[:-1] + b"q\x00Q0h\x00.", "arguments of a call"),
    "a number": (b"K\x01.", "no state dict found"),
    "nothing": (b"N.", "no state dict found"),
    "empty dictionary": (b"}.", "no state dict found"),
    "text": (text("\x1b[31m") + b".", "no state dict found"),
    "a tensor alone": (tensor() + b".", "no state dict found"),
    "tensors in a list": (mapping(model=b"](" + tensor() + b"e") + b".", ""),
    "number keys": (b"}K\x01" + tensor() + b"s.", "no state dict found"),
    "a view of old": (
        mapping(w=tensor(storage(extra=tup(text("v"), num(0), num(4))))) + b".",
        "before 0.4",
    ),
    "metadata of thousands": (
        mapping(w=tensor(extra=b"}(" + b"".join(text(f"f{k}") + b"\x88" for k in range(5000)) + b"u")) + b".",
        "damaged metadata",
    ),
}
LIES: dict[str, tuple[bytes, str]] = {
    "offset": (tensor(offset=1), "beyond its storage"),
    "far offset": (tensor(offset=_HUGE), "beyond its storage"),
    "negative offset": (tensor(offset=-1), "damaged shape"),
    "stride": (tensor(shape=(2,), strides=(4,)), "beyond its storage"),
    "huge stride": (tensor(shape=(2,), strides=(_HUGE,)), "beyond its storage"),
    "negative stride": (tensor(offset=3, strides=(-1,)), "damaged shape"),
    "negative shape": (tensor(shape=(-4,)), "damaged shape"),
    "huge shape": (tensor(shape=(1 << 40, 1 << 40), strides=(0, 0)), "expanded"),
    "shape of 2**64": (tensor(shape=(1 << 64,), strides=(0,)), "damaged shape"),
    "stride of zero": (tensor(shape=(1 << 40,), strides=(0,)), "expanded"),
    "rank": (tensor(shape=[1] * 65, strides=[1] * 65), "damaged shape"),
    "ranks differ": (tensor(shape=(2, 2)), "damaged shape"),
    "text in a shape": (
        call(glob("torch._utils", "_rebuild_tensor_v2"), storage(), num(0), tup(text("4")), numbers((1,))),
        "damaged shape",
    ),
    "boolean in a shape": (
        call(glob("torch._utils", "_rebuild_tensor_v2"), storage(), num(0), tup(b"\x88"), numbers((1,))),
        "damaged shape",
    ),
    "no shape": (call(glob("torch._utils", "_rebuild_tensor_v2"), storage(), num(0)), "damaged"),
    "unknown kind": (tensor(storage(kind="EvilStorage")), "EvilStorage"),
    "quantized": (tensor(storage(kind="QInt8Storage", elements=16), shape=(4,)), "qint8"),
    "complex": (tensor(storage(kind="ComplexDoubleStorage", elements=1), shape=(1,)), "complex128"),
    "conjugate": (tensor(extra=mapping(conj=b"\x88")), "lazy view"),
    "sparse": (call(glob("torch._utils", "_rebuild_sparse_tensor")), "sparse"),
    "meta": (call(glob("torch._utils", "_rebuild_meta_tensor_no_storage")), "meta"),
    "nested": (call(glob("torch._utils", "_rebuild_nested_tensor")), "nested"),
    "kind of the future": (call(glob("torch._utils", "_rebuild_of_tomorrow")), "_rebuild_of_tomorrow"),
    "half a character": (b"", "cannot be written"),
}


_GIANT = b"\x8a\xff" + b"\x7f" * 255
"""Push a number of 255 bytes."""
_EMPTY = tensor(storage(), shape=(0,)) + b"q\x020"
_NAMES = [text(f"w{number}") for number in range(5000)]
STRANGE: dict[str, tuple[bytes, str]] = {
    "shapes of giants": (
        _EMPTY + mapping(module=mapping(w=b"h\x02"), param_shapes=mapping(w=tup(*[_GIANT] * 8000))) + b".",
        "",
    ),
    "long shape of all names": (
        _EMPTY
        + b"("
        + b"K\x01" * 60_000
        + b"tq\x010"
        + mapping(
            module=b"}(" + b"".join(name + b"h\x02" for name in _NAMES) + b"u",
            param_shapes=b"}(" + b"".join(name + b"h\x01" for name in _NAMES) + b"u",
        )
        + b".",
        "",
    ),
}
"""Odd values next to sound weights, which would take long if the reader believed them."""


def pickle_cases() -> list[Case]:
    """Return the pickles, each in an archive of its own."""
    whole = {name: (checkpoint(pickle=b"\x80\x05" + data), word) for name, (data, word) in (BOMBS | NONSENSE).items()}
    strange = {name: (checkpoint(pickle=b"\x80\x05" + data), word) for name, (data, word) in STRANGE.items()}
    large = {name: (_packed(made), word) for name, (made, word) in LARGE.items()}
    lies = {name: (checkpoint(pickle=_named(name, lie)), word) for name, (lie, word) in LIES.items()}
    return [
        *(Case(name=file_name("attack", name, ".pt"), make=_attack(data), code=OK) for name, data in ATTACKS.items()),
        *(
            Case(name=file_name("attack_alone", name, ".pt"), make=_attack(data, alone=True), code=REFUSED)
            for name, data in ATTACKS.items()
        ),
        *of_bytes("pickle", ".pt", whole),
        *of_bytes("pickle", ".pt", large),
        *of_bytes("good_pickle", ".pt", strange, code=OK),
        *of_bytes("lie", ".pt", lies),
    ]


def _packed(made: Callable[[], bytes]) -> Callable[[], bytes]:
    return lambda: checkpoint(pickle=b"\x80\x05" + made())


def _named(name: str, lie: bytes) -> bytes:
    """Return a state dict with one false declaration; it may be a name."""
    return stop(b"}(Vw\\ud800\n" + tensor() + b"u") if name == "half a character" else stop(mapping(w=lie))


def _attack(opcodes: bytes, *, alone: bool = False) -> Maker:
    """Return a maker of a checkpoint with an attack next to its weights, or in place of them."""

    def make(path: Path) -> None:
        evil = _lengthened(opcodes, path.parent / CANARY)
        pickle = stop(evil) if alone else stop(mapping(model=mapping(w=tensor()), evil=evil))
        path.write_bytes(checkpoint(pickle=pickle))

    return make


def _lengthened(opcodes: bytes, canary: Path) -> bytes:
    """Put the canary's path into every text that has its placeholder."""
    made, position = b"", 0
    while (start := opcodes.find(b"X", position)) >= 0:
        size = int.from_bytes(opcodes[start + 1 : start + 5], "little")
        content = opcodes[start + 5 : start + 5 + size].decode()
        made += opcodes[position:start] + text(content.replace("CANARY", str(canary)))
        position = start + 5 + size
    return made + opcodes[position:]
