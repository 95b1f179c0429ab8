# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: nonecheck=False, cdivision=True, binding=False, auto_pickle=False
# cython: embedsignature=True, embedsignature.format=clinic
"""Objects ↔ external terms.

Decoding is two passes: `tm_etf_walk` (C) validates the bytes within the limits, then the builder
here makes objects from bytes that it trusts. Encoding is one pass into a growing buffer. Both keep
their own stack, so nesting never uses the C stack.

The hot loops hold `PyObject *` and count references by hand; each owner is named where it is kept.
Rules: the table of terms in the documentation, erl_ext_dist for the bytes.
"""

cimport cython
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.float cimport PyFloat_FromDouble
from cpython.list cimport PyList_SetSlice
from cpython.long cimport PyLong_FromLong, PyLong_FromLongLong, PyLong_FromUnsignedLongLong
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyTypeObject, Py_EQ, Py_NE
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.string cimport memcmp, memcpy, memset

import os
import zlib
from collections.abc import ItemsView, KeysView, Mapping, ValuesView

from tumen.errors import DecodeError, EncodeError, LimitExceeded

__all__ = [
    "Atom",
    "Binary",
    "BitString",
    "Export",
    "Fun",
    "ImproperList",
    "Pid",
    "Port",
    "Reference",
    "TermMap",
    "atom_table",
    "decode",
    "encode",
    "set_atom_table_count_max",
]


# What the C API has and Cython's declarations lack, and the same with raw pointers, so that no
# reference is counted behind our back. The struct offsets of tuples and lists stay in CPython's
# own macros.
cdef extern from *:
    """
    #if PY_VERSION_HEX < 0x030D0000
    #define term_dict_presized(count) _PyDict_NewPresized(count)
    #else
    #define term_dict_presized(count) PyDict_New()
    #endif
    #define term_new_bytes(p, n) PyBytes_FromStringAndSize((const char *)(p), n)
    #define term_new_utf8(p, n) PyUnicode_DecodeUTF8((const char *)(p), n, NULL)
    #define term_tuple_items(o) (((PyTupleObject *)(o))->ob_item)
    #define term_list_items(o) (((PyListObject *)(o))->ob_item)
    /* Both halves of the product: every bit of a and b counts in every bit of the answer. */
    static inline uint64_t term_mix(uint64_t a, uint64_t b)
    {
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)(product >> 64) ^ (uint64_t)product;
    }
    #define term_set_mapping_flag(t) (((PyTypeObject *)(t))->tp_flags |= Py_TPFLAGS_MAPPING)
    """
    PyObject *term_dict_presized(Py_ssize_t count) except NULL
    PyObject **term_tuple_items(PyObject *o)
    PyObject **term_list_items(PyObject *o)
    uint64_t term_mix(uint64_t a, uint64_t b)
    void term_set_mapping_flag(PyObject *type)


cdef extern from "Python.h":
    PyObject *Py_None
    PyObject *Py_True
    PyObject *Py_False
    PyTypeObject *type_of "Py_TYPE"(PyObject *o)
    Py_ssize_t var_size "Py_SIZE"(PyObject *o)
    void incref "Py_INCREF"(PyObject *o)
    void decref "Py_DECREF"(PyObject *o)
    void xdecref "Py_XDECREF"(PyObject *o)

    PyTypeObject PyLong_Type, PyFloat_Type, PyUnicode_Type, PyBytes_Type, PyTuple_Type, PyList_Type
    PyTypeObject PyDict_Type, PyBool_Type

    PyObject *new_long "PyLong_FromLong"(long v) except NULL
    PyObject *new_longlong "PyLong_FromLongLong"(long long v) except NULL
    PyObject *new_ulonglong "PyLong_FromUnsignedLongLong"(unsigned long long v) except NULL
    PyObject *new_big "_PyLong_FromByteArray"(const uint8_t *p, size_t n, int little,
                                              int signed_) except NULL
    PyObject *negative "PyNumber_Negative"(PyObject *o) except NULL
    PyObject *new_float "PyFloat_FromDouble"(double v) except NULL
    PyObject *new_bytes "term_new_bytes"(const void *p, Py_ssize_t n) except NULL
    PyObject *new_tuple "PyTuple_New"(Py_ssize_t n) except NULL
    PyObject *new_list "PyList_New"(Py_ssize_t n) except NULL
    PyObject *new_dict "PyDict_New"() except NULL
    PyObject *new_view "PyMemoryView_FromObject"(PyObject *o) except NULL
    PyObject *new_utf8 "term_new_utf8"(const void *p, Py_ssize_t n) except NULL
    PyObject *new_text "PyUnicode_New"(Py_ssize_t n, Py_UCS4 char_max) except NULL
    uint8_t *text_data "PyUnicode_DATA"(PyObject *o)
    bint text_is_ascii "PyUnicode_IS_COMPACT_ASCII"(PyObject *o)
    Py_ssize_t text_len "PyUnicode_GET_LENGTH"(PyObject *o)
    const uint8_t *text_utf8 "(const uint8_t *)PyUnicode_AsUTF8AndSize"(
        PyObject *o, Py_ssize_t *n) except NULL
    uint8_t *bytes_data "(uint8_t *)PyBytes_AS_STRING"(PyObject *o)
    int bytes_resize "_PyBytes_Resize"(PyObject **o, Py_ssize_t n) except -1
    PyObject *list_as_tuple "PyList_AsTuple"(PyObject *o) except NULL
    int list_set_slice "PyList_SetSlice"(PyObject *o, Py_ssize_t a, Py_ssize_t b,
                                         PyObject *v) except -1
    int dict_set "PyDict_SetItem"(PyObject *d, PyObject *k, PyObject *v)
    int dict_next "PyDict_Next"(PyObject *d, Py_ssize_t *at, PyObject **k, PyObject **v)
    Py_ssize_t dict_size "PyDict_GET_SIZE"(PyObject *d)
    PyObject *dict_get "PyDict_GetItemWithError"(PyObject *d, PyObject *k) except? NULL
    Py_hash_t object_hash "PyObject_Hash"(PyObject *o) except -1
    long long long_value "PyLong_AsLongLongAndOverflow"(PyObject *o, int *overflow)
    double float_value "PyFloat_AS_DOUBLE"(PyObject *o)
    double text_double "PyOS_string_to_double"(const char *s, char **end, PyObject *overflow)
    bint is_index "PyIndex_Check"(PyObject *o)
    bint is_sequence "PySequence_Check"(PyObject *o)
    bint err_matches "PyErr_ExceptionMatches"(PyObject *type)
    void err_clear "PyErr_Clear"()
    PyObject *PyExc_TypeError
    PyObject *PyExc_RecursionError
    int Py_EnterRecursiveCall(const char *where)
    void leave_recursive "Py_LeaveRecursiveCall"()


cdef extern from "<math.h>" nogil:
    bint isfinite(double v)


cdef int enter_recursive(const char *where) except -1:
    return -1 if Py_EnterRecursiveCall(where) else 0  # the exception is set


cdef tm_alloc libc_alloc = tm_alloc_libc(NULL)

# What a peer cannot know of this process, so that it cannot choose what meets in a table.
cdef uint64_t salt = int.from_bytes(os.urandom(8), "little")
cdef uint64_t salt_factor = int.from_bytes(os.urandom(8), "little") | 1


# -- text of atoms and names ----------------------------------------------------------------------

cdef dict RESERVED_ATOMS = {"true": "True", "false": "False", "nil": "None"}


cdef Py_hash_t EMPTY_HASH = text_hash("")


cdef Atom atom_of_text(str text):
    """An Atom of any legal text, `true`, `false` and `nil` too: names of nodes need them."""
    cdef Py_ssize_t chars = len(text)
    cdef bytes utf8
    cdef Atom atom
    if chars > TM_ATOM_CHARS_MAX:
        raise ValueError(f"an atom has at most {TM_ATOM_CHARS_MAX} characters, not {chars}")
    utf8 = text.encode("utf-8")
    atom = Atom.__new__(Atom)
    atom_seal(atom, text, utf8)
    return atom


cdef void atom_seal(Atom atom, str text, bytes utf8):
    cdef Py_ssize_t n = PyBytes_GET_SIZE(utf8)
    if n <= 255:
        atom.wire = bytes((TM_SMALL_ATOM_UTF8_EXT, n)) + utf8
    else:
        atom.wire = bytes((TM_ATOM_UTF8_EXT, n >> 8, n & 255)) + utf8
    atom.text = text
    atom.hash_value = text_hash(text)
    atom.sealed = True


cdef Py_hash_t text_hash(str text) except -1:
    """Another hash than the text's own, which Python has salted, so that an atom and its text do
    not meet in one slot of every dict that holds both."""
    cdef Py_hash_t h = <Py_hash_t>((<uint64_t>hash(text) ^ 0x5bd1e995) * 1000003)
    return -2 if h == -1 else h


cdef Atom node_of(object name):
    if type(name) is Atom:
        return <Atom>name
    if isinstance(name, str):
        return atom_of_text(str(name))
    raise TypeError(f"a name must be a str or an Atom, not {type(name).__name__}")


cdef int frozen(object self) except -1:
    raise AttributeError(f"{type(self).__name__} is frozen")


# -- the classes ----------------------------------------------------------------------------------

# no_gc: these hold text, numbers and each other, so no cycle can pass through them.

@cython.final
@cython.no_gc
cdef class Atom:
    """An Erlang atom.

    Equal to another `Atom` of the same text and to nothing else: not a `str`. Frozen and hashable;
    two equal atoms need not be the same object. ``case Atom("ok"):`` matches by text, ``.text`` and
    ``str()`` give it.

    `text` has at most 255 characters, as the BEAM demands; more is a ValueError. So are ``true``,
    ``false`` and ``nil``, which are `True`, `False` and `None` in Python.
    """

    __match_args__ = ("text",)

    def __cinit__(self):
        self.text = ""
        self.wire = b"\x77\x00"
        self.hash_value = EMPTY_HASH

    def __init__(self, text, /):
        cdef Atom atom
        if self.sealed:
            frozen(self)
        if not isinstance(text, str):
            raise TypeError(f"an atom is made from a str, not {type(text).__name__}")
        if text in RESERVED_ATOMS:
            raise ValueError(f"the atom {text} is {RESERVED_ATOMS[text]} in Python: use that")
        atom = atom_of_text(str(text))
        self.text = atom.text
        self.wire = atom.wire
        self.hash_value = atom.hash_value
        self.sealed = True

    def __eq__(self, other):
        if type(other) is not Atom:
            return NotImplemented
        return atom_equal(self, <Atom>other)

    def __hash__(self):
        return self.hash_value

    def __repr__(self):
        return f"Atom({self.text!r})"

    def __str__(self):
        return self.text

    def __reduce__(self):
        return Atom, (self.text,)


cdef inline bint atom_equal(Atom a, Atom b):
    if a is b:
        return True
    return a.hash_value == b.hash_value and a.wire == b.wire


cdef inline Py_hash_t words_hash(Atom node, uint64_t a, uint64_t b, const uint32_t *words,
                                 uint32_t count) noexcept:
    # Salted: a peer chooses all these numbers, and must not choose where they meet in a dict.
    cdef uint64_t h = term_mix(<uint64_t>node.hash_value ^ salt, salt_factor)
    cdef uint32_t i
    h = term_mix(h ^ a, salt_factor)
    h = term_mix(h ^ b, salt_factor)
    for i in range(count):
        h = term_mix(h ^ words[i], salt_factor)
    return <Py_hash_t>h


cdef uint64_t number(object value, str what, uint64_t highest) except? 0xffffffffffffffff:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")
    if not 0 <= value <= highest:
        raise ValueError(f"{what} must be from 0 to {highest}")
    return value


@cython.final
@cython.no_gc
cdef class Pid:
    """The identifier of a process.

    `node` is the node's name (text), `id`, `serial` and `creation` are 32-bit numbers. Equal only
    when all four are: a pid of an earlier life of the node is another pid.
    """

    __match_args__ = ("node", "id", "serial", "creation")

    def __cinit__(self):
        self.node_atom = EMPTY_ATOM

    def __init__(self, node, id, serial, creation):
        if self.sealed:
            frozen(self)
        self.id = number(id, "id", 0xffffffff)
        self.serial = number(serial, "serial", 0xffffffff)
        self.creation = number(creation, "creation", 0xffffffff)
        self.node_atom = node_of(node)
        self.sealed = True

    @property
    def node(self):
        """Name of the node that the process lives on."""
        return self.node_atom.text

    def __eq__(self, other):
        cdef Pid b
        if type(other) is not Pid:
            return NotImplemented
        b = <Pid>other
        return (self.id == b.id and self.serial == b.serial and self.creation == b.creation
                and atom_equal(self.node_atom, b.node_atom))

    def __hash__(self):
        return words_hash(self.node_atom, (<uint64_t>self.id << 32) | self.serial, self.creation,
                          NULL, 0)

    def __repr__(self):
        return f"Pid({self.node!r}, {self.id}, {self.serial}, {self.creation})"

    def __reduce__(self):
        return Pid, (self.node, self.id, self.serial, self.creation)


