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
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer,
)
from cpython.float cimport PyFloat_FromDouble
from cpython.list cimport PyList_SetSlice
from cpython.long cimport PyLong_FromLong, PyLong_FromLongLong, PyLong_FromUnsignedLongLong
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyTypeObject, Py_EQ, Py_NE
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.string cimport memcmp, memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, nanosleep, timespec

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
    #define term_take(o) (o)
    /* Typed: Cython would compare Py_ssize_t with the literal as Python objects. */
    #define WIRE_COUNT_MAX ((Py_ssize_t)UINT32_MAX)
    #define term_new_utf8(p, n) PyUnicode_DecodeUTF8((const char *)(p), n, NULL)
    #define term_tuple_items(o) (((PyTupleObject *)(o))->ob_item)
    #define term_list_items(o) (((PyListObject *)(o))->ob_item)
    /* Both halves of the product: every bit of a and b counts in every bit of the answer. */
    static inline uint64_t term_mix(uint64_t a, uint64_t b)
    {
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)(product >> 64) ^ (uint64_t)product;
    }
    #define term_load_flag(p) __atomic_load_n(p, __ATOMIC_RELAXED)
    /* What an int of up to two digits holds, without a branch on its sign or size: lists of
     * measurements mix them. */
    static inline int term_short_int(PyObject *o, int64_t *value)
    {
    #if PYLONG_BITS_IN_DIGIT == 30
        const digit *digits;
        size_t count;
        int64_t sign; /* 0 or -1 */
    #if PY_VERSION_HEX < 0x030C0000
        Py_ssize_t size = Py_SIZE(o);
        sign = size >> 63;
        count = (size_t)((size ^ sign) - sign);
        digits = ((PyLongObject *)o)->ob_digit;
    #else
        uintptr_t tag = ((PyLongObject *)o)->long_value.lv_tag;
        sign = -(int64_t)((tag & 3) == 2);
        count = tag >> 3;
        digits = ((PyLongObject *)o)->long_value.ob_digit;
    #endif
        if (count <= 2) {
            int64_t low = digits[0] & -(int64_t)(count > 0);
            int64_t high = digits[count > 1] & -(int64_t)(count > 1);
            *value = ((low | high << 30) ^ sign) - sign;
            return 1;
        }
    #endif
        return 0;
    }
    /* The bits of a float, unless it is infinite or no number. */
    static inline int term_finite(PyObject *o, uint64_t *bits)
    {
        memcpy(bits, &((PyFloatObject *)o)->ob_fval, sizeof *bits);
        return (*bits >> 52 & 0x7ff) != 0x7ff;
    }
    #define term_set_mapping_flag(t) (((PyTypeObject *)(t))->tp_flags |= Py_TPFLAGS_MAPPING)
    """
    const Py_ssize_t WIRE_COUNT_MAX  # elements or bytes of one term
    PyObject *term_dict_presized(Py_ssize_t count) except NULL
    PyObject **term_tuple_items(PyObject *o)
    PyObject **term_list_items(PyObject *o)
    bytes take_bytes "term_take"(PyObject *o)  # the reference is handed on
    object take_object "term_take"(PyObject *o)
    uint64_t term_mix(uint64_t a, uint64_t b)
    bint term_finite(PyObject *o, uint64_t *bits)
    bint term_short_int(PyObject *o, int64_t *value)
    void term_set_mapping_flag(PyObject *type)
    int term_load_flag(const int *flag) nogil


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
    PyObject *dict_add "PyDict_SetDefault"(PyObject *d, PyObject *k, PyObject *v) except NULL
    int dict_next "PyDict_Next"(PyObject *d, Py_ssize_t *at, PyObject **k, PyObject **v)
    Py_ssize_t dict_size "PyDict_GET_SIZE"(PyObject *d)
    PyObject *dict_get "PyDict_GetItemWithError"(PyObject *d, PyObject *k) except? NULL
    Py_hash_t object_hash "PyObject_Hash"(PyObject *o) except -1
    long long long_value "PyLong_AsLongLongAndOverflow"(PyObject *o, int *overflow)
    double text_double "PyOS_string_to_double"(const char *s, char **end, PyObject *overflow)
    bint is_index "PyIndex_Check"(PyObject *o)
    bint is_sequence "PySequence_Check"(PyObject *o)
    bint err_matches "PyErr_ExceptionMatches"(PyObject *type)
    void err_clear "PyErr_Clear"()
    void err_fetch "PyErr_Fetch"(PyObject **kind, PyObject **value, PyObject **trace)
    void err_restore "PyErr_Restore"(PyObject *kind, PyObject *value, PyObject *trace)
    PyObject *PyExc_TypeError
    PyObject *PyExc_RecursionError
    int Py_EnterRecursiveCall(const char *where)
    void leave_recursive "Py_LeaveRecursiveCall"()


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


include "pyx/term/classes.pxi"
include "pyx/term/atom_table.pxi"
include "pyx/term/walk_error.pxi"
include "pyx/term/build.pxi"
include "pyx/term/build_map.pxi"
include "pyx/term/typed.pxi"
include "pyx/term/decode.pxi"
include "pyx/term/put.pxi"
include "pyx/term/put_other.pxi"
include "pyx/term/encode.pxi"


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
