/* Who the guest is: ping, identity and its hooks, shutdown. */
#define _GNU_SOURCE
#include "guest.h"
#include "job.h"
#include "session.h"
#include "spawn.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/pidfd.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define NONCE_LEN 16
#define SEED_LEN 64
#define HOOK_LIMIT_MS 10000  /* for one */
#define HOOKS_LIMIT_MS 20000 /* for all: the host waits for the acknowledgement */

static uint8_t nonce[NONCE_LEN];
static uint64_t tick, generation; /* atomic */
static const char *root = "";
static bool oom_protected;

struct identity {
    uint64_t generation, wall_ns;
    uint8_t seed[SEED_LEN];
    char *hostname, *machine_id;
};

void guest_path(char *out, const char *path)
{
    snprintf(out, PATH_ROOM, "%s%s", root, path);
}

void guest_init(const char *test_root)
{
    root = test_root;
    freeze_init();
    if (getrandom(nonce, sizeof nonce, 0) != (ssize_t)sizeof nonce)
        abort(); /* a nonce that might repeat would let a reboot pass for a restore */
}

static int write_whole(int fd, const char *text)
{
    size_t len = strlen(text);
    ssize_t put = write(fd, text, len);
    return put < 0 ? errno : put == (ssize_t)len ? 0 : EIO;
}

int write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return errno;
    int error = write_whole(fd, text);
    close(fd);
    return error;
}

void protect_from_oom(void)
{
    oom_protected = write_text("/proc/self/oom_score_adj", "-999") == 0;
}

void unprotect_from_oom(void)
{
    if (oom_protected)
        write_text("/proc/self/oom_score_adj", "0");
}

void do_ping(struct session *s, struct cursor *c)
{
    struct queue q = {0};
    char hostname[256] = "";
    struct timespec t;
    if (!cursor_done(c)) {
        reply_error(s, EINVAL, "malformed ping request");
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &t);
    gethostname(hostname, sizeof hostname - 1);
    uint64_t now_tick = __atomic_add_fetch(&tick, 1, __ATOMIC_RELAXED);
    uint64_t now_generation = __atomic_load_n(&generation, __ATOMIC_RELAXED);
    if (queue_add(&q, nonce, sizeof nonce) && put_int(&q, now_tick, 8) &&
        put_int(&q, (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec, 8) && put_int(&q, now_generation, 8) &&
        put_string(&q, hostname))
        reply(s, REP_OK, &q);
    else
        s->lost = true;
    queue_free(&q);
}

/* Replace a small file with a line: readers see the old one or the new one. Returns 0 or an errno. */
static int replace_line(const char *path, const char *line)
{
    char temporary[PATH_ROOM + 8];
    snprintf(temporary, sizeof temporary, "%s.new", path);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0)
        return errno;
    int error = write_whole(fd, line);
    close(fd);
    if (!error && rename(temporary, path) < 0)
        error = errno;
    if (error)
        unlink(temporary);
    return error;
}

/* Write a line over a file that holds no longer one, in one write, where it is plainly ours: the workload, which is frozen, has no
 * other name for it. A guest that just woke has yet to fetch, and an emulator to translate, all that it runs: to make, rename and
 * delete a file is far more of that. False if the file must be replaced. */
static bool overwrite_line(const char *path, const char *line)
{
    struct stat found;
    int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return false;
    bool done = fstat(fd, &found) == 0 && S_ISREG(found.st_mode) && found.st_nlink == 1 &&
                found.st_size <= (off_t)strlen(line) && write_whole(fd, line) == 0;
    close(fd);
    return done;
}

static int set_line(const char *name, const char *text)
{
    char path[PATH_ROOM], line[128];
    guest_path(path, name);
    snprintf(line, sizeof line, "%s\n", text);
    return overwrite_line(path, line) ? 0 : replace_line(path, line);
}

/* Mix the seed into the kernel's pool, credited, and let every CPU's generator take a new key from it (random(4)). */
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
    int error = ioctl(fd, RNDADDENTROPY, &pool) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0 ? errno : 0;
    close(fd);
    return error;
}

