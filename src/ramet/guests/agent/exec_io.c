/* What goes into a running command and what comes out of it. Nothing here waits: the session's loop calls. */
#define _GNU_SOURCE
#include "exec.h"
#include "session.h"

#include <errno.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

static bool has_input(const struct exec *e)
{
    return e->phase == EXEC_STARTING || e->phase == EXEC_RUNNING;
}

void exec_pump_input(struct session *s)
{
    struct exec *e = &s->exec;
    size_t taken = 0;
    while (e->in_fd >= 0 && e->input.len) {
        ssize_t put = write(e->in_fd, queue_at(&e->input), e->input.len);
        if (put > 0) {
            taken += (size_t)put;
            queue_drop(&e->input, (size_t)put);
        } else if (put < 0 && errno == EAGAIN) {
            break;
        } else if (put == 0 || errno != EINTR) {
            unwatch(s, &e->in_fd); /* it closed its stdin */
        }
    }
    if (e->in_fd < 0)
        queue_clear(&e->input); /* what is left has no reader, and its client gets no credit to send more */
    if (taken) {
        struct queue q = {0};
        if (put_int(&q, taken, 4))
            reply(s, REP_WINDOW, &q);
        else
            s->lost = true;
        queue_free(&q);
    }
    if (e->input_ended && e->input.len == 0)
        unwatch(s, &e->in_fd);
    watch(s, e->in_fd, e->input.len ? EPOLLOUT : 0);
}

/* A terminal has no end of file but a character, which ends a line that was begun if there is one, and the input if not. */
static bool end_terminal_input(struct exec *e)
{
    struct termios t;
    if (tcgetattr(e->in_fd, &t) < 0)
        return true; /* nobody holds its other side */
    const uint8_t ends[2] = {t.c_cc[VEOF], t.c_cc[VEOF]};
    bool begun = e->last_input && e->last_input != '\n' && e->last_input != '\r';
    return queue_add(&e->input, ends, t.c_lflag & ICANON && begun ? 2 : 1);
}

void exec_input(struct session *s, const uint8_t *data, size_t len)
{
    struct exec *e = &s->exec;
    if (!has_input(e) || e->input_ended)
        return;
    bool fits = e->input.len + len <= STDIN_WINDOW && queue_add(&e->input, data, len);
    if (len)
        e->last_input = data[len - 1];
    else
        e->input_ended = true;
    if (fits && e->input_ended && e->flags & FLAG_PTY && e->in_fd >= 0)
        fits = end_terminal_input(e);
    if (!fits) {
        exec_cancel(s);
        reply_error(s, EOVERFLOW, "more stdin than the window allows");
        return;
    }
    exec_pump_input(s);
}

void exec_signal(struct session *s, struct cursor *c)
{
    int number = (int)get_int(c, 1);
    bool runs = s->exec.phase == EXEC_RUNNING || s->exec.phase == EXEC_ENDED;
    if (cursor_done(c) && runs && number > 0 && number < NSIG)
        kill(-s->exec.pid, number);
}

void exec_resize(struct session *s, struct cursor *c)
{
    struct winsize size = {.ws_row = (unsigned short)get_int(c, 2), .ws_col = (unsigned short)get_int(c, 2)};
    if (cursor_done(c) && s->exec.flags & FLAG_PTY && s->exec.out[0].fd >= 0)
        ioctl(s->exec.out[0].fd, TIOCSWINSZ, &size);
}

void exec_read_output(struct session *s, struct output *o)
{
    struct exec *e = &s->exec;
    if (e->held)
        return;
    ssize_t got = read(o->fd, s->chunk, sizeof s->chunk);
    if (got > 0) {
        reply_bytes(s, o->type, s->chunk, (size_t)got);
        o->owed -= (size_t)got < o->owed ? (size_t)got : o->owed;
        e->quiet_ms = now_ms() + QUIET_MS;
    } else if (got < 0 && errno == EINTR) {
        return;
    } else {
        o->owed = 0;
        if (got == 0 || errno != EAGAIN)
            unwatch(s, &o->fd); /* a terminal answers EIO when its last user is gone */
    }
}

void exec_hold_output(struct session *s, bool held)
{
    struct exec *e = &s->exec;
    if (held == e->held)
        return;
    e->held = held;
    for (int i = 0; i < 2; i++)
        watch(s, e->out[i].fd, held ? 0 : EPOLLIN);
    if (!held)
        e->quiet_ms = now_ms() + QUIET_MS;
}
