/* ramet-fill FILE BYTES SEED: write incompressible bytes, fast also under emulation; ramet-fill --pages FILE COUNT SEED: write
 * pages of it again, here and there; ramet-fill --sum FILE: read them all. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WORDS (128 * 1024)
#define PAGE_WORDS 512

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

/* xorshift64*, which never leaves a state that is not 0 */
static uint64_t state;

static void begin(uint64_t seed)
{
    state = seed * 0x9E3779B97F4A7C15u + 1;
    if (state == 0)
        state = 1;
}

static uint64_t next(void)
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545F4914F6CDD1Du;
}

static bool put_all(int fd, size_t len, off_t offset)
{
    for (size_t done = 0; done < len;) {
        ssize_t put = pwrite(fd, (char *)buffer + done, len - done, offset + (off_t)done);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return false;
        done += (size_t)put;
    }
    return true;
}

static int fill(const char *path, uint64_t bytes, uint64_t seed)
{
    begin(seed);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600); /* not truncated: the same pages are written again */
    if (fd < 0)
        return fail(path);
    for (uint64_t done = 0; done < bytes;) {
        for (size_t i = 0; i < WORDS; i++)
            buffer[i] = next();
        size_t len = bytes - done < sizeof buffer ? (size_t)(bytes - done) : sizeof buffer;
        if (!put_all(fd, len, (off_t)done))
            return fail(path);
        done += len;
    }
    return close(fd) == 0 ? 0 : fail(path);
}

static int scatter(const char *path, uint64_t count, uint64_t seed)
{
    struct stat found;
    begin(seed);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &found) < 0)
        return fail(path);
    uint64_t pages = (uint64_t)found.st_size / (PAGE_WORDS * 8);
    if (pages == 0) {
        fprintf(stderr, "ramet-fill: %s has no page\n", path);
        return 1;
    }
    for (; count; count--) {
        uint64_t page = next() % pages;
        for (size_t i = 0; i < PAGE_WORDS; i++)
            buffer[i] = next();
        if (!put_all(fd, PAGE_WORDS * 8, (off_t)(page * PAGE_WORDS * 8)))
            return fail(path);
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
    if (argc == 5 && strcmp(argv[1], "--pages") == 0 && number(argv[3], &bytes) && number(argv[4], &seed))
        return scatter(argv[2], bytes, seed);
    fprintf(stderr, "usage: ramet-fill FILE BYTES SEED | ramet-fill --pages FILE COUNT SEED | ramet-fill --sum FILE\n");
    return 2;
}