static int set_clock(uint64_t wall_ns)
{
    struct timespec t = {.tv_sec = (time_t)(wall_ns / 1000000000u), .tv_nsec = (long)(wall_ns % 1000000000u)};
    return clock_settime(CLOCK_REALTIME, &t) < 0 ? errno : 0;
}

/* Run one hook. True if it ended with status 0 before `deadline_ms`. */
static bool run_hook(const char *path, int64_t deadline_ms)
{
    int64_t left = deadline_ms - now_ms();
    pid_t pid = left > 0 ? spawn_hook(path) : -1;
    if (pid < 0)
        return false;
    struct pollfd ended = {.fd = pidfd_open(pid, 0), .events = POLLIN};
    int status = -1, count;
    do
        count = poll(&ended, 1, left < HOOK_LIMIT_MS ? (int)left : HOOK_LIMIT_MS);
    while (count < 0 && errno == EINTR);
    if (ended.fd >= 0)
        close(ended.fd);
    if (ended.fd < 0 || count <= 0 || waitpid(pid, &status, WNOHANG) != pid) {
        kill(-pid, SIGKILL);
        kill(pid, SIGKILL);
        reap_later(pid); /* not waited for: what hangs in the kernel cannot be killed */
        return false;
    }
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static int is_visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

/* The executable resume hooks, in the order of their names. `run`: run them; the names of those that failed are added to `failed`.
 * Returns how many there are, or -1 if there is no memory. */
static int resume_hooks(bool run, struct queue *failed)
{
    char directory[PATH_ROOM], path[PATH_ROOM + 260];
    struct dirent **entries = NULL;
    int found = 0;
    bool ok = true;
    int64_t deadline_ms = now_ms() + HOOKS_LIMIT_MS;
    guest_path(directory, "/etc/ramet/resume.d");
    int count = scandir(directory, &entries, is_visible, alphasort);
    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, entries[i]->d_name);
        if (access(path, X_OK) == 0) {
            found++;
            if (run && !run_hook(path, deadline_ms))
                ok = ok && put_string(failed, entries[i]->d_name);
        }
        free(entries[i]);
    }
    free(entries);
    return ok ? found : -1;
}

static void describe_failure(char *text, size_t room, const char *step, int error)
{
    snprintf(text, room, "could not %s: %s", step, strerror(error));
}

/* All but the hooks. Returns 0 or an errno; `step` is then what could not be done. */
static int become(const struct identity *id, const char **step)
{
    char number[32];
    int error;
    snprintf(number, sizeof number, "%llu", (unsigned long long)id->generation);
    *step = "reseed the kernel's random pool";
    if ((error = reseed(id->seed)))
        return error;
    *step = "set the clock";
    if ((error = set_clock(id->wall_ns)))
        return error;
    *step = "set the host name";
    if (sethostname(id->hostname, strlen(id->hostname)) < 0)
        return errno;
    *step = "thaw /data"; /* for the hooks, and for files below that are mounts of ones there: a write to those would wait for ever */
    if ((error = thaw_file_system()))
        return error;
    *step = "set the host name";
    if ((error = set_line("/etc/hostname", id->hostname)))
        return error;
    *step = "set the machine-id";
    if ((error = set_line("/etc/machine-id", id->machine_id)))
        return error;
    *step = "set the generation";
    if ((error = set_line("/run/ramet/generation", number)))
        return error;
    __atomic_store_n(&generation, id->generation, __ATOMIC_RELAXED);
    return 0;
}

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER; /* identities, whole; and what follows */

static struct {
    uint64_t generation;
    char machine_id[33];
    struct queue failed;
} hooks_ran; /* the identity for which they ran last, and those that failed */

