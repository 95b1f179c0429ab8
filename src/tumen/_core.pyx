# cython: language_level=3, auto_pickle=False, autotestdict=False, binding=False
# cython: embedsignature=True, embedsignature.format=clinic
"""The engine binding: Python calls into tumen.h, and its events into mailboxes and futures.

Knows Erlang's message conventions ('$gen_call', 'DOWN') and nothing of the wire. Three layers:
Engine and CoreNode are tumen.h one to one, for any runtime; LoopNode adds what an asyncio loop
needs (one drain per wake-up, one flush per turn, futures by reference); CoreProcess is a mailbox.

The GIL is released where a function of the core may write to a socket, wait or join a thread, and
kept where it only takes a lock for a moment: the engine never asks for the GIL, so such a lock
comes free without us.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.bytes cimport PyBytes_CheckExact
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.float cimport PyFloat_AS_DOUBLE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.tuple cimport PyTuple_CheckExact, PyTuple_GET_ITEM, PyTuple_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8String, PyUnicode_DecodeUTF8
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from tumen._term cimport (
    TERM_VIEWS, TM_ETF_HEAD_SIZE_MAX, TM_SMALL_TUPLE_EXT, TM_VIEW_BYTES_MIN, Atom, Pid, Reference,
    atom_bytes, make_pid, make_ref, pid_fill, ref_fill, term_build, term_build_apart,
    term_build_views, term_encode, tm_alloc, tm_alloc_libc, tm_buf, tm_buf_reserve, tm_bytes,
    tm_etf_put_binary, tm_etf_put_tuple, tm_pid, tm_ref,
)
from tumen._tumen cimport *

import asyncio
import atexit
import collections
import contextvars
import logging
import os
import time
import weakref

from tumen import errors
from tumen._term import Binary, ImproperList, decode, encode
from tumen.pool import Pool

cdef extern from "csrc/etf/inline.h" nogil:
    void tm_buf_fini(tm_buf *buf)

cdef extern from "Python.h":
    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT

    ctypedef PySendResult (*sendfunc)(PyObject *, PyObject *, PyObject **)
    ctypedef PyObject *(*iternextfunc)(PyObject *)

    ctypedef struct PyAsyncMethods:
        sendfunc am_send

    ctypedef struct PyTypeObject:
        iternextfunc tp_iternext
        PyAsyncMethods *tp_as_async

    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1
    void PyErr_SetObject(object kind, object value)
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    bint PyMemoryView_Check(object obj)
    Py_buffer *PyMemoryView_GET_BUFFER(object view)
    bint PyBuffer_IsContiguous(const Py_buffer *view, char order)
    unsigned long PyThread_get_thread_ident()
    long long PyLong_AsLongLongAndOverflow(object number, int *overflow) except? -1


include "pyx/core/convert.pxi"
include "pyx/core/errors.pxi"
include "pyx/core/engine.pxi"
include "pyx/core/node.pxi"
include "pyx/core/waiter.pxi"
include "pyx/core/process.pxi"
include "pyx/core/calls.pxi"
include "pyx/core/caller.pxi"
include "pyx/core/apart.pxi"
include "pyx/core/local.pxi"
include "pyx/core/loop_node.pxi"
include "pyx/core/loop_driver.pxi"
