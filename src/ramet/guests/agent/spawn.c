/* Fork and exec. Between the two nothing may allocate or lock, since other threads existed. */
#define _GNU_SOURCE
#include "spawn.h"
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define REPORT_FD 3 /* in the child */

extern char **environ;

struct pipes {
    int report[2], in[2], out[2], err[2];
};

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void reset_signals(void)
{
    sigset_t none;
    sigemptyset(&none);
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static _Noreturn void fail_child(int report_fd, enum step step)
{
    struct report report = {.error = errno, .step = step};
    ssize_t put = write(report_fd, &report, sizeof report);
    _exit(put == (ssize_t)sizeof report ? 127 : 126);
}

/* Keep stdio and the report pipe, as descriptor 3, and nothing of the agent or of other sessions: a child that a frozen workload
 * stops before its exec would hold their pipes open. */
static bool keep_own_descriptors(const int stdio[3], int report_fd)
{
    for (int i = 0; i < 3; i++)
        if (dup2(stdio[i], i) < 0)
            return false;
    if (report_fd != REPORT_FD && dup3(report_fd, REPORT_FD, O_CLOEXEC) < 0)
        return false;
    return close_range(REPORT_FD + 1, ~0u, 0) == 0;
}

/* In the child. If the workload is frozen it stays in workload_join until the thaw, unless it is to run outside. */
static _Noreturn void become(const struct command *cmd, const int stdio[3], int report_fd)
{
    struct report report = {.pid = getpid()};
    struct pollfd listener = {.fd = REPORT_FD}; /* POLLERR once its reading end is closed */
    reset_signals();
    setsid();
    if (!keep_own_descriptors(stdio, report_fd))
        fail_child(report_fd, STEP_STDIO);
    if (write(REPORT_FD, &report, sizeof report) != (ssize_t)sizeof report)
        _exit(126);
    unprotect_from_oom();
    if (!(cmd->flags & FLAG_OUTSIDE) && (errno = workload_join()) != 0)
        fail_child(REPORT_FD, STEP_WORKLOAD);
    if (poll(&listener, 1, 0) != 0)
        _exit(126); /* the client went away while the workload was frozen */
    if (cmd->flags & FLAG_PTY && ioctl(0, TIOCSCTTY, 0) < 0)
        fail_child(REPORT_FD, STEP_STDIO);
    if (cmd->cwd[0] && chdir(cmd->cwd) < 0)
        fail_child(REPORT_FD, STEP_CWD);
    execve(cmd->program, cmd->argv, cmd->envp);
    fail_child(REPORT_FD, STEP_EXEC);
}

/* The terminal's two sides: the master is ours to write to and, as a second descriptor, to read from. */
static bool open_terminal(const struct command *cmd, struct pipes *p)
{
    struct winsize size = {.ws_row = (unsigned short)cmd->rows, .ws_col = (unsigned short)cmd->cols};
    p->in[1] = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (p->in[1] < 0 || unlockpt(p->in[1]) < 0 || ioctl(p->in[1], TIOCSWINSZ, &size) < 0)
        return false;
    p->in[0] = ioctl(p->in[1], TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    p->out[0] = fcntl(p->in[1], F_DUPFD_CLOEXEC, 3);
    p->out[1] = p->in[0] < 0 ? -1 : fcntl(p->in[0], F_DUPFD_CLOEXEC, 3);
    p->err[1] = p->in[0] < 0 ? -1 : fcntl(p->in[0], F_DUPFD_CLOEXEC, 3);
    return p->in[0] >= 0 && p->out[0] >= 0 && p->out[1] >= 0 && p->err[1] >= 0;
}

static bool open_pipes(const struct command *cmd, struct pipes *p)
{
    if (pipe2(p->report, O_CLOEXEC) < 0)
        return false;
    if (cmd->flags & FLAG_DETACH) {
        p->in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
        p->out[1] = open("/dev/null", O_WRONLY | O_CLOEXEC);
        p->err[1] = open("/dev/null", O_WRONLY | O_CLOEXEC);
        return p->in[0] >= 0 && p->out[1] >= 0 && p->err[1] >= 0;
    }
    if (cmd->flags & FLAG_PTY)
        return open_terminal(cmd, p);
    return pipe2(p->in, O_CLOEXEC) == 0 && pipe2(p->out, O_CLOEXEC) == 0 && pipe2(p->err, O_CLOEXEC) == 0;
}

static int keep(int *fd)
{
    int kept = *fd;
    if (kept >= 0)
        fcntl(kept, F_SETFL, fcntl(kept, F_GETFL) | O_NONBLOCK);
    *fd = -1;
    return kept;
}

/* A detached command is the child of a child that ends at once, so init is its parent and reaps it. */
static pid_t fork_child(const struct command *cmd, const struct pipes *p)
{
    const int stdio[3] = {p->in[0], p->out[1], p->err[1]};
    bool detach = cmd->flags & FLAG_DETACH;
    pid_t pid = fork();
    if (pid == 0 && detach) {
        pid = fork();
        if (pid < 0)
            fail_child(p->report[1], STEP_FORK);
        if (pid > 0)
            _exit(0);
    }
    if (pid == 0)
        become(cmd, stdio, p->report[1]);
    if (pid > 0 && detach)
        waitpid(pid, NULL, 0);
    return pid;
}

int spawn(const struct command *cmd, struct ends *ends, pid_t *pid)
{
    struct pipes p = {{-1, -1}, {-1, -1}, {-1, -1}, {-1, -1}};
    int error = 0;
    *ends = (struct ends){-1, -1, -1, -1};
    *pid = -1;
    reap_left();
    if (!open_pipes(cmd, &p) || (*pid = fork_child(cmd, &p)) < 0) {
        error = errno;
    } else {
        *ends = (struct ends){.report = keep(&p.report[0]), .in = keep(&p.in[1]), .out = keep(&p.out[0]), .err = keep(&p.err[0])};
        if (cmd->flags & FLAG_DETACH)
            *pid = -1;
    }
    int *all[] = {&p.report[0], &p.report[1], &p.in[0], &p.in[1], &p.out[0], &p.out[1], &p.err[0], &p.err[1]};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        close_fd(all[i]);
    return error;
}

pid_t spawn_hook(const char *path)
{
    char *const argv[] = {(char *)path, NULL};
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    pid_t pid = null_fd < 0 ? -1 : fork();
    if (pid == 0) {
        reset_signals();
        setsid();
        unprotect_from_oom();
        if (dup2(null_fd, 0) == 0) /* what it says goes to the console, as the agent's own words do */
            execve(path, argv, environ);
        _exit(127);
    }
    close_fd(&null_fd);
    return pid;
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pid_t *left; /* children that nobody waits for, guarded by the lock */
static size_t left_count, left_room;

static void collect(void)
{
    for (size_t i = 0; i < left_count;)
        if (waitpid(left[i], NULL, WNOHANG) != 0)
            left[i] = left[--left_count];
        else
            i++;
}

void reap_left(void)
{
    pthread_mutex_lock(&lock);
    collect();
    pthread_mutex_unlock(&lock);
}

void reap_later(pid_t pid)
{
    pthread_mutex_lock(&lock);
    collect();
    if (waitpid(pid, NULL, WNOHANG) == 0) {
        if (left_count == left_room) {
            size_t room = left_room ? 2 * left_room : 16;
            pid_t *grown = realloc(left, room * sizeof *left);
            if (grown) {
                left = grown;
                left_room = room;
            }
        }
        if (left_count < left_room)
            left[left_count++] = pid;
    }
    pthread_mutex_unlock(&lock);
}
