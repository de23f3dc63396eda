/* Fuzz a whole session: parser, dispatch, exec's state machine, jobs, identity. Nothing is executed and nothing of this host changes:
 * the linker puts the functions below (--wrap) in the place of those that would.
 *
 * The session's stream is the input, in the input's pieces (an empty one is a pause), then silence until the session has come to
 * rest, then the end. Its command is played by `child`: it takes stdin, writes, and exits, as the input's bytes say. Where the
 * session waits with nothing under way, the clock is put forward. */
#define _GNU_SOURCE
#include "guest.h"
#include "input.h"
#include "session.h"
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/random.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILD_PID 0x3FFFFFF0 /* beyond any pid of this host */
#define IDLE_ROUNDS 3      /* of a millisecond without anything to wait for but a job: the end */
#define TIMER_ROUNDS 40    /* in which only the clock went on: the end */
#define SLOW_WRITES 1000   /* that a slow client refuses */
#define COMMAND_STEPS 400 /* after which a command is over, so that every input ends */

static struct {
    struct input in;
    size_t at, cut;
    int fd;           /* the stream: an eventfd that is always writable */
    int idle_rounds, timer_rounds;
    bool ended;
    unsigned decided; /* decisions drawn so far */
    unsigned writes;
    int64_t ahead_ms; /* of the real clock */
} world;

static struct {
    bool runs, exited;
    unsigned steps;
    int report, in, out, err, pid_fd;
} child = {false, false, 0, -1, -1, -1, -1, -1};

/* A number below `limit`, from the input's own bytes. */
static unsigned decide(unsigned limit)
{
    size_t len = world.in.len;
    unsigned i = world.decided++;
    return len ? (world.in.stream[(i * 7 + 3) % len] + i) % limit : 0;
}

/* -- the stream -- */

ssize_t __real_read(int fd, void *out, size_t len);
ssize_t __wrap_read(int fd, void *out, size_t len);
ssize_t __wrap_read(int fd, void *out, size_t len)
{
    if (fd != world.fd)
        return __real_read(fd, out, len);
    size_t left = world.in.len - world.at;
    if (left == 0 || (world.in.flags & FLAG_SERIAL && decide(32) == 0)) {
        errno = EAGAIN;
        return left || world.ended ? 0 : -1; /* a port's end of file is not its end */
    }
    size_t piece = world.cut < world.in.cut_count ? world.in.cuts[world.cut++] : left;
    if (piece == 0) {
        errno = EAGAIN;
        return -1;
    }
    piece = piece > left ? left : piece;
    piece = piece > len ? len : piece;
    memcpy(out, world.in.stream + world.at, piece);
    world.at += piece;
    return (ssize_t)piece;
}

/* Short writes, full buffers. */
ssize_t __real_write(int fd, const void *data, size_t len);
ssize_t __wrap_write(int fd, const void *data, size_t len);
ssize_t __wrap_write(int fd, const void *data, size_t len)
{
    if (fd != world.fd)
        return __real_write(fd, data, len);
    if (world.in.flags & FLAG_SLOW && world.writes++ < SLOW_WRITES) {
        errno = EAGAIN;
        return -1;
    }
    switch (decide(8)) {
    case 0: errno = EAGAIN; return -1;
    case 1: return (ssize_t)(len > 1 ? len / 2 : len);
    default: return (ssize_t)len;
    }
}

/* -- the command -- */

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void close_child(void)
{
    close_fd(&child.report);
    close_fd(&child.in);
    close_fd(&child.out);
    close_fd(&child.err);
    child.pid_fd = -1; /* the session's own */
    child.runs = child.exited = false;
}

