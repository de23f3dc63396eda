/* ramet-fill FILE BYTES SEED: write incompressible bytes, fast also under emulation; ramet-fill --sum FILE: read them all. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WORDS (128 * 1024)

static uint64_t buffer[WORDS];

static bool number(const char *text, uint64_t *out)
{
    char *end;
    errno = 0;
    *out = strtoull(text, &end, 10);
    return text[0] >= '0' && text[0] <= '9' && *end == 0 && errno == 0;
}

static int fail(const char *path)
{
    fprintf(stderr, "ramet-fill: %s: %s\n", path, strerror(errno));
    return 1;
}

static int fill(const char *path, uint64_t bytes, uint64_t seed)
{
    /* xorshift64*, which never leaves a state that is not 0 */
    uint64_t x = seed * 0x9E3779B97F4A7C15u + 1;
    if (x == 0)
        x = 1;
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600); /* not truncated: the same pages are written again */
    if (fd < 0)
        return fail(path);
    while (bytes) {
        for (size_t i = 0; i < WORDS; i++) {
            x ^= x >> 12;
            x ^= x << 25;
            x ^= x >> 27;
            buffer[i] = x * 0x2545F4914F6CDD1Du;
        }
        size_t len = bytes < sizeof buffer ? (size_t)bytes : sizeof buffer;
        for (size_t done = 0; done < len;) {
            ssize_t put = write(fd, (char *)buffer + done, len - done);
            if (put < 0 && errno == EINTR)
                continue;
            if (put <= 0)
                return fail(path);
            done += (size_t)put;
        }
        bytes -= len;
    }
    return close(fd) == 0 ? 0 : fail(path);
}

static int sum(const char *path)
{
    uint64_t total = 0, bytes = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fail(path);
    for (;;) {
        memset(buffer, 0, sizeof buffer);
        ssize_t got = read(fd, buffer, sizeof buffer);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return fail(path);
        if (got == 0)
            break;
        for (size_t i = 0; i < ((size_t)got + 7) / 8; i++)
            total = ((total << 1) | (total >> 63)) ^ buffer[i];
        bytes += (uint64_t)got;
    }
    close(fd);
    printf("%016" PRIx64 " %" PRIu64 "\n", total, bytes);
    return 0;
}

int main(int argc, char **argv)
{
    uint64_t bytes, seed;
    if (argc == 3 && strcmp(argv[1], "--sum") == 0)
        return sum(argv[2]);
    if (argc == 4 && number(argv[2], &bytes) && number(argv[3], &seed))
        return fill(argv[1], bytes, seed);
    fprintf(stderr, "usage: ramet-fill FILE BYTES SEED | ramet-fill --sum FILE\n");
    return 2;
}