@cython.final
@cython.no_gc
cdef class Port:
    """The identifier of a port: `node` (text), `id` (64 bits), `creation` (32 bits)."""

    __match_args__ = ("node", "id", "creation")

    def __cinit__(self):
        self.node_atom = EMPTY_ATOM

    def __init__(self, node, id, creation):
        if self.sealed:
            frozen(self)
        self.id = number(id, "id", 0xffffffffffffffff)
        self.creation = number(creation, "creation", 0xffffffff)
        self.node_atom = node_of(node)
        self.sealed = True

    @property
    def node(self):
        """Name of the node that the port belongs to."""
        return self.node_atom.text

    def __eq__(self, other):
        cdef Port b
        if type(other) is not Port:
            return NotImplemented
        b = <Port>other
        return (self.id == b.id and self.creation == b.creation
                and atom_equal(self.node_atom, b.node_atom))

    def __hash__(self):
        return words_hash(self.node_atom, self.id, self.creation, NULL, 0)

    def __repr__(self):
        return f"Port({self.node!r}, {self.id}, {self.creation})"

    def __reduce__(self):
        return Port, (self.node, self.id, self.creation)


@cython.final
@cython.no_gc
cdef class Reference:
    """A unique reference: `node` (text), `creation` (32 bits), `words` (up to five 32-bit numbers).

    Equal only when all of it is. Aliases are references too.
    """

    __match_args__ = ("node", "creation", "words")

    def __cinit__(self):
        self.node_atom = EMPTY_ATOM

    def __init__(self, node, creation, words):
        cdef uint32_t count = 0
        if self.sealed:
            frozen(self)
        words = tuple(words)
        if len(words) > TM_REF_WORDS_MAX:
            raise ValueError(f"a reference has at most {TM_REF_WORDS_MAX} words")
        for word in words:
            self.word[count] = number(word, "a word", 0xffffffff)
            count += 1
        self.count = count
        self.creation = number(creation, "creation", 0xffffffff)
        self.node_atom = node_of(node)
        self.sealed = True

    @property
    def node(self):
        """Name of the node that made the reference."""
        return self.node_atom.text

    @property
    def words(self):
        """The numbers, as a tuple, in the order of the wire."""
        cdef uint32_t i
        return tuple([self.word[i] for i in range(self.count)])

    def __eq__(self, other):
        cdef Reference b
        if type(other) is not Reference:
            return NotImplemented
        b = <Reference>other
        return (self.count == b.count and self.creation == b.creation
                and memcmp(self.word, b.word, self.count * sizeof(uint32_t)) == 0
                and atom_equal(self.node_atom, b.node_atom))

    def __hash__(self):
        return words_hash(self.node_atom, self.creation, self.count, self.word, self.count)

    def __repr__(self):
        return f"Reference({self.node!r}, {self.creation}, {self.words!r})"

    def __reduce__(self):
        return Reference, (self.node, self.creation, self.words)


@cython.final
@cython.no_gc
cdef class Export:
    """An external fun, ``fun module:function/arity``: two texts and a number."""

    __match_args__ = ("module", "function", "arity")
    cdef Atom module_atom
    cdef Atom function_atom
    cdef readonly uint32_t arity
    cdef bint sealed

    def __cinit__(self):
        self.module_atom = self.function_atom = EMPTY_ATOM

    def __init__(self, module, function, arity):
        if self.sealed:
            frozen(self)
        self.arity = number(arity, "arity", 0x7fffffff)
        self.module_atom = node_of(module)
        self.function_atom = node_of(function)
        self.sealed = True

    @property
    def module(self):
        """Name of the module."""
        return self.module_atom.text

    @property
    def function(self):
        """Name of the function."""
        return self.function_atom.text

    def __eq__(self, other):
        cdef Export b
        if type(other) is not Export:
            return NotImplemented
        b = <Export>other
        return (self.arity == b.arity and atom_equal(self.module_atom, b.module_atom)
                and atom_equal(self.function_atom, b.function_atom))

    def __hash__(self):
        return words_hash(self.module_atom, <uint64_t>self.function_atom.hash_value, self.arity,
                          NULL, 0)

    def __repr__(self):
        return f"Export({self.module!r}, {self.function!r}, {self.arity})"

    def __reduce__(self):
        return Export, (self.module, self.function, self.arity)


@cython.final
@cython.no_gc
cdef class Fun:
    """A local fun of a peer. It cannot run here; sent back it is the fun that came, byte for byte.

    `wire` is its external term (NEW_FUN_EXT) without version byte, from which all else is read;
    other bytes are a DecodeError. Equal as on the BEAM: module, function and captured values, not
    the process that made it.
    """

    __match_args__ = ("module", "arity")
    cdef readonly bytes wire
    cdef bint sealed

    def __cinit__(self):
        self.wire = EMPTY_FUN

    def __init__(self, wire, /):
        cdef bytes term = bytes(memoryview(wire))
        if self.sealed:
            frozen(self)
        if term[:1] != b"\x70":
            raise DecodeError("not a fun", offset=0)
        used = walk(term, 0, TM_DEPTH_MAX, 0xffffffff, 0xffffffffffffffff)
        if used != <size_t>PyBytes_GET_SIZE(term):
            raise DecodeError("more bytes than one fun", offset=used)
        self.wire = fun_wire(<const uint8_t *>PyBytes_AS_STRING(term), PyBytes_GET_SIZE(term))
        self.sealed = True

    cdef const uint8_t *head(self) noexcept:
        return <const uint8_t *>PyBytes_AS_STRING(self.wire)

    cdef object part(self, size_t number):
        """A term of the fun: 0 old index, 1 old uniq, 2 creator, 3… the captured values."""
        cdef const uint8_t *p = tm_etf_skip(self.head() + 30)
        while number:
            p = tm_etf_skip(p)
            number -= 1
        return term_build(p, tm_etf_skip(p) - p, 0)

    @property
    def module(self):
        """Name of the module that defines the fun."""
        cdef const uint8_t *p = self.head() + 30
        return atom_at(&p).text

    @property
    def arity(self):
        """Number of arguments."""
        return self.head()[5]

    @property
    def uniq(self):
        """MD5 of the module's code, 16 bytes."""
        return self.wire[6:22]

    @property
    def index(self):
        """Its number in the module."""
        return tm_load_u32(self.head() + 22)

    @property
    def old_index(self):
        """Its number in the module, by the numbering before OTP 15."""
        return self.part(0)

    @property
    def old_uniq(self):
        """Hash of its syntax tree."""
        return self.part(1)

    @property
    def creator(self):
        """`Pid` of the process that made it."""
        return self.part(2)

    @property
    def free(self):
        """The captured values, a tuple of terms, made anew each time."""
        cdef const uint8_t *p = tm_etf_skip(self.head() + 30)
        cdef const uint8_t *q
        cdef uint32_t number
        cdef list values = []
        for number in range(3):
            p = tm_etf_skip(p)
        for number in range(tm_load_u32(self.head() + 26)):
            q = tm_etf_skip(p)
            values.append(term_build(p, q - p, 0))
            p = q
        return tuple(values)

    cdef object identity(self):
        # As OTP finds a fun in its tables: the code's MD5 and the number decide the rest.
        return self.module, self.uniq, self.index

    cdef bytes canonical(self):
        return b"\x70" + canonical((self.identity(), self.free))

    def __eq__(self, other):
        if type(other) is not Fun:
            return NotImplemented
        return self.wire == (<Fun>other).wire or self.canonical() == (<Fun>other).canonical()

    def __hash__(self):
        return hash(self.identity())

    def __repr__(self):
        return f"<Fun {self.module}/{self.arity} index={self.index} uniq={self.uniq.hex()}>"

    def __reduce__(self):
        return Fun, (self.wire,)


cdef bytes fun_wire(const uint8_t *p, Py_ssize_t n):
    """A copy with its Size field right: some releases send a wrong one (OTP 23, before connect)."""
    cdef bytes wire = PyBytes_FromStringAndSize(<const char *>p, n)
    if n - 1 <= 0xffffffff:
        tm_store_u32(<uint8_t *>PyBytes_AS_STRING(wire) + 1, <uint32_t>(n - 1))
    return wire


@cython.final
@cython.no_gc
cdef class BitString:
    """A bit string whose length is no multiple of eight.

    `data` are its bytes, `bits` (1 to 8) says how many of the last byte count, from the most
    significant one; the others are zeroed. With `bits` 8, or without data, it is the binary `data`:
    it encodes as one and equals those `bytes`.
    """

    __match_args__ = ("data", "bits")
    cdef readonly bytes data
    cdef readonly int bits
    cdef bint sealed

    def __cinit__(self):
        self.data = b""
        self.bits = 8

    def __init__(self, data, bits):
        if self.sealed:
            frozen(self)
        data = bytes(memoryview(data))
        if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
            raise ValueError("bits must be from 1 to 8")
        self.bits = bits if data else 8
        if self.bits != 8:
            last = len(data) - 1
            data = data[:last] + bytes((data[last] & (0xff00 >> self.bits) & 0xff,))
        self.data = data
        self.sealed = True

    @property
    def bit_size(self):
        """Length in bits."""
        return 8 * len(self.data) - 8 + self.bits if self.data else 0

    def __eq__(self, other):
        cdef BitString b
        if type(other) is BitString:
            b = <BitString>other
            return self.bits == b.bits and self.data == b.data
        if isinstance(other, bytes):
            return self.bits == 8 and self.data == other
        return NotImplemented

    def __hash__(self):
        return hash(self.data) if self.bits == 8 else hash((self.data, self.bits))

    def __repr__(self):
        return f"BitString({self.data!r}, {self.bits})"

    def __reduce__(self):
        return BitString, (self.data, self.bits)


@cython.final
cdef class Binary:
    """Any contiguous buffer (an array, a NumPy array, a memory map) to be encoded as a binary.

    `buffer` is the object that was given; it is read when the term is encoded, its items as they
    lie in memory. Equal to another `Binary` and to `bytes` of the same content.
    """

    __match_args__ = ("buffer",)
    cdef readonly object buffer

    def __init__(self, buffer, /):
        if self.buffer is not None:
            frozen(self)
        if not memoryview(buffer).c_contiguous:
            raise BufferError("the buffer is not contiguous: copy it first")
        self.buffer = buffer

    cdef bytes content(self):
        return b"" if self.buffer is None else memoryview(self.buffer).tobytes()

    def __bytes__(self):
        return self.content()

    def __eq__(self, other):
        if type(other) is Binary:
            return self.content() == (<Binary>other).content()
        if isinstance(other, bytes):
            return self.content() == other
        return NotImplemented

    def __hash__(self):
        if self.buffer is not None and not memoryview(self.buffer).readonly:
            raise TypeError("unhashable: the buffer of this Binary is writable")
        return hash(self.content())

    def __repr__(self):
        return f"<Binary of {len(self.content())} bytes in {type(self.buffer).__name__}>"

    def __reduce__(self):
        return Binary, (self.content(),)


# trashcan: a peer nests these as deep as the limit lets it, and freeing them must not recurse.

@cython.final
@cython.trashcan(True)
cdef class ImproperList:
    """A list whose last tail is not ``[]``: ``[a, b | tail]``.

    `items` is a tuple of one or more terms, `tail` any term but a list. It has the length, the
    items and the order of a sequence of its `items`; `tail` stands apart. Equal as ``=:=`` says.
    Sequence patterns do not match it, or they would lose the tail: ``case ImproperList(items,
    tail):`` does.
    """

    __match_args__ = ("items", "tail")
    cdef readonly tuple items
    cdef readonly object tail
    cdef bint sealed

    def __cinit__(self):
        self.items = (None,)

    def __init__(self, items, tail):
        if self.sealed:
            frozen(self)
        items = tuple(items)
        if not items:
            raise ValueError("an improper list has at least one item before its tail")
        if isinstance(tail, (list, ImproperList)):
            raise ValueError("with a list as its tail it is one longer list: join the two")
        self.items = items
        self.tail = tail
        self.sealed = True

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]

    def __iter__(self):
        return iter(self.items)

    def __contains__(self, item):
        return item in self.items

    def __eq__(self, other):
        if type(other) is not ImproperList:
            return NotImplemented
        return identical(self, other)

    def __hash__(self):
        enter_recursive(b" in the hash of an ImproperList")
        try:
            return hash((ImproperList, self.items, self.tail))
        finally:
            leave_recursive()

    def __repr__(self):
        return f"ImproperList({safe_repr(list(self.items))}, {safe_repr(self.tail)})"

    def __reduce__(self):
        return ImproperList, (self.items, self.tail)


