/* One session: bytes in, requests dispatched, bytes out; and the reset that a hello is.
 *
 * The loop never blocks but in epoll_wait, so a new client is always heard, whatever the last one left: requests that may take
 * long run in a thread of their own (job.c), commands and files in processes (exec.c, files.c). */
#define _GNU_SOURCE
#include "session.h"
#include "guest.h"
#include "job.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#define READS_MAX 16 /* in one round, so that time limits hold against a client that never stops sending */
#define GONE_MS 40   /* from one look at a port's end of file to the next */
#define GONE_LOOKS 5 /* after which it is believed */

int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

bool watch(struct session *s, int fd, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (fd < 0)
        return false;
    if (!events)
        return epoll_ctl(s->epoll_fd, EPOLL_CTL_DEL, fd, NULL) == 0;
    return epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0 ||
           (errno == EEXIST && epoll_ctl(s->epoll_fd, EPOLL_CTL_MOD, fd, &event) == 0);
}

void unwatch(struct session *s, int *fd)
{
    if (*fd < 0)
        return;
    epoll_ctl(s->epoll_fd, EPOLL_CTL_DEL, *fd, NULL);
    close(*fd);
    *fd = -1;
}

void reply_bytes(struct session *s, uint8_t type, const void *data, size_t len)
{
    if (s->out.len > OUT_MAX || !put_message(&s->out, type, data, len))
        s->lost = true;
}

void reply(struct session *s, uint8_t type, const struct queue *payload)
{
    reply_bytes(s, type, queue_at(payload), payload->len);
}

void reply_error(struct session *s, int number, const char *text)
{
    struct queue q = {0};
    if (put_int(&q, (uint64_t)number, 4) && put_string(&q, text))
        reply(s, REP_ERROR, &q);
    else
        s->lost = true;
    queue_free(&q);
}

/* End what the client had under way. What it is owed is not sent. */
static void cancel_all(struct session *s)
{
    exec_cancel(s);
    job_cancel(s);
    queue_clear(&s->out);
    s->lost = false;
}

/* The client is no longer there, or no longer makes sense: a port waits for the next hello, any other stream ends. */
static void forget_client(struct session *s)
{
    cancel_all(s);
    parser_reset(&s->parser);
    s->closed = !s->serial;
}

static void write_output(struct session *s)
{
    while (s->out.len && !s->closed) {
        ssize_t put = write(s->fd, queue_at(&s->out), s->out.len > CHUNK ? CHUNK : s->out.len);
        if (put > 0)
            queue_drop(&s->out, (size_t)put);
        else if (put < 0 && errno == EAGAIN)
            return;
        else if (put == 0 || errno != EINTR)
            forget_client(s);
    }
}

/* A port learns by control messages, in a worker of the kernel's, that its client left and that another came, and data may overtake
 * them: bytes of the new client can be read before the end of file of the old one. So the end is believed only if it lasts over
 * several sleeps, in each of which that worker had the CPU, and if no hello comes. Nothing waits for that: a hello resets the session
 * in any case. */
static void doubt_end(struct session *s)
{
    s->gone_ms = now_ms() + GONE_MS;
    s->gone_looks = GONE_LOOKS;
}

static void check_end(struct session *s)
{
    struct pollfd port = {.fd = s->fd, .events = POLLIN};
    if (!s->gone_ms || now_ms() < s->gone_ms)
        return;
    s->gone_ms = 0;
    if (poll(&port, 1, 0) <= 0 || !(port.revents & POLLHUP))
        return;
    if (--s->gone_looks > 0)
        s->gone_ms = now_ms() + GONE_MS;
    else
        forget_client(s);
}

static void answer_hello(struct session *s)
{
    cancel_all(s);
    if (s->gone_ms)
        doubt_end(s);
    if (!put_hello(&s->out, s->parser.epoch))
        s->lost = true;
}

/* A client of another version is told ours, and nothing else. */
static void refuse_version(struct session *s)
{
    answer_hello(s);
    write_output(s);
    s->closed = !s->serial;
}

