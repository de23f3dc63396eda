/* Quiesce and thaw: the workload (a cgroup) frozen, the file systems synced, the data file system frozen.
 *
 * A sync that hangs cannot be interrupted, so it has a thread of its own, the worker: past the deadline the workload runs on, and
 * a worker that comes back too late undoes what it did. Thawing never waits for it. */
#define _GNU_SOURCE
#include "guest.h"
#include "job.h"
#include "session.h"
#include "threads.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* Set once, before there are threads; read also between fork and exec, where no text can be put together. */
static char data_path[PATH_ROOM], procs_path[PATH_ROOM], freeze_path[PATH_ROOM], events_path[PATH_ROOM];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards what follows */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static uint64_t last_ticket;
static uint64_t owner;   /* the quiesce that what is frozen, or is being frozen, belongs to; 0: all runs, or is to run */
static bool has_worker;
static int worker_error; /* of the last worker */

struct quiesce {
    uint32_t limit_ms;
    uint64_t ticket;
};

void freeze_init(void)
{
    guest_path(data_path, "/data");
    guest_path(procs_path, "/sys/fs/cgroup/workload/cgroup.procs");
    guest_path(freeze_path, "/sys/fs/cgroup/workload/cgroup.freeze");
    guest_path(events_path, "/sys/fs/cgroup/workload/cgroup.events");
}

int workload_join(void)
{
    int error = write_text(procs_path, "0");
    return error == ENOENT ? 0 : error; /* without the cgroup, quiesce will fail */
}

static int set_workload_frozen(bool frozen)
{
    return write_text(freeze_path, frozen ? "1" : "0");
}

static bool workload_is_frozen(void)
{
    char text[256];
    int fd = open(events_path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    text[got > 0 ? got : 0] = 0;
    return strstr(text, "frozen 1") != NULL;
}

/* FIFREEZE or FITHAW on /data, where it is a file system of its own that can be frozen. Returns 0 or an errno. */
static int set_data_frozen(bool frozen)
{
    struct statx found;
    int fd = open(data_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? 0 : errno;
    int error = 0;
    bool mounted = statx(fd, "", AT_EMPTY_PATH, STATX_INO, &found) == 0 && found.stx_attributes & STATX_ATTR_MOUNT_ROOT;
    int already = frozen ? EBUSY : EINVAL;
    if (mounted && ioctl(fd, frozen ? FIFREEZE : FITHAW, 0) < 0 && errno != already && errno != EOPNOTSUPP)
        error = errno;
    close(fd);
    return error;
}

int thaw_file_system(void)
{
    pthread_mutex_lock(&lock);
    int error = has_worker ? 0 : set_data_frozen(false); /* a worker sees by itself that it is too late */
    pthread_mutex_unlock(&lock);
    return error;
}

static int thaw_locked(void)
{
    owner = 0;
    pthread_cond_broadcast(&changed);
    int error = has_worker ? 0 : set_data_frozen(false);
    int other = set_workload_frozen(false);
    if (other == ENOENT)
        other = 0; /* no cgroup, no workload in it */
    return error ? error : other;
}

/* Give up a quiesce, unless another one has taken over. */
static void release(uint64_t ticket)
{
    pthread_mutex_lock(&lock);
    if (owner == ticket)
        thaw_locked();
    pthread_mutex_unlock(&lock);
}

static void *work(void *argument)
{
    uint64_t ticket = *(uint64_t *)argument;
    free(argument);
    sync();
    pthread_mutex_lock(&lock);
    bool wanted = owner == ticket;
    pthread_mutex_unlock(&lock);
    int error = wanted ? set_data_frozen(true) : 0;
    pthread_mutex_lock(&lock);
    if (wanted && owner != ticket)
        set_data_frozen(false);
    has_worker = false;
    worker_error = error;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* Called with the lock held. */
static int start_worker(uint64_t ticket)
{
    uint64_t *argument = malloc(sizeof *argument);
    if (!argument)
        return ENOMEM;
    *argument = ticket;
    has_worker = true;
    if (thread_start(work, argument))
        return 0;
    has_worker = false;
    free(argument);
    return EAGAIN;
}

static int freeze_workload(uint64_t ticket, int64_t deadline_ms)
{
    pthread_mutex_lock(&lock);
    int error = owner == ticket ? set_workload_frozen(true) : ECANCELED;
    pthread_mutex_unlock(&lock);
    while (!error && !workload_is_frozen()) {
        usleep(1000);
        pthread_mutex_lock(&lock);
        if (owner != ticket)
            error = ECANCELED;
        else if (now_ms() >= deadline_ms)
            error = ETIMEDOUT;
        pthread_mutex_unlock(&lock);
    }
    return error;
}

static int freeze_file_system(uint64_t ticket, int64_t deadline_ms)
{
    struct timespec until = {.tv_sec = deadline_ms / 1000, .tv_nsec = deadline_ms % 1000 * 1000000};
    pthread_mutex_lock(&lock);
    int error = owner == ticket ? start_worker(ticket) : ECANCELED;
    while (!error && has_worker && owner == ticket)
        error = pthread_cond_clockwait(&changed, &lock, CLOCK_MONOTONIC, &until);
    if (!error)
        error = owner == ticket ? worker_error : ECANCELED;
    pthread_mutex_unlock(&lock);
    return error;
}

static const char *why(int error)
{
    switch (error) {
    case ETIMEDOUT: return "the guest did not come to rest in time; it runs on";
    case ECANCELED: return "a thaw came in between";
    case EBUSY: return "an earlier sync has not ended yet";
    case ENOENT: return "there is no workload cgroup to freeze";
    default: return strerror(error);
    }
}

static void run_quiesce(struct job *job)
{
    struct quiesce *q = job->arguments;
    int64_t deadline_ms = now_ms() + q->limit_ms;
    pthread_mutex_lock(&lock);
    int error = has_worker ? EBUSY : 0;
    if (!error)
        owner = q->ticket = ++last_ticket;
    pthread_mutex_unlock(&lock);
    if (!error)
        error = freeze_workload(q->ticket, deadline_ms);
    if (!error)
        error = freeze_file_system(q->ticket, deadline_ms);
    if (error && q->ticket)
        release(q->ticket);
    job->error = error;
    if (error)
        snprintf(job->text, sizeof job->text, "%s", why(error));
}

static void undo_quiesce(struct job *job)
{
    const struct quiesce *q = job->arguments;
    release(q->ticket);
}

static void free_quiesce(struct job *job)
{
    free(job->arguments);
}

void do_quiesce(struct session *s, struct cursor *c)
{
    struct quiesce *q = calloc(1, sizeof *q);
    uint32_t limit_ms = (uint32_t)get_int(c, 4);
    if (!q || !cursor_done(c)) {
        free(q);
        reply_error(s, EINVAL, "malformed quiesce request");
        return;
    }
    q->limit_ms = limit_ms;
    job_start(s, (struct job){.run = run_quiesce, .undo = undo_quiesce, .free_arguments = free_quiesce, .arguments = q});
}

void do_thaw(struct session *s, struct cursor *c)
{
    if (!cursor_done(c)) {
        reply_error(s, EINVAL, "malformed thaw request");
        return;
    }
    pthread_mutex_lock(&lock);
    int error = thaw_locked();
    pthread_mutex_unlock(&lock);
    if (error)
        reply_error(s, error, strerror(error));
    else
        reply_bytes(s, REP_OK, NULL, 0);
}