@cython.final
@cython.trashcan(True)
cdef class TermMap:
    """A map with Erlang's keys: ``1``, ``1.0`` and ``True`` are three, and any term can be one.

    `decode` makes it where a `dict` would lose or refuse a key; every other map is a `dict`. It is
    a frozen `collections.abc.Mapping` in the order of the wire. Keys are found, and maps compared,
    by ``=:=``: as binaries ``"a"`` and ``b"a"`` are one key; ``0.0`` and ``-0.0`` are two.

    `pairs` is a mapping or an iterable of (key, value); the same key twice is a ValueError, a key
    that is no term an EncodeError. Keys must not be changed while they are in use here.
    """

    cdef tuple pairs  # key, value, key, value …
    cdef dict index   # canonical bytes of each key → its place in pairs; None until it is needed
    cdef bint sealed

    def __cinit__(self):
        self.pairs = ()

    def __init__(self, pairs=(), /):
        cdef list flat = []
        if self.sealed:
            frozen(self)
        for key, value in pairs.items() if isinstance(pairs, Mapping) else pairs:
            flat.append(key)
            flat.append(value)
        index = index_pairs(tuple(flat))
        if index is None:
            raise ValueError("the same key twice")
        self.pairs = tuple(flat)
        self.index = index
        self.sealed = True

    cdef dict places(self):
        if self.index is None:
            self.index = index_pairs(self.pairs)
        return self.index

    cdef Py_ssize_t find(self, object key) except -2:
        try:
            place = self.places().get(canonical(key))
        except EncodeError:
            return -1
        return -1 if place is None else place

    def __len__(self):
        return len(self.pairs) // 2

    def __getitem__(self, key):
        cdef Py_ssize_t at = self.find(key)
        if at < 0:
            raise KeyError(key)
        return self.pairs[at + 1]

    def __contains__(self, key):
        return self.find(key) >= 0

    def __iter__(self):
        return iter(self.pairs[::2])

    def get(self, key, default=None):
        """The value of `key`, or `default` where there is none."""
        cdef Py_ssize_t at = self.find(key)
        return default if at < 0 else self.pairs[at + 1]

    def keys(self):
        """A view of the keys, in order."""
        return KeysView(self)

    def values(self):
        """A view of the values, in order."""
        return ValuesView(self)

    def items(self):
        """A view of the (key, value) pairs, in order."""
        return ItemsView(self)

    def __eq__(self, other):
        if type(other) is not TermMap and not isinstance(other, Mapping):
            return NotImplemented
        return len(self) == len(other) and identical(self, other)

    def __hash__(self):
        cdef Py_ssize_t at
        enter_recursive(b" in the hash of a TermMap")
        try:
            return hash(frozenset([(k, self.pairs[at + 1]) for k, at in self.places().items()]))
        finally:
            leave_recursive()

    def __repr__(self):
        return f"TermMap({safe_repr(list(zip(self.pairs[::2], self.pairs[1::2])))})"

    def __reduce__(self):
        return TermMap, (list(zip(self.pairs[::2], self.pairs[1::2])),)


# ABC registration leaves the flag of static types alone, and without it `case {…}` does not match.
Mapping.register(TermMap)
term_set_mapping_flag(<PyObject *>TermMap)


cdef str safe_repr(object value):
    """repr() of what a peer may have sent: Python refuses to print very long integers."""
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return f"<{type(value).__name__}, too large to show>"


cdef Atom EMPTY_ATOM = atom_of_text("")
cdef bytes EMPTY_FUN = (
    b"\x70\x00\x00\x00\x35" + bytes(25) + b"\x77\x00\x61\x00\x61\x00\x58\x77\x00" + bytes(12)
)
EMPTY_FUN = EMPTY_FUN[:4] + bytes((len(EMPTY_FUN) - 1,)) + EMPTY_FUN[5:]


# Addresses of the types, for comparison in the hot loops.
cdef PyTypeObject *atom_type = <PyTypeObject *>Atom
cdef PyTypeObject *pid_type = <PyTypeObject *>Pid
cdef PyTypeObject *port_type = <PyTypeObject *>Port
cdef PyTypeObject *reference_type = <PyTypeObject *>Reference


# -- the table of atoms ---------------------------------------------------------------------------

# Text → object for atoms that came in, so that a name is made once. Open addressing, salted, with
# a bounded search: an atom that finds no place, or a full table, is made anew each time.

cdef enum:
    ATOM_SLOTS_MIN = 1024
    ATOM_PROBES_MAX = 32

cdef struct AtomSlot:
    uint64_t hash
    const uint8_t *text  # in the object's own bytes
    size_t len
    PyObject *obj        # owned; NULL is a free slot

cdef AtomSlot *atom_slots = NULL
cdef size_t atom_mask = 0
cdef size_t atom_count = 0
cdef size_t atom_count_max = TM_ATOM_TABLE_COUNT_DEFAULT


cdef inline uint64_t atom_hash(const uint8_t *p, size_t n) noexcept:
    cdef uint64_t h = salt ^ n
    cdef uint64_t word
    cdef uint32_t low, high
    while n > 8:
        memcpy(&word, p, 8)
        h = term_mix(h ^ word, salt_factor)
        p += 8
        n -= 8
    if n >= 4:
        memcpy(&low, p, 4)
        memcpy(&high, p + n - 4, 4)
        word = (<uint64_t>high << 32) | low
    elif n:
        word = (<uint64_t>p[0] << 16) | (<uint64_t>p[n >> 1] << 8) | p[n - 1]
    else:
        word = 0
    return term_mix(h ^ word, salt_factor)


cdef bint atom_place(AtomSlot *slots, size_t mask, AtomSlot *entry) noexcept:
    cdef size_t i = entry.hash & mask
    cdef int probe
    for probe in range(ATOM_PROBES_MAX):
        if slots[i].obj == NULL:
            slots[i] = entry[0]
            return True
        i = (i + 1) & mask
    return False


cdef int atom_table_grow() except -1:
    cdef size_t size = 2 * (atom_mask + 1) if atom_slots else ATOM_SLOTS_MIN
    cdef AtomSlot *slots = <AtomSlot *>PyMem_Malloc(size * sizeof(AtomSlot))
    cdef size_t i
    global atom_slots, atom_mask, atom_count
    if slots == NULL:
        raise MemoryError()
    memset(slots, 0, size * sizeof(AtomSlot))
    for i in range(atom_mask + 1 if atom_slots else 0):
        if atom_slots[i].obj and not atom_place(slots, size - 1, &atom_slots[i]):
            decref(atom_slots[i].obj)
            atom_count -= 1
    PyMem_Free(atom_slots)
    atom_slots = slots
    atom_mask = size - 1
    return 0


cdef int atom_keep(object value, const uint8_t *text, size_t n) except -1:
    cdef AtomSlot entry
    global atom_count
    if 2 * (atom_count + 1) > atom_mask + 1:
        atom_table_grow()
    entry.hash = atom_hash(text, n)
    entry.text = text
    entry.len = n
    entry.obj = <PyObject *>value
    if atom_place(atom_slots, atom_mask, &entry):
        incref(entry.obj)
        atom_count += 1
    return 0


cdef PyObject *atom_make(const uint8_t *p, size_t n) except NULL:
    cdef bytes utf8 = PyBytes_FromStringAndSize(<const char *>p, n)
    cdef Atom atom = Atom.__new__(Atom)
    cdef size_t head = 2 if n <= 255 else 3
    atom_seal(atom, utf8.decode("utf-8"), utf8)
    if atom_count < atom_count_max:
        atom_keep(atom, <const uint8_t *>PyBytes_AS_STRING(atom.wire) + head, n)
    incref(<PyObject *>atom)
    return <PyObject *>atom


cdef inline PyObject *atom_find(const uint8_t *p, size_t n) except NULL:
    """A new reference to the object of an atom whose UTF-8 text is at p."""
    cdef uint64_t h = atom_hash(p, n)
    cdef size_t i = h & atom_mask
    cdef AtomSlot *slot
    cdef int probe
    for probe in range(ATOM_PROBES_MAX):
        slot = &atom_slots[i]
        if slot.obj == NULL:
            break
        if slot.hash == h and slot.len == n and memcmp(slot.text, p, n) == 0:
            incref(slot.obj)
            return slot.obj
        i = (i + 1) & atom_mask
    return atom_make(p, n)


cdef PyObject *atom_find_latin1(tm_bytes text) except NULL:
    cdef bytes utf8 = text.ptr[:text.len].decode("latin-1").encode("utf-8")
    return atom_find(<const uint8_t *>PyBytes_AS_STRING(utf8), PyBytes_GET_SIZE(utf8))


cdef inline PyObject *atom_take(tm_atom atom) except NULL:
    if atom.latin1:
        return atom_find_latin1(atom.text)
    return atom_find(atom.text.ptr, atom.text.len)


cdef Atom name_take(tm_atom atom):
    """The atom in an identifier, which is an Atom even where its text is `true`."""
    cdef PyObject *found = atom_take(atom)
    cdef object value = <object>found
    decref(found)
    if type(value) is Atom:
        return <Atom>value
    return atom_of_text("nil" if value is None else str(value).lower())


cdef Atom atom_at(const uint8_t **p):
    return name_take(tm_etf_take_atom(p))


def atom_table():
    """``(count, count_max)``: how many atoms are kept, and how many may be."""
    return atom_count, atom_count_max


def set_atom_table_count_max(count, /):
    """Sets how many distinct atoms are kept; more still decode, uncached. Keeps what is there."""
    global atom_count_max
    atom_count_max = number(count, "count", 1 << 30)


atom_table_grow()
cdef tuple FIXED_ATOMS = ((b"true", True), (b"false", False), (b"nil", None))
for _text, _value in FIXED_ATOMS:
    atom_keep(_value, <const uint8_t *>PyBytes_AS_STRING(_text), len(_text))
del _text, _value


# -- decoding: the walk and its errors ------------------------------------------------------------

cdef size_t walk(bytes data, size_t start, uint32_t depth_max, uint32_t big_bytes_max,
                 uint64_t decoded_bytes_max) except 0:
    """Length of the term at data[start:]; raises DecodeError or LimitExceeded."""
    cdef tm_walk_limits limits
    cdef tm_walk_result result
    cdef tm_bytes span
    cdef int rc
    limits.depth_max = depth_max
    limits.big_bytes_max = big_bytes_max
    limits.decoded_bytes_max = decoded_bytes_max
    limits.cache_refs = 0
    span.ptr = <const uint8_t *>PyBytes_AS_STRING(data) + start
    span.len = PyBytes_GET_SIZE(data) - start
    rc = tm_etf_walk(span, &limits, &libc_alloc, &result)
    if rc == 0:
        return result.len
    raise_walk(data, start, &limits, &result, rc)


cdef int raise_walk(bytes data, size_t start, const tm_walk_limits *limits,
                    const tm_walk_result *result, int rc) except -1:
    cdef str what, path
    if rc != TM_EPEER_LIMIT and rc != TM_EPEER_MALFORMED:
        raise MemoryError()
    what = result.what.decode("ascii")
    path = walk_path(<const uint8_t *>PyBytes_AS_STRING(data) + start, result)
    offset = start + result.offset
    message = f"{what} at {path}, byte {offset}"
    if rc == TM_EPEER_MALFORMED:
        raise DecodeError(message, path=path, offset=offset)
    if result.depth > limits.depth_max:
        limit = "depth_max"
    elif result.decoded_bytes > limits.decoded_bytes_max:
        limit = "decoded_bytes_max"
    else:
        limit = "big_bytes_max"
    raise LimitExceeded(message, limit=limit, path=path, offset=offset,
                        hint=f"Raise {limit}, if the sender is to be trusted with it.")


cdef str walk_path(const uint8_t *term, const tm_walk_result *result):
    cdef uint32_t kept = min(result.path_len, <uint32_t>TM_WALK_PATH_MAX)
    cdef uint32_t i, pair
    cdef const tm_walk_step *step
    cdef const uint8_t *p
    cdef list parts = ["$"]
    for i in range(kept):
        step = &result.path[i]
        if step.tag == TM_MAP_EXT and step.part == 0:
            parts.append(f".key({step.index})")
        elif step.tag == TM_MAP_EXT:
            # The walk was past this key, so its bytes are sound.
            p = term + step.offset + 5
            for pair in range(2 * step.index):
                p = tm_etf_skip(p)
            parts.append(key_step_at(p, step.index))
        elif step.tag == TM_LIST_EXT and step.part:
            parts.append(".tail")
        elif step.tag == TM_NEW_FUN_EXT:
            parts.append(f".free[{step.index}]")
        else:
            parts.append(f"[{step.index}]")
    if result.path_len > kept:
        parts.append("…")
    return "".join(parts)


cdef str key_step_at(const uint8_t *p, uint32_t pair):
    cdef uint8_t tag = p[0]
    if tag in (TM_SMALL_TUPLE_EXT, TM_LARGE_TUPLE_EXT, TM_LIST_EXT, TM_STRING_EXT, TM_MAP_EXT,
               TM_LARGE_BIG_EXT, TM_NEW_FUN_EXT):
        return f".value({pair})"
    return key_step(term_build(p, tm_etf_skip(p) - p, 0))


