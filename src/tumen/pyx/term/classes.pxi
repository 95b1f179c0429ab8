# The classes of terms that Python has no type for.

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
    if n - 1 <= WIRE_COUNT_MAX:
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
