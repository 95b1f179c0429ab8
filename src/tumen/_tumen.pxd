# Generated from csrc/tumen.h by tools/bindgen.py; `make bindings` writes it anew.

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t, uint8_t


cdef extern from "csrc/tumen.h" nogil:
    enum tumen_error:
        TM_OK
        TM_NEED_DATA
        TM_ENOMEM
        TM_EBUSY
        TM_ENOCONN
        TM_ENOPROC
        TM_ECLOSED
        TM_ENAME_TAKEN
        TM_ETIMEDOUT
        TM_EFORKED
        TM_ENOTSUP
        TM_EPEER_MALFORMED
        TM_EPEER_LIMIT
        TM_EPEER_COOKIE
        TM_EPEER_FLAGS
        TM_EPEER_NAME
        TM_EPEER_REFUSED
        TM_EPEER_REFLECTED
        TM_EPEER_CLOSED
        TM_EPEER_TICK
        TM_EPEER_UNKNOWN
        TM_EUSE_ARG
        TM_EUSE_STATE
        TM_EUSE_NAME
        TM_EUSE_TERM
        TM_EUSE_LIMIT

    ctypedef struct tumen_engine:
        pass

    ctypedef struct tumen_node:
        pass

    ctypedef struct tumen_batch:
        pass

    ctypedef struct tumen_bytes:
        const uint8_t *ptr
        size_t len

    ctypedef struct tumen_pid:
        tumen_bytes node
        uint32_t id
        uint32_t serial
        uint32_t creation

    ctypedef struct tumen_ref:
        tumen_bytes node
        uint32_t creation
        uint32_t count
        uint32_t words[5]

    ctypedef uint64_t tumen_key

    const char *tumen_error_text(int code) noexcept
    const char *tumen_version() noexcept
    enum tumen_backend:
        TUMEN_BACKEND_AUTO
        TUMEN_BACKEND_URING
        TUMEN_BACKEND_EPOLL

    enum tumen_driver:
        TUMEN_DRIVER_THREAD
        TUMEN_DRIVER_LOOP
        TUMEN_DRIVER_HOST

    ctypedef struct tumen_engine_options:
        int backend
        int driver
        uint32_t sockets_max
        int eager

    int tumen_engine_create(const tumen_engine_options *options, tumen_engine **engine) noexcept
    void tumen_engine_destroy(tumen_engine *engine) noexcept
    int tumen_engine_step(tumen_engine *engine, int64_t timeout_ns) noexcept
    int tumen_engine_poll_fd(tumen_engine *engine) noexcept
    int64_t tumen_engine_timeout_ns(tumen_engine *engine) noexcept
    const char *tumen_engine_backend(const tumen_engine *engine) noexcept
    const char *tumen_engine_backend_why(const tumen_engine *engine) noexcept
    void tumen_engine_forked(tumen_engine *engine) noexcept
    ctypedef struct tumen_counters:
        uint64_t bytes
        uint64_t blocks
        uint64_t sockets
        uint64_t turns
        uint64_t system_calls
        uint64_t receives
        uint64_t sends
        uint64_t direct_sends
        uint64_t wakeups_in
        uint64_t wakeups_out
        uint64_t takeovers
        uint64_t waits

    void tumen_engine_counters(tumen_engine *engine, tumen_counters *counters) noexcept
    int tumen_engine_serve_epmd(tumen_engine *engine, const char *address, uint16_t port) noexcept
    enum tumen_epmd_mode:
        TUMEN_EPMD_USE
        TUMEN_EPMD_CLIENT
        TUMEN_EPMD_NONE

    enum tumen_limit:
        TUMEN_LIMIT_MESSAGE_BYTES
        TUMEN_LIMIT_SENDQ_HIGH_BYTES
        TUMEN_LIMIT_SENDQ_NODE_BYTES
        TUMEN_LIMIT_MAILBOX_BYTES
        TUMEN_LIMIT_INBOX_BYTES
        TUMEN_LIMIT_DEPTH
        TUMEN_LIMIT_DECODED_BYTES
        TUMEN_LIMIT_TICK_TIME_MS
        TUMEN_LIMIT_HANDSHAKE_MS
        TUMEN_LIMIT_HALF_OPEN_COUNT
        TUMEN_LIMIT_REASSEMBLY_BYTES
        TUMEN_LIMIT_COUNT

    ctypedef struct tumen_node_options:
        const char *name
        const char *cookie
        const char *allowed
        int visible
        int listen
        const char *listen_host
        uint16_t listen_port
        int epmd_mode
        const char *epmd_address
        uint16_t epmd_port
        uint64_t flags

    int tumen_node_create(tumen_engine *engine, const tumen_node_options *options, tumen_node **node) noexcept
    int tumen_node_stop(tumen_node *node) noexcept
    void tumen_node_destroy(tumen_node *node) noexcept
    int tumen_node_set_limit(tumen_node *node, int limit, uint64_t value) noexcept
    uint64_t tumen_node_limit(tumen_node *node, int limit) noexcept
    int tumen_node_set_cookie(tumen_node *node, tumen_bytes peer, tumen_bytes cookie) noexcept
    int tumen_node_allow(tumen_node *node, tumen_bytes entry) noexcept
    int tumen_node_connect(tumen_node *node, tumen_bytes peer, const char *host, uint16_t port) noexcept
    int tumen_node_disconnect(tumen_node *node, tumen_bytes peer) noexcept
    ctypedef struct tumen_node_info:
        tumen_bytes name
        uint32_t creation
        uint16_t port
        int visible
        int registered
        int serves_epmd
        uint64_t connections
        uint64_t processes
        uint64_t inbox_bytes
        uint64_t mail_bytes
        uint64_t sendq_bytes
        uint64_t messages_in
        uint64_t messages_out
        uint64_t messages_dropped
        uint64_t operations_refused
        uint64_t operations_unknown
        uint64_t half_open

    int tumen_node_get_info(tumen_node *node, tumen_node_info *info) noexcept
    enum tumen_connection_state:
        TUMEN_PENDING
        TUMEN_UP

    ctypedef struct tumen_connection:
        tumen_bytes name
        int state
        int visible
        uint32_t creation
        uint64_t flags
        uint64_t up_ns
        uint64_t bytes_in
        uint64_t bytes_out
        uint64_t frames_in
        uint64_t frames_out
        uint64_t ticks_in
        uint64_t ticks_out
        uint64_t queue_bytes
        uint64_t queue_count
        uint64_t inbox_bytes
        uint64_t reassembly_bytes
        uint64_t atoms
        char address[64]

    int tumen_node_connections(tumen_node *node, tumen_connection *connections, size_t max) noexcept
    int tumen_spawn(tumen_node *node, tumen_key *key) noexcept
    int tumen_exit(tumen_node *node, tumen_key key, tumen_bytes reason) noexcept
    int tumen_alive(tumen_node *node, tumen_key key) noexcept
    int tumen_pid_of(tumen_node *node, tumen_key key, tumen_pid *pid) noexcept
    int tumen_trap_exit(tumen_node *node, tumen_key key, int trap) noexcept
    int tumen_register(tumen_node *node, tumen_bytes name, tumen_key key) noexcept
    int tumen_unregister(tumen_node *node, tumen_bytes name) noexcept
    tumen_key tumen_whereis(tumen_node *node, tumen_bytes name) noexcept
    int tumen_make_ref(tumen_node *node, tumen_ref *ref) noexcept
    void tumen_mail_taken(tumen_node *node, tumen_key key, uint64_t bytes) noexcept
    enum tumen_target_kind:
        TUMEN_TO_PID
        TUMEN_TO_NAME
        TUMEN_TO_REF

    ctypedef struct tumen_target:
        int kind
        tumen_pid pid
        tumen_bytes node
        tumen_bytes name
        tumen_ref ref

    enum tumen_send_flags:
        TUMEN_SEND_CONTROL
        TUMEN_SEND_NOCONNECT

    int tumen_send(tumen_node *node, tumen_key, const tumen_target *to, tumen_bytes message, unsigned int flags) noexcept
    enum tumen_part_limits:
        TUMEN_PARTS_MAX

    ctypedef struct tumen_part:
        tumen_bytes bytes
        uint64_t lent

    int tumen_send_parts(tumen_node *node, tumen_key, const tumen_target *to, const tumen_part *parts, size_t count, unsigned int flags) noexcept
    ctypedef struct tumen_local:
        tumen_key key
        int reply
        int waits

    int tumen_send_local(tumen_node *node, tumen_key, const tumen_target *to, uint64_t bytes, int64_t number, tumen_local *local) noexcept
    void tumen_flush(tumen_node *node) noexcept
    int tumen_want_writable(tumen_node *node, tumen_bytes peer) noexcept
    enum tumen_monitor_flags:
        TUMEN_MONITOR_ALIAS
        TUMEN_MONITOR_EXPLICIT_UNALIAS
        TUMEN_MONITOR_DEMONITOR
        TUMEN_MONITOR_REPLY_DEMONITOR

    int tumen_monitor(tumen_node *node, tumen_key watcher, const tumen_target *target, unsigned int flags, tumen_ref *ref) noexcept
    int tumen_demonitor(tumen_node *node, tumen_key watcher, const tumen_ref *ref) noexcept
    int tumen_watched(tumen_node *node, tumen_key key, const tumen_ref *ref) noexcept
    int tumen_link(tumen_node *node, tumen_key key, const tumen_pid *to) noexcept
    int tumen_unlink(tumen_node *node, tumen_key key, const tumen_pid *to) noexcept
    int tumen_exit_signal(tumen_node *node, tumen_key, const tumen_target *to, tumen_bytes reason) noexcept
    int tumen_monitor_node(tumen_node *node, tumen_key key, tumen_bytes peer, int on) noexcept
    enum tumen_alias_flags:
        TUMEN_ALIAS_REPLY

    int tumen_alias(tumen_node *node, tumen_key key, unsigned int flags, tumen_ref *ref) noexcept
    int tumen_unalias(tumen_node *node, tumen_key key, const tumen_ref *ref) noexcept
    enum tumen_space:
        TUMEN_NODE_NAME_BYTES
        TUMEN_TRACE_TOKEN_BYTES

    int tumen_group_leader(tumen_node *node, tumen_key key, tumen_pid *leader, char *space) noexcept
    int tumen_set_group_leader(tumen_node *node, tumen_key by, const tumen_pid *process, const tumen_pid *leader) noexcept
    int tumen_trace(tumen_node *node, tumen_key key, tumen_bytes token) noexcept
    int tumen_trace_token(tumen_node *node, tumen_key key, uint8_t *space, size_t size) noexcept
    int tumen_expose(tumen_node *node, tumen_bytes module, tumen_bytes function, int on) noexcept
    enum tumen_spawn_flags:
        TUMEN_SPAWN_LINK
        TUMEN_SPAWN_MONITOR

    ctypedef struct tumen_spawn_spec:
        tumen_bytes peer
        tumen_bytes module
        tumen_bytes function
        uint32_t arity
        unsigned int flags
        tumen_bytes args
        tumen_bytes options
        tumen_pid leader

    int tumen_spawn_request(tumen_node *node, tumen_key, const tumen_spawn_spec *spec, tumen_ref *ref) noexcept
    int tumen_spawn_abandon(tumen_node *node, tumen_key, const tumen_ref *ref) noexcept
    enum tumen_event_kind:
        TUMEN_EVENT_MESSAGE
        TUMEN_EVENT_REPLY
        TUMEN_EVENT_DOWN
        TUMEN_EVENT_EXIT
        TUMEN_EVENT_EXITED
        TUMEN_EVENT_SPAWN
        TUMEN_EVENT_ABANDONED
        TUMEN_EVENT_SPAWN_REPLY
        TUMEN_EVENT_NODE_LOST
        TUMEN_EVENT_LOCAL
        TUMEN_EVENT_NODEUP
        TUMEN_EVENT_NODEDOWN
        TUMEN_EVENT_CONNECT_FAILED
        TUMEN_EVENT_WRITABLE
        TUMEN_EVENT_REFUSED
        TUMEN_EVENT_HANDSHAKE_FAILED
        TUMEN_EVENT_REGISTERED
        TUMEN_EVENT_REGISTER_FAILED
        TUMEN_EVENT_RETURNED
        TUMEN_EVENT_NAMED
        TUMEN_EVENT_STOPPED
        TUMEN_EVENT_BROKEN

    ctypedef struct tumen_event:
        int kind
        int code
        tumen_key process
        int64_t number
        uint64_t wire_bytes
        uint64_t connection
        tumen_pid from_ "from"
        tumen_ref ref
        tumen_bytes node
        tumen_bytes name
        tumen_bytes text
        tumen_bytes term

    int tumen_node_event_fd(const tumen_node *node) noexcept
    int tumen_node_arm(tumen_node *node) noexcept
    tumen_batch *tumen_node_take(tumen_node *node) noexcept
    const tumen_event *tumen_batch_next(tumen_batch *batch) noexcept
    tumen_batch *tumen_batch_keep(tumen_batch *batch) noexcept
    void *tumen_batch_detach(tumen_batch *batch) noexcept
    void tumen_memory_free(void *memory) noexcept
    void tumen_batch_free(tumen_batch *batch) noexcept
    int tumen_node_blame(tumen_node *node, uint64_t connection, const char *text) noexcept