cdef str key_step(object key):
    """How a path names the value of a key."""
    if type(key) is Atom:
        text = (<Atom>key).text
    elif isinstance(key, bytes):
        text = key[:64].decode("utf-8", "replace")
    elif isinstance(key, str):
        text = key
    else:
        return "{" + safe_repr(key)[:64] + "}"
    return f".{text}" if text.isidentifier() and len(text) <= 64 else "{" + repr(text[:64]) + "}"


# -- decoding: the builder ------------------------------------------------------------------------

# A frame is a container under construction. Its obj already has its final size; slots that are not
# filled yet hold NULL, which the collector and the deallocator of tuples and lists both allow.

cdef enum:
    FRAMES_SMALL = 24

    K_ROOT = 0      # the one slot of the result
    K_TUPLE
    K_LIST
    K_MAP           # obj is a tuple key, value, key, value …
    K_IMPROPER      # obj is a pair: items, tail

cdef struct Frame:
    PyObject *obj      # owned
    PyObject *base     # owned; K_LIST: the items before obj, when one list came as several
    PyObject **slot    # next to be filled
    PyObject **end
    uint32_t height    # levels of the parts that are complete, at most
    uint32_t key_height  # K_MAP: the same of its keys
    uint8_t kind
    uint8_t key_level  # maps on the way here of whose keys this is a part

cdef struct Builder:
    Frame *frames
    size_t depth       # frames in use, the root included
    size_t cap
    int options
    PyObject *result   # owned
    const uint8_t *start
    const uint8_t *at  # for errors
    Frame small[FRAMES_SMALL]


cdef object term_build(const uint8_t *ptr, size_t len, int options):
    cdef PyObject *made = build(ptr, options)
    cdef object term = <object>made
    decref(made)
    return term


cdef PyObject *build(const uint8_t *ptr, int options) except NULL:
    cdef Builder b
    cdef size_t i
    b.frames = b.small
    b.cap = FRAMES_SMALL
    b.depth = 1
    b.options = options
    b.result = NULL
    b.start = ptr
    b.small[0].obj = b.small[0].base = NULL
    b.small[0].slot = &b.result
    b.small[0].end = &b.result + 1
    b.small[0].height = 0
    b.small[0].kind = K_ROOT
    b.small[0].key_level = 0
    try:
        build_run(&b, ptr)
    except:
        for i in range(b.depth):
            xdecref(b.frames[i].obj)
            xdecref(b.frames[i].base)
        xdecref(b.result)
        raise
    finally:
        if b.frames != b.small:
            PyMem_Free(b.frames)
    return b.result


cdef int frames_grow(Builder *b) except -1:
    cdef size_t size = b.cap * sizeof(Frame)
    cdef Frame *frames
    if b.frames == b.small:
        frames = <Frame *>PyMem_Malloc(2 * size)
        if frames != NULL:
            memcpy(frames, b.small, size)
    else:
        frames = <Frame *>PyMem_Realloc(b.frames, 2 * size)
    if frames == NULL:
        raise MemoryError()
    b.frames = frames
    b.cap *= 2
    return 0


cdef inline Frame *frame_open(Builder *b, PyObject **slot, PyObject *obj, PyObject **items,
                              Py_ssize_t count, uint8_t kind) except NULL:
    """Pushes a frame that takes obj; the parent goes on at slot later."""
    cdef Frame *f = &b.frames[b.depth - 1]
    cdef uint8_t key_level = f.key_level
    f.slot = slot
    if f.kind == K_MAP and not (slot - term_tuple_items(f.obj)) & 1:
        key_level += 1
    if b.depth == b.cap:
        try:
            frames_grow(b)
        except:
            decref(obj)
            raise
    f = &b.frames[b.depth]
    b.depth += 1
    f.obj = obj
    f.base = NULL
    f.slot = items
    f.end = items + count
    f.height = 0
    f.key_height = 0
    f.kind = kind
    f.key_level = key_level
    return f


cdef int build_run(Builder *b, const uint8_t *p) except -1:
    cdef Frame *f = b.frames
    cdef PyObject **slot = f.slot
    cdef PyObject **end = f.end
    cdef PyObject *value
    cdef const uint8_t *q
    cdef uint32_t count, height
    cdef uint8_t tag
    while True:
        while slot != end:
            tag = p[0]
            if tag == TM_SMALL_INTEGER_EXT:
                value = new_long(p[1])
                p += 2
            elif tag == TM_INTEGER_EXT:
                value = new_long(<int32_t>tm_load_u32(p + 1))
                p += 5
            elif tag == TM_SMALL_ATOM_UTF8_EXT:
                value = atom_find(p + 2, p[1])
                p += 2 + <size_t>p[1]
            elif tag == TM_BINARY_EXT:
                count = tm_load_u32(p + 1)
                value = build_binary(b, p + 5, count)
                p += 5 + <size_t>count
            elif tag == TM_NEW_FLOAT_EXT:
                p += 1
                q = p
                value = new_float(tm_etf_take_f64(&q))
                p += 8
            elif tag == TM_SMALL_TUPLE_EXT or tag == TM_LARGE_TUPLE_EXT:
                if tag == TM_SMALL_TUPLE_EXT:
                    count = p[1]
                    p += 2
                else:
                    count = tm_load_u32(p + 1)
                    p += 5
                value = new_tuple(count)
                if count:
                    f = frame_open(b, slot, value, term_tuple_items(value), count, K_TUPLE)
                    slot = f.slot
                    end = f.end
                    continue
            elif tag == TM_LIST_EXT:
                count = tm_load_u32(p + 1)
                p += 5
                if count == 0:
                    continue  # the tail alone is the term
                value = new_list(count)
                f = frame_open(b, slot, value, term_list_items(value), count, K_LIST)
                slot = f.slot
                end = f.end
                continue
            elif tag == TM_NIL_EXT:
                value = new_list(0)
                p += 1
            elif tag == TM_MAP_EXT:
                count = tm_load_u32(p + 1)
                p += 5
                if count == 0:
                    value = new_dict()
                else:
                    value = new_tuple(2 * <Py_ssize_t>count)
                    f = frame_open(b, slot, value, term_tuple_items(value),
                                   2 * <Py_ssize_t>count, K_MAP)
                    if f.key_level > TM_KEY_NESTING_MAX:
                        b.at = p - 5
                        raise_key_nesting(b)
                    slot = f.slot
                    end = f.end
                    continue
            elif tag == TM_STRING_EXT:
                count = tm_load_u16(p + 1)
                value = build_string(p + 3, count)
                p += 3 + <size_t>count
            else:
                q = p
                value = build_rare(b, &q)
                p = q
            slot[0] = value
            slot += 1
        # The container is full: close it, and put it where its parent waits.
        if f.kind == K_LIST:
            f.slot = slot
            q = p
            value = build_tail(f, &q)
            p = q
            if value == NULL:
                slot = f.slot
                end = f.end
                continue
            # build_tail has taken base and obj
        elif f.kind == K_TUPLE:
            value = f.obj
        elif f.kind == K_MAP:
            f.slot = slot
            b.at = p
            value = build_map(b, f)
        elif f.kind == K_IMPROPER:
            value = build_improper(f)
        else:
            return 0
        height = f.height + 1
        b.depth -= 1
        f = &b.frames[b.depth - 1]
        slot = f.slot
        end = f.end
        if height > f.height:
            f.height = height
        if f.kind == K_MAP and height > f.key_height and not (slot - term_tuple_items(f.obj)) & 1:
            f.key_height = height
        slot[0] = value
        slot += 1


cdef inline PyObject *build_binary(Builder *b, const uint8_t *p, uint32_t n) except NULL:
    if b.options == 0:
        return new_bytes(p, n)
    return build_binary_as(b, p, n)


cdef PyObject *build_binary_as(Builder *b, const uint8_t *p, uint32_t n) except NULL:
    cdef PyObject *value
    cdef PyObject *view
    cdef size_t chars
    if b.options & TERM_VIEWS and n >= TM_VIEW_BYTES_MIN:
        value = new_bytes(p, n)
        view = new_view(value)
        decref(value)
        return view
    if b.options & TERM_BINARIES_UTF8 and tm_utf8_valid(tm_bytes_of(p, n), &chars):
        if chars != n:
            return new_utf8(p, n)
        value = new_text(n, 127)
        memcpy(text_data(value), p, n)
        return value
    return new_bytes(p, n)


cdef PyObject *build_string(const uint8_t *p, uint32_t n) except NULL:
    cdef PyObject *value = new_list(n)
    cdef PyObject **items = term_list_items(value)
    cdef uint32_t i
    for i in range(n):
        items[i] = new_long(p[i])  # small integers always exist
    return value


cdef int list_join(Frame *f) except -1:
    """Moves obj to the end of base, which keeps room to spare: a list in n pieces costs n steps."""
    cdef Py_ssize_t n = var_size(f.base)
    list_set_slice(f.base, n, n, f.obj)
    decref(f.obj)
    f.obj = NULL
    return 0


cdef PyObject *build_tail(Frame *f, const uint8_t **pp) except? NULL:
    """Closes a list, or gives its frame the next slots to fill: then NULL without an error."""
    cdef const uint8_t *p = pp[0]
    cdef PyObject *value
    cdef PyObject *pair
    cdef uint32_t n
    if p[0] == TM_LIST_EXT and tm_load_u32(p + 1) == 0:
        pp[0] = p + 5
        return NULL  # the slots stay full, so this is asked again
    if f.base != NULL:
        list_join(f)
    else:
        f.base = f.obj
        f.obj = NULL
    if p[0] == TM_NIL_EXT:
        pp[0] = p + 1
        value = f.base
        f.base = NULL
        return value
    if p[0] == TM_LIST_EXT:
        n = tm_load_u32(p + 1)
        f.obj = new_list(n)
        f.slot = term_list_items(f.obj)
        f.end = f.slot + n
        pp[0] = p + 5
        return NULL
    if p[0] == TM_STRING_EXT:
        n = tm_load_u16(p + 1)
        f.obj = build_string(p + 3, n)
        pp[0] = p + 3 + n
        list_join(f)
        value = f.base
        f.base = NULL
        return value
    pair = new_tuple(2)
    f.obj = pair
    value = list_as_tuple(f.base)
    decref(f.base)
    f.base = NULL
    f.slot = term_tuple_items(pair) + 1
    f.end = f.slot + 1
    f.kind = K_IMPROPER
    term_tuple_items(pair)[0] = value
    return NULL


cdef PyObject *build_improper(Frame *f) except NULL:
    cdef ImproperList made = ImproperList.__new__(ImproperList)
    cdef PyObject **items = term_tuple_items(f.obj)
    made.items = <tuple>items[0]
    made.tail = <object>items[1]
    made.sealed = True
    decref(f.obj)
    f.obj = NULL
    incref(<PyObject *>made)
    return <PyObject *>made


cdef PyObject *build_rare(Builder *b, const uint8_t **pp) except NULL:
    cdef const uint8_t *p = pp[0]
    cdef uint8_t tag = p[0]
    cdef object value
    cdef BitString bits
    cdef Export export
    cdef Fun fun
    cdef tm_bytes digits
    cdef c_bool minus
    cdef uint32_t n
    if tag in (TM_ATOM_EXT, TM_ATOM_UTF8_EXT, TM_SMALL_ATOM_EXT):
        return atom_take(tm_etf_take_atom(pp))
    if tag in (TM_SMALL_BIG_EXT, TM_LARGE_BIG_EXT):
        digits = tm_etf_take_big(pp, &minus)
        return build_big(digits, minus)
    if tag in (TM_NEW_PID_EXT, TM_PID_EXT):
        value = take_pid(pp)
    elif tag in (TM_NEWER_REFERENCE_EXT, TM_NEW_REFERENCE_EXT, TM_REFERENCE_EXT):
        value = take_ref(pp)
    elif tag in (TM_V4_PORT_EXT, TM_NEW_PORT_EXT, TM_PORT_EXT):
        value = take_port(pp)
    elif tag == TM_FLOAT_EXT:
        value = float(p[1:32].split(b"\0", 1)[0])
        pp[0] = p + 32
    elif tag == TM_BIT_BINARY_EXT:
        n = tm_load_u32(p + 1)
        pp[0] = p + 6 + n
        if n == 0 or p[5] == 8:
            return build_binary(b, p + 6, n)
        bits = BitString.__new__(BitString)
        # Without a source, or Python hands out its shared object of that one byte.
        bits.data = PyBytes_FromStringAndSize(NULL, n)
        memcpy(PyBytes_AS_STRING(bits.data), p + 6, n)
        (<uint8_t *>PyBytes_AS_STRING(bits.data))[n - 1] &= <uint8_t>(0xff00 >> p[5])
        bits.bits = p[5]
        bits.sealed = True
        value = bits
    elif tag == TM_EXPORT_EXT:
        export = Export.__new__(Export)
        pp[0] = p + 1
        export.module_atom = atom_at(pp)
        export.function_atom = atom_at(pp)
        export.arity = <uint32_t>tm_etf_take_i32(pp)
        export.sealed = True
        value = export
    else:
        # NEW_FUN_EXT: the walk lets no other tag through.
        pp[0] = tm_etf_skip(p)
        fun = Fun.__new__(Fun)
        fun.wire = fun_wire(p, pp[0] - p)
        fun.sealed = True
        value = fun
    incref(<PyObject *>value)
    return <PyObject *>value


