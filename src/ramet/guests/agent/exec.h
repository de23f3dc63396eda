/* The command of a session: from its request to its exit. */
#ifndef RAMET_EXEC_H
#define RAMET_EXEC_H

#include "command.h"

#include <sys/types.h>

struct session;

enum exec_phase {
    EXEC_NONE,
    EXEC_STARTING, /* forked; whether the program runs is not known yet */
    EXEC_RUNNING,
    EXEC_ENDED     /* it exited and is not reaped, so that its process group keeps its number; output may still come */
};

struct output {
    int fd;
    uint8_t type;
    size_t owed; /* bytes that it had written when it exited, and that were not read yet */
};

struct exec {
    enum exec_phase phase;
    struct command command; /* kept while it starts */
    uint32_t flags;
    pid_t pid;
    int report_fd, pid_fd, in_fd;
    struct output out[2];
    bool held; /* its output is not read, since the client does not read */
    struct queue input;
    bool input_ended;
    uint8_t last_input;
    int64_t deadline_ms, kill_ms, quiet_ms, linger_ms; /* 0: none */
    bool timed_out;
    bool signalled;
    int value; /* exit status, or the signal that ended it */
};

void exec_init(struct exec *e);
void exec_start(struct session *s, struct cursor *c);
void exec_input(struct session *s, const uint8_t *data, size_t len);
void exec_signal(struct session *s, struct cursor *c);
void exec_resize(struct session *s, struct cursor *c);
/* Something happened on a descriptor that is not the session's own. */
void exec_event(struct session *s, int fd);
/* Once a round: time limits, flow control, the end. */
void exec_tick(struct session *s);
/* When exec_tick is due even if nothing happens, or -1. */
int64_t exec_wakes_ms(const struct session *s);
/* End the command, if there is one, and forget it. Does not wait for it. */
void exec_cancel(struct session *s);

/* exec_io.c for exec.c */

#define QUIET_MS 200 /* what holds the pipes after the command's exit is listened to until it is silent for this long */

/* Give the command what it takes, and the client as much new credit. */
void exec_pump_input(struct session *s);
void exec_read_output(struct session *s, struct output *o);
/* While the client does not read, the command's output is not read either. */
void exec_hold_output(struct session *s, bool held);

#endif
