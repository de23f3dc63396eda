#define _GNU_SOURCE
#include "fakes.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/random.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LINE 256

static const char *root = "";

void fakes_init(const char *directory)
{
    root = directory;
}

static void note(const char *line)
{
    char path[LINE], text[LINE];
    snprintf(path, sizeof path, "%s/calls", root);
    int len = snprintf(text, sizeof text, "%s\n", line);
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, text, (size_t)len) != len)
        abort();
    close(fd);
}

/* 0, or the errno that `name` is to fail with. */
static int told(const char *name)
{
    char path[LINE], text[32] = "";
    snprintf(path, sizeof path, "%s/fake-%s", root, name);
    for (;;) {
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            return 0;
        ssize_t got = read(fd, text, sizeof text - 1);
        close(fd);
        text[got > 0 ? got : 0] = 0;
        if (strcmp(text, "hang") != 0)
            return atoi(text);
        usleep(1000);
    }
}

static int fake(const char *name, const char *line)
{
    note(line);
    errno = told(name);
    return errno ? -1 : 0;
}

void __wrap_sync(void);
void __wrap_sync(void)
{
    fake("sync", "sync");
}

int __wrap_sethostname(const char *name, size_t len);
int __wrap_sethostname(const char *name, size_t len)
{
    char line[LINE];
    snprintf(line, sizeof line, "sethostname %.*s", (int)len, name);
    return fake("sethostname", line);
}

int __wrap_clock_settime(clockid_t clock, const struct timespec *t);
int __wrap_clock_settime(clockid_t clock, const struct timespec *t)
{
    char line[LINE];
    snprintf(line, sizeof line, "clock_settime %d %lld.%09ld", (int)clock, (long long)t->tv_sec, t->tv_nsec);
    return fake("clock_settime", line);
}

int __real_kill(pid_t pid, int number);
int __wrap_kill(pid_t pid, int number);
int __wrap_kill(pid_t pid, int number)
{
    char line[LINE];
    if (pid != 1)
        return __real_kill(pid, number);
    snprintf(line, sizeof line, "kill 1 %d", number);
    return fake("kill", line);
}

/* ROOT/data is a file system of its own while ROOT/data-is-mounted exists. */
int __real_statx(int fd, const char *path, int flags, unsigned mask, struct statx *out);
int __wrap_statx(int fd, const char *path, int flags, unsigned mask, struct statx *out);
int __wrap_statx(int fd, const char *path, int flags, unsigned mask, struct statx *out)
{
    char marker[LINE];
    int result = __real_statx(fd, path, flags, mask, out);
    snprintf(marker, sizeof marker, "%s/data-is-mounted", root);
    if (result == 0)
        out->stx_attributes = access(marker, F_OK) == 0 ? STATX_ATTR_MOUNT_ROOT : 0;
    return result;
}

/* The only openat() of the agent is that of a file without a name. */
int __real_openat(int at, const char *path, int flags, mode_t mode);
int __wrap_openat(int at, const char *path, int flags, ...);
int __wrap_openat(int at, const char *path, int flags, ...)
{
    errno = told("openat");
    return errno ? -1 : __real_openat(at, path, flags, 0600);
}

static int fake_reseed(const struct rand_pool_info *pool)
{
    char line[LINE];
    int at = snprintf(line, sizeof line, "RNDADDENTROPY %d ", pool->entropy_count);
    for (int i = 0; i < pool->buf_size && at + 2 < LINE; i++)
        at += snprintf(line + at, sizeof line - (size_t)at, "%02x", ((const unsigned char *)pool->buf)[i]);
    return fake("RNDADDENTROPY", line);
}

int __real_ioctl(int fd, unsigned long request, void *argument);
int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    switch (request) {
    case FIFREEZE: return fake("FIFREEZE", "FIFREEZE");
    case FITHAW: return fake("FITHAW", "FITHAW");
    case RNDADDENTROPY: return fake_reseed(argument);
    case RNDRESEEDCRNG: return fake("RNDRESEEDCRNG", "RNDRESEEDCRNG");
    default: return __real_ioctl(fd, request, argument);
    }
}