cdef PyObject *build_big(tm_bytes digits, bint minus) except NULL:
    cdef uint64_t magnitude = 0
    cdef PyObject *positive
    cdef PyObject *value
    if digits.len > 8:
        positive = new_big(digits.ptr, digits.len, 1, 0)
    else:
        memcpy(&magnitude, digits.ptr, digits.len)
        if not minus:
            return new_ulonglong(magnitude)
        if magnitude <= 0x7fffffffffffffff:
            return new_longlong(-<int64_t>magnitude)
        positive = new_ulonglong(magnitude)
    if not minus:
        return positive
    value = negative(positive)
    decref(positive)
    return value


cdef Pid take_pid(const uint8_t **pp):
    cdef Pid made = Pid.__new__(Pid)
    cdef tm_atom node
    cdef tm_pid pid
    tm_etf_take_pid(pp, &node, &pid)
    made.node_atom = name_take(node)
    made.id = pid.id
    made.serial = pid.serial
    made.creation = pid.creation
    made.sealed = True
    return made


cdef Port take_port(const uint8_t **pp):
    cdef Port made = Port.__new__(Port)
    cdef tm_atom node
    cdef tm_port port
    tm_etf_take_port(pp, &node, &port)
    made.node_atom = name_take(node)
    made.id = port.id
    made.creation = port.creation
    made.sealed = True
    return made


cdef Reference take_ref(const uint8_t **pp):
    cdef Reference made = Reference.__new__(Reference)
    cdef tm_atom node
    cdef tm_ref ref
    tm_etf_take_ref(pp, &node, &ref)
    made.node_atom = name_take(node)
    made.creation = ref.creation
    made.count = ref.count
    memcpy(made.word, ref.words, ref.count * sizeof(uint32_t))
    made.sealed = True
    return made


# -- decoding: maps -------------------------------------------------------------------------------

cdef struct HashCount:
    Py_hash_t hash
    uint32_t count  # 0 is a free place


cdef bint key_is_salted(PyObject *key) noexcept:
    """Types whose hash a peer cannot foresee."""
    cdef PyTypeObject *t = type_of(key)
    return (t == &PyBytes_Type or t == &PyUnicode_Type or t == atom_type or t == pid_type
            or t == reference_type or t == port_type)


cdef bint keys_flood(PyObject **pairs, Py_ssize_t count) except -1:
    """Whether a dict of these keys would be slow: many equal hashes, or a key without one."""
    cdef size_t size = 1, place
    cdef HashCount *seen
    cdef Py_ssize_t i
    cdef Py_hash_t h
    cdef bint flood = False
    while size < 2 * <size_t>count:
        size *= 2
    seen = NULL
    for i in range(count):
        if key_is_salted(pairs[2 * i]):
            continue
        if seen == NULL:
            seen = <HashCount *>PyMem_Malloc(size * sizeof(HashCount))
            if seen == NULL:
                raise MemoryError()
            memset(seen, 0, size * sizeof(HashCount))
        try:
            h = object_hash(pairs[2 * i])
        except TypeError:
            flood = True
            break
        place = term_mix(<uint64_t>h ^ salt, salt_factor) & (size - 1)
        while seen[place].count and seen[place].hash != h:
            place = (place + 1) & (size - 1)
        seen[place].hash = h
        seen[place].count += 1
        if seen[place].count > TM_HASH_EQUAL_COUNT_MAX:
            flood = True
            break
    PyMem_Free(seen)
    return flood


cdef PyObject *build_dict(PyObject **pairs, Py_ssize_t count) except? NULL:
    """A dict of the pairs, or NULL without an error where it would lose or refuse a key."""
    cdef PyObject *made = term_dict_presized(count)
    cdef PyTypeObject *t
    cdef Py_ssize_t i
    for i in range(count):
        t = type_of(pairs[2 * i])
        if t == &PyList_Type or t == &PyDict_Type:
            decref(made)
            return NULL
        if dict_set(made, pairs[2 * i], pairs[2 * i + 1]) < 0:
            decref(made)
            if err_matches(PyExc_TypeError) or err_matches(PyExc_RecursionError):
                err_clear()
            return NULL
    if dict_size(made) == count:
        return made
    decref(made)
    return NULL


cdef PyObject *build_map(Builder *b, Frame *f) except NULL:
    """A dict, else a TermMap; takes the frame's obj."""
    cdef Py_ssize_t count = var_size(f.obj) // 2
    cdef PyObject **pairs = term_tuple_items(f.obj)
    cdef PyObject *made = NULL
    cdef TermMap term_map
    if f.key_height <= TM_KEY_DEPTH_MAX and (
            count < TM_HASH_CHECK_COUNT_MIN or not keys_flood(pairs, count)):
        made = build_dict(pairs, count)
    if made == NULL:
        term_map = TermMap.__new__(TermMap)
        term_map.pairs = <tuple>f.obj
        if count > 1:
            term_map.index = index_pairs(term_map.pairs)
            if term_map.index is None:
                raise_duplicate(b)
        term_map.sealed = True
        made = <PyObject *>term_map
        incref(made)
    decref(f.obj)
    f.obj = NULL
    return made


cdef dict index_pairs(tuple pairs):
    """Canonical bytes of each key → its place in pairs, or None if two keys are the same."""
    cdef dict index = {}
    cdef Py_ssize_t at
    for at in range(0, len(pairs), 2):
        index[canonical(pairs[at])] = at
    return index if len(index) == len(pairs) // 2 else None


cdef str build_path(Builder *b):
    cdef list parts = ["$"]
    cdef Py_ssize_t i, place
    cdef Frame *f
    for i in range(1, <Py_ssize_t>min(b.depth - 1, <size_t>TM_WALK_PATH_MAX + 1)):
        f = &b.frames[i]
        if f.kind == K_IMPROPER:
            parts.append(".tail")
            continue
        if f.kind == K_LIST:
            place = f.slot - term_list_items(f.obj)
            if f.base != NULL:
                place += var_size(f.base)
        else:
            place = f.slot - term_tuple_items(f.obj)
        if f.kind != K_MAP:
            parts.append(f"[{place}]")
        elif place & 1:
            parts.append(key_step(<object>term_tuple_items(f.obj)[place - 1]))
        else:
            parts.append(f".key({place // 2})")
    if b.depth - 1 > TM_WALK_PATH_MAX + 1:
        parts.append("…")
    return "".join(parts)


cdef int raise_duplicate(Builder *b) except -1:
    path = build_path(b)
    offset = b.at - b.start + 1
    raise DecodeError(f"a map with the same key twice at {path}, before byte {offset}", path=path,
                      offset=offset)


cdef int raise_key_nesting(Builder *b) except -1:
    path = build_path(b)
    offset = b.at - b.start + 1
    raise LimitExceeded(
        f"maps as keys of maps, nested deeper than {TM_KEY_NESTING_MAX} levels, at {path}",
        path=path, offset=offset)


# -- values of a type -----------------------------------------------------------------------------

# What tumen.typed does for each term: the plans are made there, and run here.

class Mismatch(Exception):
    """A term is not of its type, or a value has no term. tumen.typed turns it into what users see.

    `steps` lead to it, the innermost first: each level that it passes adds its own.
    """

    def __init__(self, expected, found, hint=""):
        super().__init__(expected, found)
        self.expected = expected
        self.found = found
        self.hint = hint
        self.steps = []

    def path(self):
        """Where, from the root of the term."""
        return "$" + "".join(reversed(self.steps))


cdef enum:
    # Classes of a part that are compared by their address; a type seldom takes more as they are.
    EXACT_KEPT = 3


@cython.final
cdef class Part:
    """One plan of tumen.typed, with the classes of terms that it returns unchanged at hand."""

    cdef object plan
    cdef object exact                      # a frozenset of classes; None: all
    cdef PyTypeObject *kept[EXACT_KEPT]    # borrowed from exact
    cdef Py_ssize_t count                  # of kept; more than EXACT_KEPT: look into exact
    cdef bint decodes                      # bytes become the str whose UTF-8 they are

    def __cinit__(self, plan):
        cdef Py_ssize_t place = 0
        self.plan = plan
        self.decodes = plan.decodes
        self.exact = plan.exact
        self.count = 0 if self.exact is None else len(self.exact)
        if self.exact is not None and self.count <= EXACT_KEPT:
            for kind in self.exact:
                self.kept[place] = <PyTypeObject *>kind
                place += 1

    cdef inline bint unchanged(self, object term) except -1:
        cdef PyTypeObject *kind = type_of(<PyObject *>term)
        cdef Py_ssize_t place
        if self.exact is None:
            return True
        if self.count > EXACT_KEPT:
            return <object>kind in self.exact
        for place in range(self.count):
            if self.kept[place] == kind:
                return True
        return False

    cdef inline object value(self, object term):
        if self.unchanged(term):
            return term
        if self.decodes and type(term) is bytes:
            try:
                return (<bytes>term).decode("utf-8")
            except UnicodeDecodeError:
                pass  # the plan says what is wrong
        return self.plan.read(term)


cdef tuple parts_of(object plans):
    return tuple([Part(plan) for plan in plans])


@cython.final
cdef class Each:
    """Reads all items of a list or tuple by one plan; steps are their places."""

    cdef Part part

    def __init__(self, plan):
        self.part = Part(plan)

    def read(self, terms, /):
        cdef Part part = self.part
        cdef list values = list(terms)
        cdef Py_ssize_t place = 0
        # Most lists are of one kind that stays as it is: then the copy is all that there is to do.
        while place < len(values) and part.unchanged(values[place]):
            place += 1
        if place == len(values):
            return values
        try:
            while place < len(values):
                values[place] = part.value(values[place])
                place += 1
        except Mismatch as error:
            error.steps.append(f"[{place}]")
            raise
        return values


@cython.final
cdef class Row:
    """Reads a tuple of as many terms as there are plans; steps name their places in a path."""

    cdef tuple parts
    cdef tuple steps

    def __init__(self, plans, steps):
        self.parts = parts_of(plans)
        self.steps = tuple(steps)
        if len(self.parts) != len(self.steps):
            raise ValueError("a step for each plan")

    def read(self, tuple terms not None, /):
        return self.read_from(terms, 0)

    cdef tuple read_from(self, tuple terms, Py_ssize_t start):
        cdef Py_ssize_t count = len(self.parts)
        cdef Py_ssize_t place = 0
        cdef PyObject *made
        cdef tuple values
        cdef object value
        if len(terms) - start != count:
            raise ValueError("a row of another size")
        made = new_tuple(count)
        values = <tuple>made
        decref(made)
        try:
            for place in range(count):
                value = (<Part>self.parts[place]).value(terms[start + place])
                Py_INCREF(value)
                term_tuple_items(made)[place] = <PyObject *>value
        except Mismatch as error:
            error.steps.append(self.steps[place])
            raise
        return values


@cython.final
cdef class Maker:
    """Makes an instance of a class of the values of its fields."""

    cdef object cls
    cdef tuple names     # of fields, where the class takes them by keyword; else None
    cdef bint plain      # a dict of the fields is the value
    cdef object refused  # (class, exception) → the Mismatch that says so

    def __init__(self, cls, names, plain, refused):
        self.cls = cls
        self.names = names
        self.plain = plain
        self.refused = refused

    def make(self, tuple values not None, /):
        return self.build(values)

    cdef object build(self, tuple values):
        try:
            if self.names is None:
                return self.cls(*values)
            if self.plain:
                return dict(zip(self.names, values))
            return self.cls(**dict(zip(self.names, values)))
        except (TypeError, ValueError) as error:
            raise self.refused(self.cls, error) from error


@cython.final
cdef class MapRow:
    """Reads the fields of a class from a map that has them all; any other goes to `slow`.

    keys: by class, how the keys of the map may come: a tuple with that of each field
    head: a key and the value that it must have, or None
    size: how many keys the map has to have; -1 where more are passed over
    """

    cdef Row row
    cdef Maker builder
    cdef dict keys
    cdef tuple only      # the keys, where they come in one way
    cdef tuple head
    cdef Py_ssize_t size
    cdef object slow

    def __init__(self, Row row not None, Maker builder not None, dict keys not None, head, size,
                 slow):
        self.row = row
        self.builder = builder
        self.keys = keys
        self.only = next(iter(keys.values())) if len(keys) == 1 else None
        self.head = head
        self.size = size
        self.slow = slow

    def read(self, term, /):
        cdef tuple terms = self.fields(term) if type(term) is dict else None
        if terms is None:
            return self.slow(term)
        return self.builder.build(self.row.read_from(terms, 0))

    cdef tuple fields(self, dict term):
        """The terms of all fields, or None. Before one is read: what is missing must not cost the
        reading of the others twice, at each level."""
        cdef tuple keys = self.only
        cdef Py_ssize_t at = 0, place
        cdef PyObject *key
        cdef PyObject *value
        cdef PyObject *made
        cdef tuple terms
        if self.size >= 0 and dict_size(<PyObject *>term) != self.size:
            return None
        if keys is None:
            if not dict_next(<PyObject *>term, &at, &key, &value):
                return None
            keys = <tuple>self.keys.get(<object>type_of(key))
            if keys is None:
                return None
        if self.head is not None:
            value = dict_get(<PyObject *>term, <PyObject *>self.head[0])
            if value == NULL or <object>value != self.head[1]:
                return None
        made = new_tuple(len(keys))
        terms = <tuple>made
        decref(made)
        for place in range(len(keys)):
            value = dict_get(<PyObject *>term, <PyObject *>keys[place])
            if value == NULL:
                return None
            incref(value)
            term_tuple_items(made)[place] = value
        return terms


