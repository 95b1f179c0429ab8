# Values of a type: what a plan of `tumen.typed` is made of.

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
