# What the drain resolves, and the tasks that wait for it.

cdef class Waiter:
    """A future whose task goes on at the end of the drain that resolves it.

    An `asyncio.Future` would have its task go on in the next turn of the loop. It has no value;
    for asyncio it is a future as any other. The loop's thread only.
    """

    cdef LoopNode core
    cdef bint is_done                            # resolved or cancelled
    cdef bint is_cancelled
    cdef public bint _asyncio_future_blocking    # asyncio's: its task has been told to wait for it
    cdef object callback                         # the first, mostly a task's step; None without
    cdef object context                          # that it is to run in
    cdef list others                             # more of them, as pairs, or None
    cdef object cancel_message

    def get_loop(self):
        return self.core.loop

    def done(self):
        return self.is_done

    def cancelled(self):
        return self.is_cancelled

    def add_done_callback(self, callback, *, context=None):
        """Once it is done: at the end of the drain, or by ``loop.call_soon``."""
        if context is None:
            context = contextvars.copy_context()
        if self.is_done:
            self.core.call_soon(callback, self, context=context)
        elif self.callback is None:
            self.callback = callback
            self.context = context
        else:
            if self.others is None:
                self.others = []
            self.others.append((callback, context))

    def remove_done_callback(self, callback):
        """How many there were."""
        cdef list kept = [pair for pair in self.callbacks() if pair[0] != callback]
        cdef Py_ssize_t count = len(self.callbacks()) - len(kept)
        self.callback = self.context = self.others = None
        for one, context in kept:
            self.add_done_callback(one, context=context)
        return count

    def cancel(self, msg=None):
        """As that of a future. False when it is done."""
        if self.is_done:
            return False
        self.is_done = self.is_cancelled = True
        self.cancel_message = msg
        self.call_soon()
        return True

    cpdef resolve(self):
        """It is done. Idempotent."""
        if not self.is_done:
            self.is_done = True
            self.core.wake(self)

    def result(self):
        """None, once it is done."""
        if self.is_cancelled:
            raise asyncio.CancelledError() if self.cancel_message is None \
                else asyncio.CancelledError(self.cancel_message)
        if not self.is_done:
            raise asyncio.InvalidStateError("it is not done")

    def exception(self):
        """None, once it is done: it cannot fail."""
        return self.result()

    cdef list callbacks(self):
        cdef list found = [] if self.callback is None else [(self.callback, self.context)]
        return found if self.others is None else found + self.others

    cdef int call_soon(self) except -1:
        """In the next turn of the loop."""
        cdef list found = self.callbacks()
        self.callback = self.context = self.others = None
        for callback, context in found:
            self.core.call_soon(callback, self, context=context)
        return 0

    cdef int call_now(self) except -1:
        cdef object callback = self.callback, context = self.context
        cdef list others = self.others
        self.callback = self.context = self.others = None
        if others is not None:
            for one, its in others:
                self.core.call_soon(one, self, context=its)
        if callback is None:
            return 0
        PyContext_Enter(context)
        try:
            callback(self)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self.core.loop.call_exception_handler(
                {"message": "tumen: what waited has failed", "exception": error})
        finally:
            PyContext_Exit(context)
        return 0

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        """Runs from the slots that are set below; here for the table of methods alone."""
        raise RuntimeError("the slots run, not this")

    cdef bint step(self, PyObject **value) except -1:
        if self.is_done:
            give(self.result(), value)
            return True
        # The protocol between a task and a future that it is to wait for.
        self._asyncio_future_blocking = True
        give(self, value)
        return False


cdef inline void give(object value, PyObject **to) noexcept:
    Py_INCREF(value)  # Py_DECREF: the interpreter
    to[0] = <PyObject *>value


# Cython's own slots would make a StopIteration with a traceback each time: four times the work of
# the rest. Python 3.11 calls am_send, later versions tp_iternext.

cdef PySendResult waiter_send(PyObject *self, PyObject *_, PyObject **value) noexcept:
    value[0] = NULL
    try:
        return PYGEN_RETURN if (<Waiter>self).step(value) else PYGEN_NEXT
    except BaseException as error:
        PyErr_SetObject(type(error), error)
        return PYGEN_ERROR


cdef PyObject *waiter_next(PyObject *self) noexcept:
    return next_by(waiter_send, self)


cdef PyObject *next_by(sendfunc send, PyObject *self) noexcept:
    cdef PyObject *value = NULL
    if send(self, NULL, &value) == PYGEN_RETURN:
        PyErr_SetObject(StopIteration, StopIteration(<object>value))
        Py_DECREF(<object>value)
        value = NULL
    return value


cdef void set_slots(object kind, sendfunc send, iternextfunc following) noexcept:
    (<PyTypeObject *>kind).tp_iternext = following
    (<PyTypeObject *>kind).tp_as_async.am_send = send


set_slots(Waiter, waiter_send, waiter_next)