@cython.final
cdef class RecordRow:
    """Reads a tuple whose first element is `tag`; any other goes to `refuse`."""

    cdef Row row
    cdef Maker builder
    cdef object tag
    cdef object refuse

    def __init__(self, Row row not None, Maker builder not None, tag, refuse):
        self.row = row
        self.builder = builder
        self.tag = tag
        self.refuse = refuse

    def read(self, term, /):
        if (type(term) is not tuple or len(<tuple>term) != len(self.row.parts) + 1
                or term[0] != self.tag):
            raise self.refuse(term)
        return self.builder.build(self.row.read_from(<tuple>term, 1))


# -- decode() -------------------------------------------------------------------------------------

cdef bytes inflate(bytes data, uint64_t decoded_bytes_max):
    """The term of `131, 80, size, zlib`, as if it had come plain: with a version byte before it."""
    cdef uint64_t claimed
    if len(data) < 6:
        raise DecodeError("truncated: a compressed term has a size of 4 bytes", offset=2)
    claimed = tm_load_u32(<const uint8_t *>PyBytes_AS_STRING(data) + 2)
    if claimed > decoded_bytes_max:
        raise LimitExceeded(f"a compressed term of {claimed} bytes", limit="decoded_bytes_max",
                            offset=2)
    engine = zlib.decompressobj()
    try:
        # max_length bounds what is made, whatever the data would swell to.
        term = engine.decompress(data[6:], claimed + 1)
    except zlib.error as error:
        raise DecodeError(f"the compressed data is damaged: {error}", offset=6) from None
    if <uint64_t>len(term) != claimed:
        raise DecodeError(f"a compressed term is not the {claimed} bytes that it claims", offset=2)
    if not engine.eof:
        raise DecodeError("the compressed data is truncated", offset=len(data))
    if engine.unused_data:
        unused = len(engine.unused_data)
        raise DecodeError(f"bytes after the term: {unused}", offset=len(data) - unused)
    return b"\x83" + term


# Of tumen.typed, which needs this module and so cannot be imported by it at once.
cdef object typed_plan_of = None
cdef object typed_read = None


cdef object plan_of(object as_):
    global typed_plan_of, typed_read
    if typed_plan_of is None:
        from tumen.typed.compiler import plan_of as found
        from tumen.typed.plans import read
        typed_read = read
        typed_plan_of = found
    return typed_plan_of(as_)


def decode(data, /, *, as_=None, binaries="bytes", views=False, depth_max=None, big_bytes_max=None,
           decoded_bytes_max=None):
    """The term in `data`, an external term with its version byte, compressed or not.

    Any bytes may be given: they are validated as a whole before an object is made. DecodeError
    tells where they are malformed, LimitExceeded which bound they are over.

    as_:               a type, of which the answer is then: see `tumen.typed`. A term of another type
                       is a DecodeError
    binaries:          ``"bytes"``, or ``"utf8"``: `str` where a binary is valid UTF-8, else `bytes`
    views:             binaries of 64 KiB and more become a `memoryview`, each on its own memory
    depth_max:         nesting, levels; 1,024 by default, at most 1,000,000
    big_bytes_max:     digits of one integer, bytes; 64 KiB by default
    decoded_bytes_max: estimated size of all objects, and size of an inflated term, bytes; 1 GiB
                       by default
    """
    cdef int options = 0
    cdef bytes term
    cdef size_t used
    cdef uint32_t depth = TM_DEPTH_DEFAULT
    cdef uint32_t big = TM_BIG_BYTES_DEFAULT
    cdef uint64_t decoded = TM_DECODED_BYTES_DEFAULT
    cdef object plan = None
    if depth_max is not None:
        depth = depth_max
    if big_bytes_max is not None:
        big = big_bytes_max
    if decoded_bytes_max is not None:
        decoded = decoded_bytes_max
    if binaries != "bytes":
        if binaries != "utf8":
            raise ValueError('binaries must be "bytes" or "utf8"')
        options = TERM_BINARIES_UTF8
    if views:
        options |= TERM_VIEWS
    if as_ is not None:
        plan = plan_of(as_)
        if plan.text:
            options |= TERM_BINARIES_UTF8
    if depth > TM_DEPTH_MAX:
        raise ValueError(f"depth_max must be at most {TM_DEPTH_MAX}")
    # A copy of what others can write to: the bytes must not change between walk and building.
    term = data if type(data) is bytes else memoryview(data).tobytes()
    if PyBytes_GET_SIZE(term) < 2 or term[0] != TM_ETF_VERSION:
        raise_version(term)
    if term[1] == TM_COMPRESSED:
        term = inflate(term, decoded)
    used = walk(term, 1, depth, big, decoded) + 1
    if used != <size_t>PyBytes_GET_SIZE(term):
        raise DecodeError(f"bytes after the term: {PyBytes_GET_SIZE(term) - used}", offset=used)
    value = term_build(<const uint8_t *>PyBytes_AS_STRING(term) + 1, used - 1, options)
    return value if as_ is None else typed_read(plan, value)


cdef int raise_version(bytes term) except -1:
    if term and term[0] != TM_ETF_VERSION:
        raise DecodeError(f"an external term starts with {TM_ETF_VERSION}, not {term[0]}", offset=0)
    raise DecodeError("truncated: no term after the version byte" if term else "no bytes",
                      offset=len(term))


# -- encoding: the output -------------------------------------------------------------------------

cdef enum:
    OUT_SMALL = 1024    # on the caller's stack; most messages fit
    OUT_SLACK = 64

cdef struct Out:
    uint8_t *base
    uint8_t *end
    PyObject *made      # owned: the bytes object that base is in, or NULL
    tm_buf *buf         # borrowed: base is its ptr, or NULL


cdef uint8_t *out_grow(Out *out, uint8_t *w, size_t need) except NULL:
    """Makes room for need bytes more and answers where w is now."""
    cdef size_t used = w - out.base
    cdef size_t size = out.end - out.base
    cdef PyObject *made
    cdef int rc
    if out.buf != NULL:
        out.buf.len = used
        rc = tm_buf_reserve(out.buf, need)
        if rc == TM_EUSE_LIMIT:
            raise LimitExceeded(f"the term is larger than {out.buf.max} bytes",
                                limit="message_bytes_max")
        if rc:
            raise MemoryError()
        out.base = out.buf.ptr
        out.end = out.base + out.buf.cap
        return out.base + used
    size = max(2 * size, used + need + OUT_SLACK)
    if out.made == NULL:
        made = new_bytes(NULL, size)
        memcpy(bytes_data(made), out.base, used)
        out.made = made
    else:
        bytes_resize(&out.made, size)  # on an error it has freed and nulled made
    out.base = bytes_data(out.made)
    out.end = out.base + size
    return out.base + used


# -- encoding: the loop ---------------------------------------------------------------------------

# An open container. Its obj and the pair in hand are owned, because __index__ and Mapping run the
# caller's code, which may change any list or dict on the way.

cdef enum:
    OPENS_SMALL = 24
    # Levels of containers, in which an object of a registered class may stand. Each costs a dict or
    # a tuple until it is written, so an object that contains itself is found early.
    FORMS_DEPTH_MAX = 10000

    E_ROOT = 0
    E_TUPLE
    E_LIST
    E_IMPROPER  # obj is the ImproperList, its items are iterated
    E_DICT
    E_PAIRS     # obj is a tuple key, value, key, value …
    E_SORTED    # the same for canonical(): the keys are bytes that are encoded already

    # what a dict frame waits for
    D_NEXT = 0
    D_VALUE

    # kinds of keys that may meet as one Erlang term although they differ in Python
    KEYS_TEXT = 1
    KEYS_BYTES = 2
    KEYS_OTHER = 4

cdef struct Open:
    PyObject *obj      # owned
    PyObject *key      # owned; E_DICT: the pair in hand; E_TUPLE: the names of its fields, or NULL
    PyObject *value    # owned
    Py_ssize_t index   # elements done; E_DICT: PyDict_Next's position
    Py_ssize_t count   # elements, or pairs of E_DICT, that the head has announced
    Py_ssize_t pairs   # E_DICT: pairs taken
    size_t start       # of the tag, bytes into the output
    uint8_t kind
    uint8_t waits
    uint8_t keys       # KEYS_*

cdef struct Encoder:
    Out out
    uint8_t *w         # where the output ends, while another function writes
    Open *opens
    size_t depth       # opens in use, the root included
    size_t cap
    bint sorted_keys   # canonical(): maps in the order of their keys' bytes
    Open small[OPENS_SMALL]


cdef object encode_error(Encoder *e, str message, str hint=""):
    path = encode_path(e)
    return EncodeError(f"{message} at {path}", path=path, hint=hint)


# Raised from functions of their own, so that the hot ones stay small.

cdef int raise_size(Encoder *e, str what) except -1:
    raise encode_error(e, f"{what} of more than 2^32 - 1")


cdef int raise_float(Encoder *e) except -1:
    raise encode_error(e, "NaN and infinities have no Erlang term")


cdef str encode_path(Encoder *e):
    cdef list parts = ["$"]
    cdef size_t i
    cdef Open *o
    cdef Py_ssize_t place
    for i in range(1, min(e.depth, <size_t>TM_WALK_PATH_MAX + 1)):
        o = &e.opens[i]
        place = o.index - 1
        if o.kind == E_DICT:
            if o.key == NULL:
                continue  # the dict itself
            if o.waits == D_VALUE:
                parts.append(key_step(<object>o.key))
            else:
                parts.append(f".key({o.pairs - 1})")
        elif o.kind == E_PAIRS:
            if place & 1:
                parts.append(key_step((<tuple>o.obj)[place - 1]))
            else:
                parts.append(f".key({place // 2})")
        elif o.kind == E_SORTED:
            parts.append(f".value({place // 2})")
        elif o.kind == E_IMPROPER and place == o.count:
            parts.append(".tail")
        elif o.kind == E_TUPLE and o.key != NULL:
            parts.append((<tuple>o.key)[place])  # a record: FormWriter.words
        else:
            parts.append(f"[{place}]")
    if e.depth > TM_WALK_PATH_MAX + 1:
        parts.append("…")
    return "".join(parts)


cdef int opens_grow(Encoder *e) except -1:
    cdef size_t size = e.cap * sizeof(Open)
    cdef Open *opens
    if e.opens == e.small:
        opens = <Open *>PyMem_Malloc(2 * size)
        if opens != NULL:
            memcpy(opens, e.small, size)
    else:
        opens = <Open *>PyMem_Realloc(e.opens, 2 * size)
    if opens == NULL:
        raise MemoryError()
    e.opens = opens
    e.cap *= 2
    return 0


cdef inline Open *open_push(Encoder *e, PyObject *obj, uint8_t kind, Py_ssize_t count,
                            size_t start) except NULL:
    cdef Open *o
    if e.depth > TM_DEPTH_MAX:
        raise encode_error(e, f"nested deeper than {TM_DEPTH_MAX} levels",
                           "Does the object contain itself?")
    if e.depth == e.cap:
        opens_grow(e)
    o = &e.opens[e.depth]
    e.depth += 1
    incref(obj)
    o.obj = obj
    o.key = NULL
    o.value = NULL
    o.index = 0
    o.count = count
    o.pairs = 0
    o.start = start
    o.kind = kind
    o.waits = D_NEXT
    o.keys = 0
    return o


cdef void open_pop(Encoder *e) noexcept:
    cdef Open *o
    e.depth -= 1
    o = &e.opens[e.depth]
    decref(o.obj)
    xdecref(o.key)
    xdecref(o.value)


cdef inline uint8_t *put_float(Encoder *e, double value, uint8_t *w) except NULL:
    if not isfinite(value):
        raise_float(e)
    return tm_etf_put_f64(w, value)


