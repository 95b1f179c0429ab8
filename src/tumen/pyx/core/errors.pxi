# Codes of the core as exceptions.

cdef dict ERRORS = {
    TM_EBUSY: errors.Busy,
    TM_ENOCONN: errors.NoConnection,
    TM_ENOPROC: errors.NoProc,
    TM_ENAME_TAKEN: errors.NameClash,
    TM_ETIMEDOUT: errors.NoConnection,
    TM_EPEER_MALFORMED: errors.NoConnection,
    TM_EPEER_LIMIT: errors.LimitExceeded,
    TM_EPEER_COOKIE: errors.AuthError,
    TM_EPEER_FLAGS: errors.AuthError,
    TM_EPEER_NAME: errors.AuthError,
    TM_EPEER_REFUSED: errors.NoConnection,
    TM_EPEER_REFLECTED: errors.AuthError,
    TM_EPEER_CLOSED: errors.NoConnection,
    TM_EPEER_TICK: errors.NoConnection,
    TM_EPEER_UNKNOWN: errors.NoConnection,
    TM_EUSE_LIMIT: errors.LimitExceeded,
}


def error_text(int code):
    """The text of a negative code of the core."""
    return (<bytes>tumen_error_text(code)).decode("utf-8", "replace")


def error_for(int code, peer=None, str context=""):
    """The exception for a negative code of the core; `context` says what was tried."""
    text = error_text(code)
    if context:
        text = f"{context}: {text}"
    if peer:
        text = f"{peer}: {text}"
    if code == TM_ENOMEM:
        return MemoryError(text)
    if code in (TM_EUSE_ARG, TM_EUSE_NAME, TM_EUSE_TERM):
        return ValueError(text)
    if -4096 < code < 0:
        return OSError(-code, text)
    return ERRORS.get(code, errors.TumenError)(text, peer=peer)


cdef int raise_for(int code, object peer, str context) except -1:
    raise error_for(code, peer, context)