int __wrap_spawn(const struct command *cmd, struct ends *ends, pid_t *pid);
int __wrap_spawn(const struct command *cmd, struct ends *ends, pid_t *pid)
{
    int report[2], in[2], out[2], err[2];
    bool detach = cmd->flags & FLAG_DETACH;
    *ends = (struct ends){-1, -1, -1, -1};
    *pid = -1;
    close_child();
    if (decide(16) == 0)
        return EAGAIN;
    CHECK(cmd->argv && cmd->argv[0] && cmd->envp && cmd->cwd && cmd->program);
    CHECK(pipe2(report, O_CLOEXEC | O_NONBLOCK) == 0);
    child.report = report[1];
    ends->report = report[0];
    if (!detach) {
        CHECK(pipe2(in, O_CLOEXEC | O_NONBLOCK) == 0 && pipe2(out, O_CLOEXEC | O_NONBLOCK) == 0);
        child.in = in[0];
        child.out = out[1];
        ends->in = in[1];
        ends->out = out[0];
        if (!(cmd->flags & FLAG_PTY)) {
            CHECK(pipe2(err, O_CLOEXEC | O_NONBLOCK) == 0);
            child.err = err[1];
            ends->err = err[0];
        }
        *pid = CHILD_PID;
    }
    child.runs = true;
    child.steps = 0;
    return 0;
}

static void child_reports(void)
{
    struct report report = {.pid = CHILD_PID};
    if (child.report < 0)
        return;
    if (decide(16) != 0)
        __real_write(child.report, &report, sizeof report);
    if (decide(8) == 0) {
        report = (struct report){.error = ENOENT, .step = STEP_CWD + decide(2)};
        __real_write(child.report, &report, sizeof report);
    }
    close_fd(&child.report);
}

/* One step of the command's life. */
static void child_acts(void)
{
    static uint8_t bytes[256 * 80];
    if (!child.runs)
        return;
    if (child.report >= 0) {
        child_reports();
        return;
    }
    switch (child.steps++ < COMMAND_STEPS ? decide(20) : 19) {
    default:
        if (child.out >= 0)
            __real_write(child.out, bytes, decide(256) * decide(80));
        break;
    case 12:
    case 13:
        if (child.err >= 0)
            __real_write(child.err, bytes, decide(256));
        break;
    case 14:
    case 15:
    case 16:
        if (child.in >= 0)
            __real_read(child.in, bytes, sizeof bytes);
        break;
    case 17:
        close_fd(decide(2) ? &child.in : &child.out);
        break;
    case 18:
    case 19:
        child.exited = true;
        if (child.pid_fd >= 0)
            eventfd_write(child.pid_fd, 1);
        if (decide(2)) { /* else something in the background holds them */
            close_fd(&child.in);
            close_fd(&child.out);
            close_fd(&child.err);
        }
        break;
    }
}

int __wrap_pidfd_open(pid_t pid, unsigned flags);
int __wrap_pidfd_open(pid_t pid, unsigned flags)
{
    CHECK(pid == CHILD_PID && flags == 0);
    child.pid_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return child.pid_fd;
}

int __wrap_waitid(idtype_t type, id_t id, siginfo_t *info, int options);
int __wrap_waitid(idtype_t type, id_t id, siginfo_t *info, int options)
{
    CHECK(type == P_PID && id == CHILD_PID && options == (WEXITED | WNOWAIT | WNOHANG));
    if (child.exited) {
        info->si_pid = CHILD_PID;
        info->si_code = decide(2) ? CLD_EXITED : CLD_KILLED;
        info->si_status = (int)decide(200);
    }
    return 0;
}

pid_t __real_waitpid(pid_t pid, int *status, int options);
pid_t __wrap_waitpid(pid_t pid, int *status, int options);
pid_t __wrap_waitpid(pid_t pid, int *status, int options)
{
    return pid == CHILD_PID ? pid : __real_waitpid(pid, status, options);
}

/* -- the host -- */

int __real_kill(pid_t pid, int number);
int __wrap_kill(pid_t pid, int number);
int __wrap_kill(pid_t pid, int number)
{
    if (pid == CHILD_PID || pid == -CHILD_PID || pid == 1)
        return 0;
    CHECK(pid > 1); /* a group, or everybody: never */
    return __real_kill(pid, number);
}