cdef inline int put_leaf(Encoder *e, PyObject *x, uint8_t **ww) except -1:
    """Writes x if it is of the common kinds without parts: 1, else 0. Runs none of the caller's
    code, so pointers into a list stay good over it."""
    cdef PyTypeObject *t = type_of(x)
    cdef uint8_t *w = ww[0]
    cdef const uint8_t *text
    cdef Py_ssize_t n
    cdef long long number
    cdef int overflow
    if t == atom_type:
        text = bytes_data(<PyObject *>(<Atom>x).wire)
        n = var_size(<PyObject *>(<Atom>x).wire)
        if e.out.end - w < n:
            w = out_grow(&e.out, w, n)
        ww[0] = tm_store_bytes(w, text, n)
        return 1
    if t == &PyLong_Type:
        number = long_value(x, &overflow)
        if overflow:
            return 0
        if e.out.end - w < TM_ETF_INTEGER_SIZE_MAX:
            w = out_grow(&e.out, w, TM_ETF_INTEGER_SIZE_MAX)
        ww[0] = tm_etf_put_i64(w, number)
        return 1
    if t == &PyUnicode_Type or t == &PyBytes_Type:
        if t == &PyBytes_Type:
            text = bytes_data(x)
            n = var_size(x)
        elif text_is_ascii(x):
            text = text_data(x)
            n = text_len(x)
        else:
            text = put_text(e, x, &n)
        if n > 0xffffffff:
            raise_size(e, "a binary with a size")
        if e.out.end - w < n + TM_ETF_HEAD_SIZE_MAX:
            w = out_grow(&e.out, w, n + TM_ETF_HEAD_SIZE_MAX)
        ww[0] = tm_store_bytes(tm_etf_put_binary(w, <uint32_t>n), text, n)
        return 1
    if t == &PyFloat_Type:
        if e.out.end - w < TM_ETF_FLOAT_SIZE:
            w = out_grow(&e.out, w, TM_ETF_FLOAT_SIZE)
        ww[0] = put_float(e, float_value(x), w)
        return 1
    if x == Py_True or x == Py_False or x == Py_None:
        if e.out.end - w < 16:
            w = out_grow(&e.out, w, 16)
        if x == Py_True:
            ww[0] = tm_store_bytes(w, b"\x77\x04true", 6)
        elif x == Py_False:
            ww[0] = tm_store_bytes(w, b"\x77\x05false", 7)
        else:
            ww[0] = tm_store_bytes(w, b"\x77\x03nil", 5)
        return 1
    return 0


cdef const uint8_t *put_text(Encoder *e, PyObject *x, Py_ssize_t *n) except NULL:
    try:
        return text_utf8(x, n)
    except UnicodeEncodeError:
        raise encode_error(e, "a str with surrogates is no UTF-8") from None


cdef uint8_t *encode_run(Encoder *e, PyObject *root, uint8_t *start) except NULL:
    """Appends root to the output at start; the end of what was written."""
    cdef uint8_t *w = start
    cdef Open *o
    cdef PyObject **items
    cdef PyObject *x
    cdef Py_ssize_t i, n
    if put_leaf(e, root, &w):
        return w
    e.w = w
    put_other(e, root)
    while e.depth > 1:
        o = &e.opens[e.depth - 1]
        if o.kind == E_DICT:
            run_dict(e, o)
            continue
        n = o.count
        if o.kind == E_LIST:
            if var_size(o.obj) != n:
                raise encode_error(e, "a list changed its size while it was encoded")
            items = term_list_items(o.obj)
        elif o.kind == E_IMPROPER:
            items = term_tuple_items(<PyObject *>(<ImproperList>o.obj).items)
        else:
            items = term_tuple_items(o.obj)
        w = e.w
        i = o.index
        while i < n:
            x = items[i]
            i += 1
            o.index = i
            if type_of(x) == &PyFloat_Type and e.out.end - w >= TM_ETF_FLOAT_SIZE:
                # As put_leaf does, without the call: long lists of floats are common.
                w = put_float(e, float_value(x), w)
            elif o.kind == E_SORTED and i & 1:
                w = put_raw(e, x, w)
            elif not put_leaf(e, x, &w):
                break
        else:
            e.w = w
            finish(e, o)
            continue
        e.w = w
        put_other(e, x)
    return e.w


cdef uint8_t *put_raw(Encoder *e, PyObject *term, uint8_t *w) except NULL:
    cdef Py_ssize_t n = var_size(term)
    if e.out.end - w < n:
        w = out_grow(&e.out, w, n)
    return tm_store_bytes(w, bytes_data(term), n)


cdef int finish(Encoder *e, Open *o) except -1:
    """All elements of a tuple, list or flat map are written."""
    cdef PyObject *tail
    if o.kind == E_LIST:
        if e.out.end - e.w < 1:
            e.w = out_grow(&e.out, e.w, 1)
        e.w = finish_list(e.out.base + o.start, e.w, o.count)
    elif o.kind == E_IMPROPER and o.index == o.count:
        o.index += 1
        tail = <PyObject *>(<ImproperList>o.obj).tail
        if put_leaf(e, tail, &e.w) == 0:
            put_other(e, tail)
            return 0
    elif o.kind == E_PAIRS and o.keys:
        check_keys(e, o)
    open_pop(e)
    return 0


cdef uint8_t *finish_list(uint8_t *head, uint8_t *w, Py_ssize_t count) noexcept:
    """Ends a LIST_EXT, or rewrites it as the STRING_EXT that OTP makes of 1 to 65,535 bytes."""
    cdef uint8_t *item = head + 5
    cdef Py_ssize_t i
    if count > 0xffff or w - item != 2 * count:
        return tm_etf_put_nil(w)
    for i in range(count):
        if item[2 * i] != TM_SMALL_INTEGER_EXT:
            return tm_etf_put_nil(w)
    head[0] = TM_STRING_EXT
    tm_store_u16(head + 1, <uint16_t>count)
    for i in range(count):
        head[3 + i] = item[2 * i + 1]
    return head + 3 + count


cdef int run_dict(Encoder *e, Open *o) except -1:
    """Writes pairs until the dict ends or another container begins."""
    cdef PyObject *key
    cdef PyObject *value
    cdef uint8_t *w = e.w
    if o.key != NULL and o.waits == D_NEXT:
        # The key was a container; now its value.
        o.waits = D_VALUE
        if put_leaf(e, o.value, &w) == 0:
            e.w = w
            return put_other(e, o.value)
    pair_drop(o)
    while dict_next(o.obj, &o.index, &key, &value):
        o.pairs += 1
        if o.pairs > o.count:
            break
        o.keys |= key_kind(key)
        incref(key)
        incref(value)
        o.key = key
        o.value = value
        if put_leaf(e, key, &w):
            o.waits = D_VALUE
            if put_leaf(e, value, &w):
                pair_drop(o)
                continue
        e.w = w
        return put_other(e, value if o.waits == D_VALUE else key)
    if o.pairs != o.count:
        raise encode_error(e, "a dict changed its size while it was encoded")
    e.w = w
    if o.keys & KEYS_OTHER or o.keys == (KEYS_TEXT | KEYS_BYTES):
        check_keys(e, o)
    open_pop(e)
    return 0


cdef inline void pair_drop(Open *o) noexcept:
    """The pair in hand is written."""
    cdef PyObject *key = o.key
    cdef PyObject *value = o.value
    o.waits = D_NEXT
    if key != NULL:
        o.key = o.value = NULL
        decref(key)
        decref(value)


cdef inline uint8_t key_kind(PyObject *key) noexcept:
    cdef PyTypeObject *t = type_of(key)
    if t == atom_type or t == &PyLong_Type:
        return 0
    if t == &PyUnicode_Type:
        return KEYS_TEXT
    if t == &PyBytes_Type:
        return KEYS_BYTES
    if (t == &PyFloat_Type or t == &PyBool_Type or key == Py_None or t == pid_type
            or t == reference_type or t == port_type):
        return 0
    return KEYS_OTHER


