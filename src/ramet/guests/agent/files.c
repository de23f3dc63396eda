/* put and get are processes of the workload, like any command: a file system that is frozen, full or gone stops them and never the
 * agent, and whoever ends the session ends them. */
#define _GNU_SOURCE
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static uint8_t chunk[256 * 1024];
static char *temporary; /* what a put that does not end well takes back */
static bool unnamed;    /* its file has no name before it is whole: nothing is left of it, though it is killed */

static int fail(const char *path, int error)
{
    fprintf(stderr, "%.300s: %s\n", path, strerror(error));
    return error > 0 && error < 256 ? error : EIO;
}

static int write_all(int fd, const uint8_t *data, size_t len)
{
    while (len) {
        ssize_t put = write(fd, data, len);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put < 0 ? errno : EIO;
        data += put;
        len -= (size_t)put;
    }
    return 0;
}

static ssize_t read_some(int fd, uint8_t *data, size_t len)
{
    ssize_t got;
    do
        got = read(fd, data, len);
    while (got < 0 && errno == EINTR);
    return got;
}

static void take_back(int number)
{
    unlink(temporary);
    _exit(128 + number);
}

static void take_back_if_ended(void)
{
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGPIPE};
    struct sigaction action = {.sa_handler = take_back};
    sigfillset(&action.sa_mask);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sigaction(numbers[i], &action, NULL);
}

/* A name beside the file's place that nobody in the guest can guess, and take before. */
static bool choose_temporary(const char *directory)
{
    uint64_t number;
    if (getrandom(&number, sizeof number, GRND_NONBLOCK) != (ssize_t)sizeof number) /* the guest has just booted */
        number = (uint64_t)getpid() << 32 | (uint64_t)time(NULL);
    if (asprintf(&temporary, "%s/.ramet-put-%016" PRIx64, directory, number) < 0)
        temporary = NULL;
    return temporary;
}

/* The file that is written, in the directory of its place: without a name, where the file system has such files. */
static int open_temporary(const char *path)
{
    char *copy = strdup(path), *directory = copy ? dirname(copy) : NULL;
    if (!directory || !choose_temporary(directory)) {
        free(copy);
        errno = ENOMEM;
        return -1;
    }
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    int fd = openat(AT_FDCWD, directory, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
    unnamed = fd >= 0;
    if (fd < 0 && errno == EOPNOTSUPP)
        fd = open(temporary, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
    if (fd >= 0)
        take_back_if_ended();
    int error = errno;
    free(copy);
    sigprocmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return fd;
}

/* Put the file in its place; a signal that comes now comes too late to say that it is not there. */
static int publish(int fd, const char *path)
{
    char self[32];
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    if (unnamed && linkat(AT_FDCWD, self, AT_FDCWD, temporary, AT_SYMLINK_FOLLOW) < 0)
        return -1;
    return rename(temporary, path);
}

/* Make the new name durable. */
static void sync_directory(const char *path)
{
    char *copy = strdup(path);
    int fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    free(copy);
}

static int receive(int fd, const char *path, mode_t mode)
{
    ssize_t got;
    while ((got = read_some(0, chunk, sizeof chunk)) > 0) {
        int error = write_all(fd, chunk, (size_t)got);
        if (error)
            return error;
    }
    if (got < 0 || fchmod(fd, mode) < 0 || fsync(fd) < 0 || publish(fd, path) < 0)
        return errno;
    sync_directory(path);
    return 0;
}

/* Write stdin into a file that appears whole or not at all: in the directory of its place, synced, named, renamed. */
static int put(const char *given, const char *mode_text)
{
    char *end, *path = realpath(given, NULL); /* of an existing file, links are followed */
    unsigned long mode = strtoul(mode_text, &end, 8);
    struct stat found;
    int error = 0;
    if (!path && errno != ENOENT)
        error = errno;
    else if (*end || mode > 07777 || !given[0])
        error = EINVAL;
    else if (path ? stat(path, &found) < 0 : given[strlen(given) - 1] == '/')
        error = path ? errno : EISDIR;
    else if (path && !S_ISREG(found.st_mode))
        error = S_ISDIR(found.st_mode) ? EISDIR : EINVAL;
    if (!error) {
        int fd = open_temporary(path ? path : given);
        error = fd < 0 ? errno : receive(fd, path ? path : given, (mode_t)mode);
        if (fd >= 0 && error)
            unlink(temporary);
    }
    free(path);
    return error ? fail(given, error) : 0;
}

static void put_header(uint8_t *out, uint64_t size, uint32_t mode)
{
    for (int i = 0; i < 8; i++)
        out[i] = (uint8_t)(size >> (8 * i));
    for (int i = 0; i < 4; i++)
        out[8 + i] = (uint8_t)(mode >> (8 * i));
}

/* Send as many bytes as the file had when it was opened; one without a size, as in /proc, to its end. */
static int send_bytes(int fd, uint64_t size)
{
    uint64_t left = size ? size : UINT64_MAX;
    while (left) {
        ssize_t got = read_some(fd, chunk, left < sizeof chunk ? (size_t)left : sizeof chunk);
        if (got < 0)
            return errno;
        if (got == 0)
            return size ? ESTALE : 0; /* it became shorter meanwhile */
        int error = write_all(1, chunk, (size_t)got);
        if (error)
            return error;
        left -= (uint64_t)got;
    }
    return 0;
}

/* Write a header (size: 8 bytes, mode: 4) and the file's bytes to stdout. */
static int get(const char *path)
{
    struct stat found;
    uint8_t header[12];
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); /* a fifo must not hang us */
    if (fd < 0 || fstat(fd, &found) < 0)
        return fail(path, errno);
    if (!S_ISREG(found.st_mode))
        return fail(path, S_ISDIR(found.st_mode) ? EISDIR : EINVAL);
    put_header(header, (uint64_t)found.st_size, found.st_mode & 07777);
    int error = write_all(1, header, sizeof header);
    if (!error)
        error = send_bytes(fd, (uint64_t)found.st_size);
    close(fd);
    return error ? fail(path, error) : 0;
}

int files_main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "put") == 0)
        return put(argv[3], argv[2]);
    if (argc == 3 && strcmp(argv[1], "get") == 0)
        return get(argv[2]);
    fprintf(stderr, "usage: ramet-agent put MODE PATH | get PATH\n");
    return EINVAL;
}