int __real_ioctl(int fd, unsigned long request, void *argument);
int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    if (request == FIFREEZE || request == FITHAW || request == RNDADDENTROPY || request == RNDRESEEDCRNG)
        return 0;
    return __real_ioctl(fd, request, argument);
}

void __wrap_sync(void);
void __wrap_sync(void)
{
}

int __wrap_sethostname(const char *name, size_t len);
int __wrap_sethostname(const char *name, size_t len)
{
    CHECK(len > 0 && len <= 64 && strlen(name) == len);
    return 0;
}

int __wrap_clock_settime(clockid_t clock, const struct timespec *t);
int __wrap_clock_settime(clockid_t clock, const struct timespec *t)
{
    CHECK(clock == CLOCK_REALTIME && t->tv_nsec >= 0 && t->tv_nsec < 1000000000);
    return 0;
}

/* -- the loop -- */

int __real_clock_gettime(clockid_t clock, struct timespec *t);
int __wrap_clock_gettime(clockid_t clock, struct timespec *t);
int __wrap_clock_gettime(clockid_t clock, struct timespec *t)
{
    int result = __real_clock_gettime(clock, t);
    if (clock == CLOCK_MONOTONIC)
        t->tv_sec += world.ahead_ms / 1000;
    return result;
}

int __real_poll(struct pollfd *fds, nfds_t count, int timeout_ms);
int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout_ms);
int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout_ms)
{
    if (count != 1 || fds->fd != world.fd)
        return __real_poll(fds, count, timeout_ms);
    fds->revents = decide(2) ? POLLHUP : 0;
    return fds->revents != 0;
}

int __real_epoll_wait(int epoll_fd, struct epoll_event *events, int max, int timeout_ms);
int __wrap_epoll_wait(int epoll_fd, struct epoll_event *events, int max, int timeout_ms);
int __wrap_epoll_wait(int epoll_fd, struct epoll_event *events, int max, int timeout_ms)
{
    bool more = world.at < world.in.len;
    CHECK(timeout_ms >= -1 && timeout_ms <= 60000);
    child_acts();
    bool lives = child.runs && !child.exited, idle = !more && !lives && timeout_ms < 0;
    int count = __real_epoll_wait(epoll_fd, events, max - 1, idle ? 1 : 0);
    if (count < 0)
        return count;
    if (count == 0 && timeout_ms > 0)
        world.ahead_ms += 1000 + timeout_ms;
    world.idle_rounds = idle && count == 0 ? world.idle_rounds + 1 : 0;
    world.timer_rounds = more || lives || count > 0 ? 0 : world.timer_rounds + 1;
    if (world.idle_rounds >= IDLE_ROUNDS || world.timer_rounds >= TIMER_ROUNDS) {
        world.ended = true;
        if (world.in.flags & FLAG_SERIAL) {
            errno = EBADF;
            return -1; /* nothing else ends a port's session */
        }
    }
    if (more || world.ended)
        events[count++] = (struct epoll_event){.events = EPOLLIN, .data.fd = world.fd};
    return count;
}

static void make_file(const char *root, const char *name, const char *text)
{
    char path[PATH_ROOM];
    snprintf(path, sizeof path, "%s/%s", root, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && __real_write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
}

/* What the guest's files would be; the directory comes from tools/fuzz-agent, which removes it. */
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    const char *root = getenv("RAMET_FUZZ_ROOT");
    CHECK(root);
    world.fd = -1;
    signal(SIGPIPE, SIG_IGN);
    make_file(root, "sys/fs/cgroup/workload/cgroup.freeze", "0");
    make_file(root, "sys/fs/cgroup/workload/cgroup.events", "frozen 1\n");
    guest_init(root);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    memset(&world, 0, sizeof world);
    world.in = input_of(data, size);
    world.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    CHECK(world.fd >= 0);
    session_serve(world.fd, world.in.flags & FLAG_SERIAL);
    world.fd = -1;
    close_child();
    return 0;
}