cdef int check_keys(Encoder *e, Open *o) except -1:
    """Two keys may be one Erlang term ("a" and b"a"); a BEAM would drop the connection for it."""
    cdef const uint8_t *p = e.out.base + o.start + 5
    cdef const uint8_t *q
    cdef set seen = set()
    cdef Py_ssize_t i
    if o.count < 2:
        return 0
    for i in range(o.count if o.kind == E_DICT else o.count // 2):
        q = tm_etf_skip(p)
        seen.add(PyBytes_FromStringAndSize(<const char *>p, q - p))
        if len(seen) == i:
            key = safe_repr(term_build(p, q - p, 0))[:64]
            e.depth -= 1  # the path of the map itself
            error = encode_error(e, f"two keys are the same Erlang term, {key},")
            e.depth += 1
            raise error
        p = tm_etf_skip(q)
    return 0


# -- encoding: the other kinds --------------------------------------------------------------------

cdef int put_other(Encoder *e, PyObject *x) except -1:
    """Writes at e.w what put_leaf does not, or the head of a container, which it opens."""
    cdef PyTypeObject *t = type_of(x)
    cdef object held
    cdef Py_ssize_t n
    cdef size_t start
    if e.out.end - e.w < 16:
        e.w = out_grow(&e.out, e.w, 16)
    start = e.w - e.out.base
    if t == &PyTuple_Type or t == &PyList_Type:
        n = var_size(x)
        if n > 0xffffffff:
            raise_size(e, "a tuple or list with a length")
        if n == 0:
            e.w = tm_etf_put_nil(e.w) if t == &PyList_Type else tm_etf_put_tuple(e.w, 0)
            return 0
        if t == &PyTuple_Type:
            open_push(e, x, E_TUPLE, n, start)
            e.w = tm_etf_put_tuple(e.w, <uint32_t>n)
        else:
            open_push(e, x, E_LIST, n, start)
            e.w = tm_etf_put_list(e.w, <uint32_t>n)
        return 0
    if t == &PyDict_Type and not e.sorted_keys:
        n = dict_size(x)
        if n > 0xffffffff:
            raise_size(e, "a map with a size")
        if n:
            open_push(e, x, E_DICT, n, start)
        e.w = tm_etf_put_map(e.w, <uint32_t>n)
        return 0
    held = <object>x  # the caller's code may take it out of the list it is in
    return put_object(e, held)


cdef int put_bytes(Encoder *e, const uint8_t *p, Py_ssize_t n) except -1:
    if n > 0xffffffff:
        raise_size(e, "a binary with a size")
    if e.out.end - e.w < n + TM_ETF_HEAD_SIZE_MAX:
        e.w = out_grow(&e.out, e.w, n + TM_ETF_HEAD_SIZE_MAX)
    e.w = tm_store_bytes(tm_etf_put_binary(e.w, <uint32_t>n), p, n)
    return 0


cdef int put_buffer(Encoder *e, object x) except -1:
    cdef Py_buffer view
    try:
        PyObject_GetBuffer(x, &view, PyBUF_SIMPLE)
    except BufferError:
        raise encode_error(e, "the buffer is not contiguous: copy it first;") from None
    try:
        put_bytes(e, <const uint8_t *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)
    return 0


cdef int put_reserve(Encoder *e, Py_ssize_t n) except -1:
    if e.out.end - e.w < n:
        e.w = out_grow(&e.out, e.w, n)
    return 0


cdef int put_object(Encoder *e, object x) except -1:
    cdef tm_port port
    cdef tm_pid pid
    cdef tm_ref ref
    cdef bytes data
    cdef int bits
    if type(x) is Pid:
        put_reserve(e, TM_ETF_PID_SIZE_MAX)
        pid_fill(<Pid>x, &pid)
        e.w = tm_etf_put_pid(e.w, &pid)
    elif type(x) is Reference:
        put_reserve(e, TM_ETF_REF_SIZE_MAX)
        ref_fill(<Reference>x, &ref)
        e.w = tm_etf_put_ref(e.w, &ref)
    elif type(x) is Port:
        put_reserve(e, TM_ETF_PORT_SIZE_MAX)
        port.node = atom_bytes((<Port>x).node_atom)
        port.id = (<Port>x).id
        port.creation = (<Port>x).creation
        e.w = tm_etf_put_port(e.w, &port)
    elif type(x) is Export:
        put_reserve(e, 1 + 2 * TM_ETF_ATOM_SIZE_MAX + TM_ETF_INTEGER_SIZE_MAX)
        e.w = tm_store_u8(e.w, TM_EXPORT_EXT)
        e.w = tm_etf_put_atom(e.w, atom_bytes((<Export>x).module_atom))
        e.w = tm_etf_put_atom(e.w, atom_bytes((<Export>x).function_atom))
        e.w = tm_etf_put_u64(e.w, (<Export>x).arity)
    elif type(x) is Fun:
        data = (<Fun>x).canonical() if e.sorted_keys else (<Fun>x).wire
        e.w = put_raw(e, <PyObject *>data, e.w)
    elif type(x) is BitString:
        data = (<BitString>x).data
        bits = (<BitString>x).bits
        if bits == 8:
            return put_bytes(e, <const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        if PyBytes_GET_SIZE(data) > 0xffffffff:
            raise_size(e, "a bit string with a size")
        put_reserve(e, PyBytes_GET_SIZE(data) + TM_ETF_HEAD_SIZE_MAX)
        e.w = tm_etf_put_bit_binary(e.w, <uint32_t>PyBytes_GET_SIZE(data), <uint8_t>bits)
        e.w = tm_store_bytes(e.w, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    elif type(x) is ImproperList:
        put_improper(e, <ImproperList>x)
    elif type(x) is TermMap:
        put_pairs(e, (<TermMap>x).pairs, False)
    elif type(x) is Binary:
        put_buffer(e, b"" if (<Binary>x).buffer is None else (<Binary>x).buffer)
    elif isinstance(x, (bytes, bytearray, memoryview)):
        put_buffer(e, x)
    else:
        put_converted(e, x)
    return 0


cdef int put_improper(Encoder *e, ImproperList x) except -1:
    cdef Py_ssize_t n = len(x.items)
    if n > 0xffffffff:
        raise_size(e, "a list with a length")
    open_push(e, <PyObject *>x, E_IMPROPER, n, e.w - e.out.base)
    put_reserve(e, TM_ETF_HEAD_SIZE_MAX)
    e.w = tm_etf_put_list(e.w, <uint32_t>n)
    return 0


cdef int put_pairs(Encoder *e, tuple pairs, bint check) except -1:
    """A map from its flat pairs; check: its keys may be equal as terms."""
    cdef Py_ssize_t n = len(pairs) // 2
    cdef uint8_t kind = E_PAIRS
    cdef Open *o
    if n > 0xffffffff:
        raise_size(e, "a map with a size")
    if e.sorted_keys and n:
        pairs = sorted_pairs(e, pairs)
        kind = E_SORTED
    if n:
        o = open_push(e, <PyObject *>pairs, kind, 2 * n, e.w - e.out.base)
        o.keys = KEYS_OTHER if check else 0
    put_reserve(e, TM_ETF_HEAD_SIZE_MAX)
    e.w = tm_etf_put_map(e.w, <uint32_t>n)
    return 0


cdef tuple sorted_pairs(Encoder *e, tuple pairs):
    """The pairs in the order of their keys' canonical bytes, which stand in for the keys."""
    cdef dict index = index_pairs(pairs)
    cdef list flat = []
    if index is None:
        raise encode_error(e, "two keys are the same Erlang term")
    for key, at in sorted(index.items()):
        flat.append(key)
        flat.append(pairs[at + 1])
    return tuple(flat)


cdef int put_converted(Encoder *e, object x) except -1:
    """Subclasses, mappings and foreign scalars, as the plain object that they stand for."""
    cdef object plain = x
    cdef object form = getattr(type(x), "__tumen_form__", None)
    if form is not None:
        return put_form(e, form, x)
    if isinstance(x, int):
        plain = int.__index__(x)
    elif isinstance(x, float):
        plain = float.__float__(x)
    elif isinstance(x, str):
        plain = str.__str__(x)
    elif isinstance(x, tuple):
        plain = tuple(tuple.__iter__(x))
    elif isinstance(x, list):
        plain = list(list.__iter__(x))
    elif isinstance(x, Mapping):
        return put_pairs(e, flat_pairs(x), True)
    else:
        plain = scalar(x)
        if plain is None:
            raise unsupported(e, x)
    if type(plain) is int:
        return put_int(e, plain)
    if put_leaf(e, <PyObject *>plain, &e.w):
        return 0
    return put_other(e, <PyObject *>plain)


cdef int put_form(Encoder *e, object form, object x) except -1:
    """An object whose class tumen.typed has registered, as the tuple or dict that it makes of it."""
    cdef FormWriter writer
    cdef tuple plain
    cdef str path
    if e.depth > FORMS_DEPTH_MAX:
        raise encode_error(e, f"objects nested deeper than {FORMS_DEPTH_MAX} levels",
                           "Does the object contain itself?")
    if form.owner is not type(x) and not form.prepare(type(x)):
        raise encode_error(
            e, f"no Erlang term for {type(x).__module__}.{type(x).__qualname__}",
            "Its base is registered; register the class itself to say what it is.")
    writer = form.writer
    try:
        plain = writer.flat(x)
    except Mismatch as error:
        path = encode_path(e) + error.path()[1:]
        raise EncodeError(f"expected {error.expected}, found {error.found} at {path}",
                          path=path, hint=error.hint) from error.__cause__
    except AttributeError as error:
        raise encode_error(e, f"{type(x).__qualname__} lacks a field, {error},") from error
    except RecursionError:
        raise encode_error(e, f"a field of {type(x).__qualname__} is nested too deep") from None
    if writer.keys is not None:
        return put_pairs(e, plain, False)
    put_other(e, <PyObject *>plain)
    e.opens[e.depth - 1].key = <PyObject *>writer.words
    incref(e.opens[e.depth - 1].key)
    return 0


@cython.final
cdef class FormWriter:
    """Takes an instance of a registered class apart: a record's tuple, or flat pairs of a map.

    names:   of its attributes, in order
    head:    what stands before them: the name of a record; the pair `__struct__`, module
    keys:    of the map, for each attribute; None for a record
    writers: for each attribute a function that makes a term of it, or None
    words:   how an error calls each part: the attributes; of a record also its name, first
    unset:   a value that is left out of the map; None where there is none
    """

    cdef tuple names
    cdef tuple head
    cdef tuple keys
    cdef tuple writers
    cdef tuple words
    cdef object unset

    def __init__(self, names, head, keys, writers, words, unset):
        self.names = tuple(names)
        self.head = tuple(head)
        self.keys = None if keys is None else tuple(keys)
        self.writers = tuple(writers)
        self.words = tuple(words)
        self.unset = unset
        if (len(self.writers) != len(self.names) or len(self.words) < len(self.names)
                or (self.keys is not None and len(self.keys) != len(self.names))):
            raise ValueError("a writer, a key and a word for each name")

    cdef tuple flat(self, object x):
        cdef list parts = list(self.head)
        cdef Py_ssize_t place
        cdef object value
        for place in range(len(self.names)):
            value = getattr(x, self.names[place])
            if self.keys is not None:
                if value is self.unset and self.unset is not None:
                    continue
                parts.append(self.keys[place])
            if self.writers[place] is not None:
                try:
                    value = self.writers[place](value)
                except Mismatch as error:
                    error.steps.append(self.words[place + len(self.words) - len(self.names)])
                    raise
            parts.append(value)
        return tuple(parts)


cdef object scalar(object x):
    """The number in a NumPy scalar or an array without dimensions, or what __index__ says of an
    object that is no container; else None."""
    kind = getattr(getattr(x, "dtype", None), "kind", None)
    if isinstance(kind, str):
        if getattr(x, "ndim", 1) != 0:
            return None
        if kind == "b":
            return bool(x)
        if kind == "f":
            return float(x)
        return int(x) if kind in "iu" else None
    if is_index(<PyObject *>x) and not is_sequence(<PyObject *>x):
        return int(x.__index__())
    return None


cdef tuple flat_pairs(object mapping):
    cdef list flat = []
    for key in mapping:
        flat.append(key)
        flat.append(mapping[key])
    return tuple(flat)


cdef object unsupported(Encoder *e, object x):
    hint = ""
    if PyObject_CheckBuffer(x):
        hint = "Wrap a buffer in tumen.Binary to send its bytes."
    elif isinstance(x, (set, frozenset)):
        hint = "Erlang has no set on the wire: send a list, or a map."
    elif hasattr(type(x), "__dataclass_fields__") or hasattr(type(x), "__struct_fields__"):
        hint = "tumen.struct, tumen.record or tumen.mapped register a class with its form."
    return encode_error(e, f"no Erlang term for {type(x).__module__}.{type(x).__qualname__}", hint)


cdef int put_int(Encoder *e, x) except -1:
    cdef Py_ssize_t n
    cdef bytes digits
    if put_leaf(e, <PyObject *>x, &e.w):
        return 0
    n = (x.bit_length() + 7) // 8
    if n > 0xffffffff:
        raise_size(e, "an integer with a size")
    digits = (-x if x < 0 else x).to_bytes(n, "little")
    put_reserve(e, n + TM_ETF_HEAD_SIZE_MAX)
    if n <= 255:
        e.w = tm_store_u8(tm_store_u8(e.w, TM_SMALL_BIG_EXT), <uint8_t>n)
    else:
        e.w = tm_store_u32(tm_store_u8(e.w, TM_LARGE_BIG_EXT), <uint32_t>n)
    e.w = tm_store_bytes(tm_store_u8(e.w, x < 0), PyBytes_AS_STRING(digits), n)
    return 0


# -- encode() and its kin -------------------------------------------------------------------------

cdef void encoder_init(Encoder *e, uint8_t *base, size_t size, tm_buf *buf,
                       bint sorted_keys) noexcept:
    e.out.base = base
    e.out.end = base + size
    e.out.made = NULL
    e.out.buf = buf
    e.opens = e.small
    e.cap = OPENS_SMALL
    e.depth = 1
    e.sorted_keys = sorted_keys


cdef void encoder_fini(Encoder *e) noexcept:
    while e.depth > 1:
        open_pop(e)
    if e.opens != e.small:
        PyMem_Free(e.opens)


cdef bytes encode_bytes(object term, bint version, bint sorted_keys):
    cdef uint8_t small[OUT_SMALL]
    cdef Encoder e
    cdef uint8_t *w = small
    cdef PyObject *made
    cdef object result
    encoder_init(&e, small, OUT_SMALL, NULL, sorted_keys)
    if version:
        w = tm_store_u8(w, TM_ETF_VERSION)
    try:
        w = encode_run(&e, <PyObject *>term, w)
    except:
        xdecref(e.out.made)
        raise
    finally:
        encoder_fini(&e)
    if e.out.made == NULL:
        return PyBytes_FromStringAndSize(<const char *>small, w - small)
    bytes_resize(&e.out.made, w - e.out.base)
    made = e.out.made
    result = <object>made
    decref(made)
    return result


cdef int term_encode(object term, tm_buf *buf) except -1:
    cdef Encoder e
    cdef size_t before = buf.len
    cdef uint8_t *w
    encoder_init(&e, buf.ptr, buf.cap, buf, False)
    try:
        w = encode_run(&e, <PyObject *>term, e.out.base + before)
        buf.len = w - e.out.base
    except:
        buf.len = before
        raise
    finally:
        encoder_fini(&e)
    return 0


cdef bytes canonical(object term):
    """Bytes that are equal exactly when two terms are =:=. Runs for keys within keys in itself."""
    enter_recursive(b" in a key of a map")
    try:
        return encode_bytes(term, False, True)
    finally:
        leave_recursive()


cdef bint identical(object a, object b) except -1:
    """Erlang's =:= ; Python's == where one of the two holds what is no term."""
    if a is b:
        return True
    try:
        return canonical(a) == canonical(b)
    except EncodeError:
        return alike(a, b)


cdef bint alike(object a, object b) except -1:
    if type(a) is ImproperList and type(b) is ImproperList:
        return a.items == b.items and a.tail == b.tail
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return len(a) == len(b) and all([key in b and b[key] == a[key] for key in a])
    return a == b


def encode(term, /):
    """`term` as an external term: bytes with the version byte, as OTP 26 and later write them.

    An instance of a class that `tumen.typed` has registered (`struct`, `record`, `mapped`) is the
    struct, record or map that it stands for.

    An object that stands for no Erlang term is an EncodeError that names its path and type: NaN
    and infinities, a str with surrogates, a map of two keys that are one term, an atom's text as
    Atom("true"), a nesting of more than 1,000,000 levels (which an object that contains itself
    has). Maps keep their order.
    """
    return encode_bytes(term, True, False)


# -- the C face -----------------------------------------------------------------------------------

cdef object make_atom(const uint8_t *utf8, size_t len):
    cdef PyObject *found = atom_find(utf8, len)
    cdef object value = <object>found
    decref(found)
    return value


cdef Atom make_name(tm_bytes text):
    cdef tm_atom atom
    atom.text = text
    atom.latin1 = False
    return name_take(atom)


cdef Pid make_pid(const tm_pid *pid):
    cdef Pid made = Pid.__new__(Pid)
    made.node_atom = make_name(pid.node)
    made.id = pid.id
    made.serial = pid.serial
    made.creation = pid.creation
    made.sealed = True
    return made


cdef Reference make_ref(const tm_ref *ref):
    cdef Reference made = Reference.__new__(Reference)
    made.node_atom = make_name(ref.node)
    made.creation = ref.creation
    made.count = ref.count
    memcpy(made.word, ref.words, ref.count * sizeof(uint32_t))
    made.sealed = True
    return made


cdef tm_bytes atom_bytes(Atom atom) noexcept:
    cdef const uint8_t *wire = <const uint8_t *>PyBytes_AS_STRING(atom.wire)
    cdef size_t head = 2 if wire[0] == TM_SMALL_ATOM_UTF8_EXT else 3
    return tm_bytes_of(wire + head, PyBytes_GET_SIZE(atom.wire) - head)


cdef void pid_fill(Pid pid, tm_pid *out) noexcept:
    out.node = atom_bytes(pid.node_atom)
    out.id = pid.id
    out.serial = pid.serial
    out.creation = pid.creation


cdef void ref_fill(Reference ref, tm_ref *out) noexcept:
    out.node = atom_bytes(ref.node_atom)
    out.creation = ref.creation
    out.count = ref.count
    memcpy(out.words, ref.word, ref.count * sizeof(uint32_t))
