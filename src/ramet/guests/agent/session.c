/* One session: bytes in, requests dispatched, bytes out; and the reset that a hello or a hangup is. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HANGUP_MS 20
#define HANGUP_LOOKS 3

int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

bool watch(struct session *s, int fd, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};
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

bool reply(struct session *s, uint8_t type, const void *data, size_t len)
{
    if (put_message(&s->out, type, data, len))
        return true;
    s->closed = !s->serial;
    return false;
}

bool reply_error(struct session *s, int number, const char *text)
{
    struct queue q = {0};
    bool ok = put_int(&q, (uint64_t)number, 4) && put_string(&q, text) && reply(s, REP_ERROR, queue_at(&q), q.len);
    queue_free(&q);
    return ok;
}

static void cancel_all(struct session *s)
{
    exec_cancel(s);
    file_cancel(s);
    queue_clear(&s->out);
}

static void hang_up(struct session *s)
{
    cancel_all(s);
    parser_reset(&s->parser);
    s->closed = !s->serial;
}

/* A port whose host side is closed reads as end of file, and lives on. But the driver learns of closing and opening by control
 * messages, in a worker of its own, and the data may overtake them: the first bytes of the next client can be here while the port
 * still says closed. So the end is believed only if it lasts over several sleeps, in each of which that worker had the CPU; and a
 * hello in between begins a session that the end was not of. */
static void doubt_end(struct session *s)
{
    s->hangup_ms = now_ms() + HANGUP_MS;
    s->hangup_looks = HANGUP_LOOKS;
}

static void end_of_input(struct session *s)
{
    if (!s->serial)
        hang_up(s);
    else if (!s->hangup_ms)
        doubt_end(s);
}

static void answer_hello(struct session *s)
{
    uint8_t hello[HELLO_LEN];
    cancel_all(s);
    if (s->hangup_ms)
        doubt_end(s);
    memcpy(hello, ramet_magic, MAGIC_LEN);
    hello[MAGIC_LEN] = PROTOCOL_VERSION;
    memcpy(hello + MAGIC_LEN + 1, s->parser.epoch, EPOCH_LEN);
    queue_add(&s->out, hello, HELLO_LEN);
}

static bool busy(const struct session *s)
{
    return s->exec.pid > 0 || s->file.sending || s->file.receiving;
}

static void dispatch(struct session *s)
{
    struct cursor c = {queue_at(&s->parser.message), s->parser.message.len, false};
    uint8_t type = s->parser.message_type;
    bool starts = type != REQ_STDIN && type != REQ_SIGNAL && type != REQ_RESIZE && type != REQ_DATA && type != REQ_END;
    if (starts && busy(s)) {
        reply_error(s, EBUSY, "this session is busy with another request");
        return;
    }
    switch (type) {
    case REQ_PING: do_ping(s); break;
    case REQ_EXEC: exec_start(s, &c); break;
    case REQ_STDIN: exec_input(s, c.at, c.left); break;
    case REQ_SIGNAL: exec_signal(s, (int)get_int(&c, 1)); break;
    case REQ_RESIZE: {
        unsigned rows = (unsigned)get_int(&c, 2), cols = (unsigned)get_int(&c, 2);
        exec_resize(s, rows, cols);
        break;
    }
    case REQ_PUT: file_put(s, &c); break;
    case REQ_DATA: file_data(s, c.at, c.left); break;
    case REQ_END: file_end(s); break;
    case REQ_GET: file_get(s, &c); break;
    case REQ_QUIESCE: do_quiesce(s, &c); break;
    case REQ_THAW: do_thaw(s); break;
    case REQ_IDENTITY: do_identity(s, &c); break;
    case REQ_SHUTDOWN: do_shutdown(s, &c); break;
    default: reply_error(s, ENOSYS, "unknown request"); break;
    }
}

static void understand(struct session *s)
{
    for (;;) {
        switch (parser_next(&s->parser)) {
        case EV_NONE: return;
        case EV_HELLO: answer_hello(s); break;
        case EV_MESSAGE: dispatch(s); break;
        case EV_GARBAGE:
        case EV_NOMEM:
            cancel_all(s);
            parser_reset(&s->parser);
            s->closed = !s->serial;
            return;
        }
    }
}

static void check_hangup(struct session *s)
{
    struct pollfd port = {.fd = s->fd};
    if (!s->hangup_ms || now_ms() < s->hangup_ms)
        return;
    s->hangup_ms = 0;
    if (poll(&port, 1, 0) <= 0 || !(port.revents & POLLHUP))
        return;
    if (--s->hangup_looks > 0)
        s->hangup_ms = now_ms() + HANGUP_MS;
    else
        hang_up(s);
}

static int wait_ms(struct session *s)
{
    int command_ms = exec_timeout_ms(s);
    if (!s->hangup_ms)
        return command_ms;
    int64_t left = s->hangup_ms - now_ms();
    int hangup_ms = left > 0 ? (int)left : 0;
    return command_ms >= 0 && command_ms < hangup_ms ? command_ms : hangup_ms;
}

/* Read all there is: the descriptor is watched edge-triggered. */
static void read_input(struct session *s)
{
    static _Thread_local uint8_t chunk[65536];
    while (!s->closed) {
        ssize_t got = read(s->fd, chunk, sizeof chunk);
        if (got > 0) {
            if (!parser_feed(&s->parser, chunk, (size_t)got))
                hang_up(s);
            else
                understand(s);
        } else if (got < 0 && errno == EINTR) {
            continue;
        } else if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            return;
        } else if (got == 0) {
            end_of_input(s);
            return;
        } else {
            hang_up(s);
            return;
        }
    }
}

static void write_output(struct session *s)
{
    while (s->out.len && !s->closed) {
        ssize_t put = write(s->fd, queue_at(&s->out), s->out.len > 65536 ? 65536 : s->out.len);
        if (put > 0) {
            queue_drop(&s->out, (size_t)put);
        } else if (put < 0 && errno == EINTR) {
            continue;
        } else if (put < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            return;
        } else {
            hang_up(s);
            return;
        }
    }
}

void session_serve(int fd, bool serial)
{
    struct session s = {.fd = fd, .serial = serial, .epoll_fd = epoll_create1(EPOLL_CLOEXEC)};
    struct epoll_event events[16];
    exec_init(&s.exec);
    file_init(&s.file);
    if (s.epoll_fd < 0 || !watch(&s, fd, EPOLLIN | EPOLLOUT | EPOLLET))
        s.closed = true;
    while (!s.closed) {
        file_pump(&s);
        write_output(&s);
        if (s.file.sending && s.out.len < OUT_HIGH_WATER)
            continue;
        int count = epoll_wait(s.epoll_fd, events, 16, wait_ms(&s));
        if (count < 0 && errno != EINTR)
            break;
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd == fd)
                read_input(&s);
            else
                exec_event(&s, events[i].data.fd);
        }
        exec_tick(&s);
        check_hangup(&s);
    }
    cancel_all(&s);
    parser_free(&s.parser);
    queue_free(&s.out);
    if (s.epoll_fd >= 0)
        close(s.epoll_fd);
    close(fd);
}