/* Run the hooks, once for an identity: it is asked again where the first answer did not arrive. Returns 0 or an errno. */
static int run_hooks_once(const struct identity *id, struct queue *failed)
{
    if (hooks_ran.generation != id->generation || strcmp(hooks_ran.machine_id, id->machine_id) != 0) {
        hooks_ran.machine_id[0] = 0; /* until they have run */
        queue_clear(&hooks_ran.failed);
        if (resume_hooks(true, &hooks_ran.failed) < 0)
            return ENOMEM;
        hooks_ran.generation = id->generation;
        snprintf(hooks_ran.machine_id, sizeof hooks_ran.machine_id, "%s", id->machine_id);
    }
    return queue_add(failed, queue_at(&hooks_ran.failed), hooks_ran.failed.len) ? 0 : ENOMEM;
}

static void run_identity(struct job *job)
{
    const char *step = "";
    struct identity *id = job->arguments;
    if (pthread_mutex_trylock(&one_at_a_time) != 0) { /* another's hooks are waited for, and the clock goes on */
        int64_t began_ms = now_ms();
        pthread_mutex_lock(&one_at_a_time);
        id->wall_ns += (uint64_t)(now_ms() - began_ms) * 1000000u;
    }
    job->error = become(id, &step);
    if (!job->error) {
        step = "tell which resume hooks failed";
        job->error = run_hooks_once(id, &job->result);
    }
    pthread_mutex_unlock(&one_at_a_time);
    if (job->error)
        describe_failure(job->text, sizeof job->text, step, job->error);
}

/* Without hooks nothing takes long, and no thread is needed. False if another identity is under way. */
static bool try_at_once(struct session *s, const struct identity *id)
{
    const char *step = "";
    char text[256];
    if (pthread_mutex_trylock(&one_at_a_time) != 0)
        return false;
    int error = become(id, &step);
    pthread_mutex_unlock(&one_at_a_time);
    if (error) {
        describe_failure(text, sizeof text, step, error);
        reply_error(s, error, text);
    } else {
        reply_bytes(s, REP_OK, NULL, 0);
    }
    return true;
}

static void free_identity(struct job *job)
{
    struct identity *id = job->arguments;
    free(id->hostname);
    free(id->machine_id);
    explicit_bzero(id, sizeof *id);
    free(id);
}

static bool parse_identity(struct identity *id, struct cursor *c)
{
    id->generation = get_int(c, 8);
    id->wall_ns = get_int(c, 8);
    const uint8_t *seed = get_bytes(c, SEED_LEN);
    id->hostname = get_string(c);
    id->machine_id = get_string(c);
    if (!cursor_done(c))
        return false;
    memcpy(id->seed, seed, SEED_LEN);
    size_t len = strlen(id->hostname);
    return len > 0 && len <= 64 && strcspn(id->hostname, "\n\t /") == len && strlen(id->machine_id) == 32 &&
           strspn(id->machine_id, "0123456789abcdef") == 32;
}

void do_identity(struct session *s, struct cursor *c)
{
    struct identity *id = calloc(1, sizeof *id);
    struct job job = {.run = run_identity, .free_arguments = free_identity, .arguments = id};
    if (!id || !parse_identity(id, c))
        reply_error(s, id ? EINVAL : ENOMEM, "malformed identity request");
    else if (resume_hooks(false, NULL) > 0 || !try_at_once(s, id)) {
        job_start(s, job);
        return;
    }
    if (id)
        free_identity(&job);
}

/* busybox init: SIGUSR2 powers off, SIGTERM reboots, both by way of rcK. A workload that is frozen stays so. */
void do_shutdown(struct session *s, struct cursor *c)
{
    uint8_t mode = (uint8_t)get_int(c, 1);
    if (!cursor_done(c) || mode > 1) {
        reply_error(s, EINVAL, "malformed shutdown request");
        return;
    }
    int error = thaw_file_system(); /* so that it can be unmounted */
    if (!error && kill(1, mode ? SIGTERM : SIGUSR2) < 0)
        error = errno;
    if (error)
        reply_error(s, error, strerror(error));
    else
        reply_bytes(s, REP_OK, NULL, 0);
}