static bool is_busy(const struct session *s)
{
    return s->exec.phase != EXEC_NONE || s->job;
}

static void dispatch(struct session *s)
{
    struct cursor c = {queue_at(&s->parser.message), s->parser.message.len, false};
    uint8_t type = s->parser.type;
    switch (type) { /* these belong to the command at hand; one that has ended meanwhile does not care */
    case REQ_STDIN: exec_input(s, c.at, c.left); return;
    case REQ_SIGNAL: exec_signal(s, &c); return;
    case REQ_RESIZE: exec_resize(s, &c); return;
    }
    if (is_busy(s)) {
        reply_error(s, EBUSY, "this session is busy with another request");
        return;
    }
    switch (type) {
    case REQ_PING: do_ping(s, &c); break;
    case REQ_EXEC: exec_start(s, &c); break;
    case REQ_QUIESCE: do_quiesce(s, &c); break;
    case REQ_THAW: do_thaw(s, &c); break;
    case REQ_IDENTITY: do_identity(s, &c); break;
    case REQ_SHUTDOWN: do_shutdown(s, &c); break;
    default: reply_error(s, ENOSYS, "unknown request"); break;
    }
}

static void understand(struct session *s)
{
    while (!s->closed) {
        switch (parser_next(&s->parser)) {
        case EV_NONE: return;
        case EV_HELLO: answer_hello(s); break;
        case EV_VERSION: refuse_version(s); break;
        case EV_MESSAGE: dispatch(s); break;
        case EV_GARBAGE: /* the parser goes on to the next hello, which may have begun */
            cancel_all(s);
            s->closed = !s->serial;
            break;
        }
    }
}

static void read_input(struct session *s)
{
    for (int i = 0; i < READS_MAX && !s->closed; i++) {
        ssize_t got = read(s->fd, s->chunk, sizeof s->chunk);
        if (got > 0) {
            if (!parser_feed(&s->parser, s->chunk, (size_t)got))
                forget_client(s);
            else
                understand(s);
        } else if (got < 0 && errno == EINTR) {
            continue;
        } else if (got < 0 && errno == EAGAIN) {
            s->readable = false;
            return;
        } else { /* a port whose host side is closed reads as end of file, and lives on */
            s->readable = false;
            if (!s->serial)
                forget_client(s);
            else if (!s->gone_ms)
                doubt_end(s);
            return;
        }
    }
}

static int timeout_ms(struct session *s)
{
    int64_t until = exec_wakes_ms(s);
    if (s->readable)
        return 0;
    if (s->gone_ms && (until < 0 || s->gone_ms < until))
        until = s->gone_ms;
    if (until < 0)
        return -1;
    int64_t left = until - now_ms();
    return left < 0 ? 0 : left > 60000 ? 60000 : (int)left;
}

static bool serve_round(struct session *s)
{
    struct epoll_event events[16];
    if (s->readable)
        read_input(s);
    exec_tick(s);
    check_end(s);
    if (s->lost)
        forget_client(s);
    write_output(s);
    if (s->closed)
        return false;
    int count = epoll_wait(s->epoll_fd, events, 16, timeout_ms(s));
    if (count < 0 && errno != EINTR)
        return false;
    for (int i = 0; i < count; i++) {
        if (events[i].data.fd == s->fd)
            s->readable = true;
        else if (job_owns(s, events[i].data.fd))
            job_finish(s);
        else
            exec_event(s, events[i].data.fd);
    }
    return true;
}

void session_serve(int fd, bool serial)
{
    struct session *s = calloc(1, sizeof *s);
    if (s) {
        s->fd = fd;
        s->serial = serial;
        s->readable = true;
        s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
        exec_init(&s->exec);
        /* edge-triggered, since a port without a client reports a hangup all the time */
        if (s->epoll_fd >= 0 && watch(s, fd, EPOLLIN | EPOLLOUT | EPOLLET))
            while (serve_round(s))
                continue;
        cancel_all(s);
        parser_free(&s->parser);
        queue_free(&s->out);
        if (s->epoll_fd >= 0)
            close(s->epoll_fd);
        free(s);
    }
    close(fd);
}
