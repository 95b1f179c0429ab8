/* What the node itself answers: `net_kernel` and requests to spawn. */
#ifndef TM_CONN_KERNEL_H
#define TM_CONN_KERNEL_H

#include "connection.h"

/* A walked message to the process registered as net_kernel. 0 or TM_ENOMEM. */
TM_MUST_CHECK int tm_kernel_message(tm_connection *conn, tm_bytes message);

/* Answers a SPAWN_REQUEST with an error, an atom's text. 0 or TM_ENOMEM. */
TM_MUST_CHECK int tm_kernel_spawn_refuse(tm_connection *conn, const tm_control *control,
                                         tm_bytes error);
/* A SPAWN_REQUEST: erpc's two entry points and exposed functions become a process and an event, all
 * else is refused. Every one is answered. 0, or negative when the connection was closed or has to
 * be. */
TM_MUST_CHECK int tm_kernel_spawn_request(tm_connection *conn, const tm_control *control,
                                          tm_bytes arguments);

#endif
