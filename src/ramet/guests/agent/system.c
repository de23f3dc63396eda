/* What concerns the whole guest: ping, quiesce and thaw, identity, shutdown. */
#define _GNU_SOURCE
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/random.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define SEED_LEN 64
#define HOOK_LIMIT_MS 10000
#define HOOKS_MAX 64
#define DATA_MOUNT "/data"
#define WORKLOAD "/sys/fs/cgroup/workload"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards everything below */
static uint8_t nonce[16];
static uint64_t tick, generation;
static bool data_frozen;
static const char *root = ""; /* tests keep the agent's files under a directory of their own */
static bool testing;

static void path_of(char *out, size_t size, const char *path)
{
    snprintf(out, size, "%s%s", root, path);
}

void system_init(const char *test_root)
{
    if (getrandom(nonce, sizeof nonce, 0) != (ssize_t)sizeof nonce)
        abort(); /* a nonce that might repeat would let a reboot pass for a restore */
    if (test_root) {
        root = test_root;
        testing = true;
    }
}

bool write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return false;
    size_t len = strlen(text);
    bool ok = write(fd, text, len) == (ssize_t)len;
    int number = errno;
    close(fd);
    errno = number;
    return ok;
}

void join_workload(void)
{
    write_file(WORKLOAD "/cgroup.procs", "0"); /* absent outside a guest: then there is nothing to freeze */
}

