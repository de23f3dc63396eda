/* put and get. A file that is put appears whole or not at all: it is written beside its place, synced and renamed. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void file_init(struct file_state *f)
{
    memset(f, 0, sizeof *f);
    f->fd = -1;
}

void file_cancel(struct session *s)
{
    struct file_state *f = &s->file;
    if (f->fd >= 0)
        close(f->fd);
    if (f->receiving && f->temp_path)
        unlink(f->temp_path);
    free(f->final_path);
    free(f->temp_path);
    file_init(f);
}

static void fail(struct session *s, const char *path, int number)
{
    char text[512];
    snprintf(text, sizeof text, "%.400s: %s", path ? path : "?", strerror(number));
    file_cancel(s);
    reply_error(s, number, text);
}

void file_put(struct session *s, struct cursor *c)
{
    static unsigned counter;
    struct file_state *f = &s->file;
    uint32_t mode = (uint32_t)get_int(c, 4) & 07777;
    char *path = get_string(c);
    struct stat found;
    if (!cursor_done(c) || !path[0] || path[strlen(path) - 1] == '/') {
        free(path);
        reply_error(s, EINVAL, "malformed put request: it needs the name of a file");
        return;
    }
    f->final_path = path;
    if (stat(path, &found) == 0 && S_ISDIR(found.st_mode)) {
        fail(s, path, EISDIR);
        return;
    }
    const char *slash = strrchr(path, '/');
    int dir_len = slash ? (int)(slash - path) + 1 : 0;
    if (asprintf(&f->temp_path, "%.*s.ramet-put-%d-%u", dir_len, path, (int)gettid(),
                 __atomic_fetch_add(&counter, 1, __ATOMIC_RELAXED)) < 0) {
        f->temp_path = NULL;
        fail(s, path, ENOMEM);
        return;
    }
    f->fd = open(f->temp_path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (f->fd < 0) {
        fail(s, path, errno);
        return;
    }
    f->receiving = true;
    f->mode = mode;
    reply(s, REP_OK, NULL, 0);
}

void file_data(struct session *s, const uint8_t *data, size_t len)
{
    struct file_state *f = &s->file;
    if (!f->receiving)
        return; /* it failed while this was under way; the client has been told */
    while (len) {
        ssize_t put = write(f->fd, data, len);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0) {
            fail(s, f->final_path, put < 0 ? errno : EIO);
            return;
        }
        data += put;
        len -= (size_t)put;
    }
}

void file_end(struct session *s)
{
    struct file_state *f = &s->file;
    if (!f->receiving)
        return;
    if (fchmod(f->fd, f->mode) < 0 || fsync(f->fd) < 0 || rename(f->temp_path, f->final_path) < 0) {
        fail(s, f->final_path, errno);
        return;
    }
    f->receiving = false;
    file_cancel(s);
    reply(s, REP_OK, NULL, 0);
}

void file_get(struct session *s, struct cursor *c)
{
    struct file_state *f = &s->file;
    struct stat found;
    char *path = get_string(c);
    if (!cursor_done(c)) {
        free(path);
        reply_error(s, EINVAL, "malformed get request");
        return;
    }
    f->final_path = path;
    f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); /* a fifo must not hang us */
    if (f->fd < 0 || fstat(f->fd, &found) < 0) {
        fail(s, path, errno);
        return;
    }
    if (!S_ISREG(found.st_mode)) {
        fail(s, path, S_ISDIR(found.st_mode) ? EISDIR : EINVAL);
        return;
    }
    f->sending = true;
    struct queue q = {0};
    if (put_int(&q, (uint64_t)found.st_size, 8) && put_int(&q, found.st_mode & 07777, 4))
        reply(s, REP_META, queue_at(&q), q.len);
    queue_free(&q);
}

/* Send while the client reads; /proc files have no size, so the end is the end of file. */
void file_pump(struct session *s)
{
    static _Thread_local uint8_t chunk[65536];
    struct file_state *f = &s->file;
    while (f->sending && s->out.len < OUT_HIGH_WATER) {
        ssize_t got = read(f->fd, chunk, sizeof chunk);
        if (got > 0) {
            reply(s, REP_DATA, chunk, (size_t)got);
        } else if (got < 0 && errno == EINTR) {
            continue;
        } else if (got < 0) {
            fail(s, f->final_path, errno);
        } else {
            file_cancel(s);
            reply(s, REP_END, NULL, 0);
        }
    }
}
