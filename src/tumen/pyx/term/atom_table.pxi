# The table of atoms: one object per text that came in.

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


cdef inline uint64_t text_mix(const uint8_t *p, size_t n) noexcept:
    """A salted hash of n bytes, for the tables of this module."""
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
    entry.hash = text_mix(text, n)
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
    cdef uint64_t h = text_mix(p, n)
    cdef size_t i = h & atom_mask
    cdef AtomSlot *slot
    cdef int probe
    for probe in range(ATOM_PROBES_MAX):
        slot = &atom_slots[i]
        if slot.obj == NULL:
            break
        if slot.hash == h and slot.len == n and tm_etf_same_short(slot.text, p, n):
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