void do_ping(struct session *s)
{
    struct queue q = {0};
    char hostname[256] = "";
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    gethostname(hostname, sizeof hostname - 1);
    pthread_mutex_lock(&lock);
    uint64_t now_tick = ++tick, now_generation = generation;
    pthread_mutex_unlock(&lock);
    if (queue_add(&q, nonce, sizeof nonce) && put_int(&q, now_tick, 8) &&
        put_int(&q, (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec, 8) && put_int(&q, now_generation, 8) &&
        put_string(&q, hostname))
        reply(s, REP_OK, queue_at(&q), q.len);
    queue_free(&q);
}

static bool workload_is(const char *wanted)
{
    char text[256];
    int fd = open(WORKLOAD "/cgroup.events", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return true; /* no cgroup, no workload in it */
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    text[got > 0 ? got : 0] = 0;
    return strstr(text, wanted) != NULL;
}

static int freeze_data(bool freeze)
{
    int fd = open(DATA_MOUNT, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? 0 : errno;
    int number = 0;
    struct stat here, parent;
    bool mounted = fstat(fd, &here) == 0 && stat(DATA_MOUNT "/..", &parent) == 0 && here.st_dev != parent.st_dev;
    if (mounted && freeze != data_frozen) {
        if (ioctl(fd, freeze ? FIFREEZE : FITHAW, 0) < 0 && errno != (freeze ? EBUSY : EINVAL) && errno != EOPNOTSUPP)
            number = errno;
        else
            data_frozen = freeze;
    }
    close(fd);
    return number;
}

static int thaw_all(void)
{
    int number = freeze_data(false);
    if (access(WORKLOAD, F_OK) == 0 && !write_file(WORKLOAD "/cgroup.freeze", "0") && !number)
        number = errno;
    return number;
}

static int quiesce_all(uint32_t limit_ms)
{
    int64_t deadline = now_ms() + limit_ms;
    if (access(WORKLOAD, F_OK) == 0 && !write_file(WORKLOAD "/cgroup.freeze", "1"))
        return errno;
    while (!workload_is("frozen 1")) {
        if (now_ms() >= deadline)
            return ETIMEDOUT;
        usleep(1000);
    }
    sync();
    if (now_ms() >= deadline)
        return ETIMEDOUT;
    return freeze_data(true);
}

void do_quiesce(struct session *s, struct cursor *c)
{
    uint32_t limit_ms = (uint32_t)get_int(c, 4);
    if (!cursor_done(c)) {
        reply_error(s, EINVAL, "malformed quiesce request");
        return;
    }
    pthread_mutex_lock(&lock);
    int number = testing ? 0 : quiesce_all(limit_ms);
    if (number && !testing)
        thaw_all();
    pthread_mutex_unlock(&lock);
    if (number)
        reply_error(s, number, number == ETIMEDOUT ? "the workload did not freeze in time; it runs on" : strerror(number));
    else
        reply(s, REP_OK, NULL, 0);
}

void do_thaw(struct session *s)
{
    pthread_mutex_lock(&lock);
    int number = testing ? 0 : thaw_all();
    pthread_mutex_unlock(&lock);
    if (number)
        reply_error(s, number, strerror(number));
    else
        reply(s, REP_OK, NULL, 0);
}

/* Replace a small file: readers see the old text or the new one. */
static int replace_file(const char *name, const char *text)
{
    char path[512], temporary[540];
    path_of(path, sizeof path, name);
    snprintf(temporary, sizeof temporary, "%s.new", path);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0)
        return errno;
    size_t len = strlen(text);
    int number = write(fd, text, len) == (ssize_t)len ? 0 : EIO;
    close(fd);
    if (!number && rename(temporary, path) < 0)
        number = errno;
    return number;
}

static int reseed(const uint8_t *seed)
{
    struct {
        int entropy_count, buf_size;
        uint8_t buf[SEED_LEN];
    } pool = {SEED_LEN * 8, SEED_LEN, {0}};
    memcpy(pool.buf, seed, SEED_LEN);
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int number = ioctl(fd, RNDADDENTROPY, &pool) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0 ? errno : 0;
    close(fd);
    return number;
}

static int set_clock(uint64_t wall_ns)
{
    struct timespec t = {.tv_sec = (time_t)(wall_ns / 1000000000u), .tv_nsec = (long)(wall_ns % 1000000000u)};
    return clock_settime(CLOCK_REALTIME, &t) < 0 ? errno : 0;
}

/* One hook, with a limit; 0, or how it failed. */
static int run_hook(const char *path)
{
    pid_t pid = fork();
    if (pid == 0) {
        setsid();
        signal(SIGPIPE, SIG_DFL);
        execl(path, path, (char *)NULL);
        _exit(127);
    }
    if (pid < 0)
        return errno;
    int status = 0;
    for (int64_t end = now_ms() + HOOK_LIMIT_MS; waitpid(pid, &status, WNOHANG) == 0;) {
        if (now_ms() >= end) {
            kill(-pid, SIGKILL);
            waitpid(pid, &status, 0);
            return ETIMEDOUT;
        }
        usleep(1000);
    }
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : ECHILD;
}

static int visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

/* Run the resume hooks in the order of their names; the names of those that failed go into the acknowledgement. */
static void run_hooks(struct queue *failed)
{
    char directory[512];
    struct dirent **entries = NULL;
    path_of(directory, sizeof directory, "/etc/ramet/resume.d");
    int count = scandir(directory, &entries, visible, alphasort);
    for (int i = 0; i < count; i++) {
        char path[800];
        snprintf(path, sizeof path, "%s/%s", directory, entries[i]->d_name);
        if (i < HOOKS_MAX && access(path, X_OK) == 0 && run_hook(path) != 0)
            put_string(failed, entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
}

static int become_identity(const char *hostname, const char *machine_id, uint64_t wall_ns, const uint8_t *seed, uint64_t next,
                           const char **step)
{
    char text[128];
    int number = 0;
    *step = "reseed the kernel's random pool";
    if (!testing && (number = reseed(seed)))
        return number;
    *step = "set the clock";
    if (!testing && (number = set_clock(wall_ns)))
        return number;
    *step = "set the host name";
    if (!testing && sethostname(hostname, strlen(hostname)) < 0)
        return errno;
    snprintf(text, sizeof text, "%s\n", hostname);
    if ((number = replace_file("/etc/hostname", text)))
        return number;
    *step = "set the machine-id";
    snprintf(text, sizeof text, "%s\n", machine_id);
    if ((number = replace_file("/etc/machine-id", text)))
        return number;
    *step = "set the generation";
    snprintf(text, sizeof text, "%llu\n", (unsigned long long)next);
    return replace_file("/run/ramet/generation", text);
}

void do_identity(struct session *s, struct cursor *c)
{
    uint64_t next = get_int(c, 8), wall_ns = get_int(c, 8);
    const uint8_t *seed = get_bytes(c, SEED_LEN);
    char *hostname = get_string(c), *machine_id = get_string(c), text[256];
    const char *step = "";
    struct queue failed = {0};
    if (!cursor_done(c) || !hostname[0] || strlen(hostname) > 64 || strlen(machine_id) != 32 ||
        strspn(machine_id, "0123456789abcdef") != 32) {
        reply_error(s, EINVAL, "malformed identity request");
    } else {
        pthread_mutex_lock(&lock);
        int number = become_identity(hostname, machine_id, wall_ns, seed, next, &step);
        if (!number) {
            generation = next;
            run_hooks(&failed);
        }
        pthread_mutex_unlock(&lock);
        if (number) {
            snprintf(text, sizeof text, "could not %s: %s", step, strerror(number));
            reply_error(s, number, text);
        } else {
            reply(s, REP_OK, queue_at(&failed), failed.len);
        }
    }
    queue_free(&failed);
    free(hostname);
    free(machine_id);
}

void do_shutdown(struct session *s, struct cursor *c)
{
    uint8_t mode = (uint8_t)get_int(c, 1);
    if (!cursor_done(c) || mode > 1) {
        reply_error(s, EINVAL, "malformed shutdown request");
        return;
    }
    reply(s, REP_OK, NULL, 0);
    if (testing)
        return;
    pthread_mutex_lock(&lock);
    thaw_all();
    pthread_mutex_unlock(&lock);
    sync();
    kill(1, mode ? SIGTERM : SIGUSR2); /* busybox init: reboot, power off */
}
