/* Commands: their pipes or terminal, their time limit, their end. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define FLAG_PTY 1u
#define FLAG_DETACH 2u
#define ARGUMENTS_MAX 4096u
#define GRACE_MS 200
#define KILL_MS 1000

struct command {
    char **argv, **envp, *cwd, *program;
    uint32_t flags, timeout_ms;
    unsigned rows, cols;
};

void exec_init(struct exec_state *e)
{
    memset(e, 0, sizeof *e);
    e->pidfd = e->stdin_fd = e->stdout_fd = e->stderr_fd = e->pty_fd = -1;
}

static void free_strings(char **strings)
{
    for (char **at = strings; at && *at; at++)
        free(*at);
    free(strings);
}

static void free_command(struct command *cmd)
{
    free_strings(cmd->argv);
    free_strings(cmd->envp);
    free(cmd->cwd);
    free(cmd->program);
}

static char **get_strings(struct cursor *c, unsigned extra)
{
    size_t count = (size_t)get_int(c, 4);
    if (c->bad || count > ARGUMENTS_MAX || count > c->left) {
        c->bad = true;
        return NULL;
    }
    char **strings = calloc(count + extra + 1, sizeof *strings);
    if (!strings)
        c->bad = true;
    for (size_t i = 0; strings && i < count && !c->bad; i++)
        strings[i] = get_string(c);
    return strings;
}

/* Defaults go behind what the client gave: the first of two equal names wins in getenv and in our own look-up. */
static void add_defaults(struct command *cmd)
{
    static const char *const defaults[] = {
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=linux", "LANG=C.UTF-8"};
    size_t count = 0;
    while (cmd->envp[count])
        count++;
    for (size_t i = 0; i < 4; i++) {
        size_t len = (size_t)(strchr(defaults[i], '=') - defaults[i]) + 1;
        bool given = false;
        for (size_t j = 0; j < count; j++)
            given |= strncmp(cmd->envp[j], defaults[i], len) == 0;
        if (!given && (cmd->envp[count] = strdup(defaults[i])))
            count++;
    }
}

static bool parse_command(struct cursor *c, struct command *cmd)
{
    memset(cmd, 0, sizeof *cmd);
    cmd->flags = (uint32_t)get_int(c, 4);
    cmd->timeout_ms = (uint32_t)get_int(c, 4);
    cmd->rows = (unsigned)get_int(c, 2);
    cmd->cols = (unsigned)get_int(c, 2);
    cmd->cwd = get_string(c);
    cmd->argv = get_strings(c, 0);
    cmd->envp = get_strings(c, 4);
    if (!cursor_done(c) || !cmd->argv[0] || !cmd->argv[0][0])
        return false;
    add_defaults(cmd);
    return true;
}

/* Find the program as a shell would, in the PATH that the command will have. Returns 0 or an errno. */
static int find_program(struct command *cmd)
{
    const char *name = cmd->argv[0], *path = "";
    if (strchr(name, '/')) {
        cmd->program = strdup(name);
        return cmd->program ? 0 : ENOMEM;
    }
    for (char **at = cmd->envp; *at; at++)
        if (strncmp(*at, "PATH=", 5) == 0) {
            path = *at + 5;
            break;
        }
    int error = ENOENT;
    while (*path) {
        size_t len = strcspn(path, ":");
        char candidate[4096];
        int put = snprintf(candidate, sizeof candidate, "%.*s/%s", (int)len, path, name);
        if (put > 0 && (size_t)put < sizeof candidate) {
            struct stat found;
            if (stat(candidate, &found) == 0 && S_ISREG(found.st_mode)) {
                if (access(candidate, X_OK) == 0) {
                    cmd->program = strdup(candidate);
                    return cmd->program ? 0 : ENOMEM;
                }
                error = EACCES;
            }
        }
        path += len + (path[len] == ':');
    }
    return error;
}

/* In the child: nothing here may allocate or lock, since other threads existed. */
static void become(const struct command *cmd, const int stdio[3], int error_fd, int tty_fd)
{
    sigset_t none;
    sigemptyset(&none);
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    if (tty_fd >= 0)
        ioctl(tty_fd, TIOCSCTTY, 0);
    join_workload();
    for (int i = 0; i < 3; i++)
        if (dup2(stdio[i], i) < 0)
            goto failed;
    if (cmd->cwd[0] && chdir(cmd->cwd) < 0)
        goto failed;
    execve(cmd->program, cmd->argv, cmd->envp);
failed:;
    int number = errno;
    if (write(error_fd, &number, sizeof number) < 0)
        _exit(126);
    _exit(127);
}

static int await_exec(int fd)
{
    int number = 0;
    ssize_t got;
    do
        got = read(fd, &number, sizeof number);
    while (got < 0 && errno == EINTR);
    return got == (ssize_t)sizeof number ? number : 0;
}

static void fail_start(struct session *s, const struct command *cmd, int number)
{
    char text[512];
    struct stat found;
    const char *what = cmd->argv[0];
    if (cmd->cwd[0] && (stat(cmd->cwd, &found) != 0 || !S_ISDIR(found.st_mode)))
        what = cmd->cwd;
    snprintf(text, sizeof text, "%.300s: %s", what, strerror(number));
    reply_error(s, number, text);
}

static void start_detached(struct session *s, struct command *cmd)
{
    int errors[2], pids[2] = {-1, -1}, null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null_fd < 0 || pipe2(errors, O_CLOEXEC) < 0) {
        fail_start(s, cmd, errno);
        if (null_fd >= 0)
            close(null_fd);
        return;
    }
    pid_t pid = -1, middle = -1;
    if (pipe2(pids, O_CLOEXEC) == 0)
        middle = fork();
    if (middle == 0) {
        pid_t child = fork(); /* its parent ends at once, so init reaps it */
        if (child == 0)
            become(cmd, (int[3]){null_fd, null_fd, null_fd}, errors[1], -1);
        _exit(write(pids[1], &child, sizeof child) == (ssize_t)sizeof child ? 0 : 1);
    }
    close(errors[1]);
    close(pids[1]);
    close(null_fd);
    int number = middle < 0 ? errno : 0;
    if (middle > 0) {
        waitpid(middle, NULL, 0);
        if (read(pids[0], &pid, sizeof pid) != (ssize_t)sizeof pid)
            number = EAGAIN;
        else
            number = await_exec(errors[0]);
    }
    close(errors[0]);
    close(pids[0]);
    if (number) {
        fail_start(s, cmd, number);
        return;
    }
    struct queue q = {0};
    if (put_int(&q, (uint64_t)pid, 4))
        reply(s, REP_STARTED, queue_at(&q), q.len);
    queue_free(&q);
}

struct pipes {
    int in[2], out[2], err[2], error[2], tty;
};

static void close_pipes(struct pipes *p)
{
    int *all[] = {&p->in[0], &p->in[1], &p->out[0], &p->out[1], &p->err[0], &p->err[1], &p->error[0], &p->error[1], &p->tty};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (*all[i] >= 0) {
            close(*all[i]);
            *all[i] = -1;
        }
}

static bool open_pty(const struct command *cmd, struct pipes *p)
{
    char name[64];
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master < 0)
        return false;
    p->in[1] = master;
    if (grantpt(master) < 0 || unlockpt(master) < 0 || ptsname_r(master, name, sizeof name) != 0)
        return false;
    p->tty = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    struct winsize size = {.ws_row = (unsigned short)cmd->rows, .ws_col = (unsigned short)cmd->cols};
    ioctl(master, TIOCSWINSZ, &size);
    return p->tty >= 0;
}

static bool open_pipes(const struct command *cmd, struct pipes *p)
{
    if (pipe2(p->error, O_CLOEXEC) < 0)
        return false;
    if (cmd->flags & FLAG_PTY)
        return open_pty(cmd, p);
    return pipe2(p->in, O_CLOEXEC) == 0 && pipe2(p->out, O_CLOEXEC) == 0 && pipe2(p->err, O_CLOEXEC) == 0;
}

static int keep(int *fd)
{
    int kept = *fd;
    *fd = -1;
    fcntl(kept, F_SETFL, fcntl(kept, F_GETFL) | O_NONBLOCK);
    return kept;
}

static void attach(struct session *s, const struct command *cmd, struct pipes *p, pid_t pid)
{
    struct exec_state *e = &s->exec;
    e->pid = pid;
    e->pidfd = pidfd_open(pid, 0);
    e->deadline_ms = cmd->timeout_ms ? now_ms() + cmd->timeout_ms : 0;
    if (cmd->flags & FLAG_PTY) {
        e->pty_fd = keep(&p->in[1]);
        watch(s, e->pty_fd, EPOLLIN);
    } else {
        e->stdin_fd = keep(&p->in[1]);
        e->stdout_fd = keep(&p->out[0]);
        e->stderr_fd = keep(&p->err[0]);
        watch(s, e->stdout_fd, EPOLLIN);
        watch(s, e->stderr_fd, EPOLLIN);
    }
    if (e->pidfd >= 0)
        watch(s, e->pidfd, EPOLLIN);
}

static void start_attached(struct session *s, struct command *cmd)
{
    struct pipes p = {{-1, -1}, {-1, -1}, {-1, -1}, {-1, -1}, -1};
    if (!open_pipes(cmd, &p)) {
        fail_start(s, cmd, errno);
        close_pipes(&p);
        return;
    }
    pid_t pid = fork();
    if (pid == 0) {
        int stdio[3] = {p.in[0], p.out[1], p.err[1]};
        if (p.tty >= 0)
            stdio[0] = stdio[1] = stdio[2] = p.tty;
        become(cmd, stdio, p.error[1], p.tty);
    }
    int number = pid < 0 ? errno : 0;
    close(p.error[1]);
    p.error[1] = -1;
    if (pid > 0)
        number = await_exec(p.error[0]);
    if (number) {
        if (pid > 0)
            waitpid(pid, NULL, 0);
        fail_start(s, cmd, number);
    } else {
        attach(s, cmd, &p, pid);
        struct queue q = {0};
        if (put_int(&q, (uint64_t)pid, 4))
            reply(s, REP_STARTED, queue_at(&q), q.len);
        queue_free(&q);
    }
    close_pipes(&p);
}

void exec_start(struct session *s, struct cursor *c)
{
    struct command cmd;
    if (!parse_command(c, &cmd)) {
        reply_error(s, EINVAL, "malformed exec request");
    } else {
        int number = find_program(&cmd);
        if (number)
            fail_start(s, &cmd, number);
        else if (cmd.flags & FLAG_DETACH)
            start_detached(s, &cmd);
        else
            start_attached(s, &cmd);
    }
    free_command(&cmd);
}

/* An interest of 0 still reports hangups, over and over: what is not wanted is not watched at all. */
static void watch_if(struct session *s, int fd, uint32_t events)
{
    if (fd < 0)
        return;
    if (events)
        watch(s, fd, events);
    else
        epoll_ctl(s->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}

static int input_fd(struct exec_state *e)
{
    return e->pty_fd >= 0 ? e->pty_fd : e->stdin_fd;
}

/* Give the command what it takes, and the client as much new credit. */
static void pump_input(struct session *s)
{
    struct exec_state *e = &s->exec;
    int fd = input_fd(e);
    size_t taken = 0;
    while (fd >= 0 && e->input.len) {
        ssize_t put = write(fd, queue_at(&e->input), e->input.len > 4096 ? 4096 : e->input.len);
        if (put > 0) {
            taken += (size_t)put;
            queue_drop(&e->input, (size_t)put);
        } else if (put < 0 && errno == EINTR) {
            continue;
        } else if (put < 0 && errno == EAGAIN) {
            break;
        } else { /* the command closed its stdin: what is left has no reader */
            taken += e->input.len;
            queue_clear(&e->input);
            unwatch(s, &e->stdin_fd);
            break;
        }
    }
    if (fd < 0) {
        taken += e->input.len;
        queue_clear(&e->input);
    }
    if (taken) {
        struct queue q = {0};
        if (put_int(&q, taken, 4))
            reply(s, REP_WINDOW, queue_at(&q), q.len);
        queue_free(&q);
    }
    if (e->stdin_eof && e->input.len == 0) {
        if (e->pty_fd >= 0) {
            if (write(e->pty_fd, "\004", 1) == 1) /* a terminal has no end of file but this */
                e->stdin_eof = false;
        } else {
            unwatch(s, &e->stdin_fd);
        }
    }
    watch_if(s, e->stdin_fd, e->input.len ? EPOLLOUT : 0);
    watch_if(s, e->pty_fd, (s->out_blocked ? 0 : EPOLLIN) | (e->input.len ? EPOLLOUT : 0));
}

void exec_input(struct session *s, const uint8_t *data, size_t len)
{
    struct exec_state *e = &s->exec;
    if (e->pid <= 0)
        return; /* it ended while this was under way */
    if (e->input.len + len > STDIN_WINDOW || !queue_add(&e->input, data, len)) {
        exec_cancel(s);
        reply_error(s, EOVERFLOW, "more stdin than the window allows");
        return;
    }
    if (len == 0)
        e->stdin_eof = true;
    pump_input(s);
}

void exec_signal(struct session *s, int number)
{
    if (s->exec.pid > 0 && !s->exec.exited && number > 0 && number < NSIG)
        kill(-s->exec.pid, number);
}

void exec_resize(struct session *s, unsigned rows, unsigned cols)
{
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)cols};
    if (s->exec.pty_fd >= 0)
        ioctl(s->exec.pty_fd, TIOCSWINSZ, &size);
}

static void read_output(struct session *s, int *fd, uint8_t type)
{
    uint8_t chunk[32768];
    if (s->out.len >= OUT_HIGH_WATER)
        return;
    ssize_t got = read(*fd, chunk, sizeof chunk);
    if (got > 0) {
        reply(s, type, chunk, (size_t)got);
        if (s->exec.exited)
            s->exec.grace_ms = now_ms() + GRACE_MS;
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        unwatch(s, fd); /* a pty answers EIO when its last user is gone */
    }
}

static void reap(struct session *s)
{
    struct exec_state *e = &s->exec;
    if (e->exited || waitpid(e->pid, &e->wait_status, WNOHANG) != e->pid)
        return;
    e->exited = true;
    e->grace_ms = now_ms() + GRACE_MS;
    unwatch(s, &e->pidfd);
}

void exec_event(struct session *s, int fd)
{
    struct exec_state *e = &s->exec;
    if (fd < 0 || e->pid <= 0)
        return;
    if (fd == e->pidfd) {
        reap(s);
    } else if (fd == e->stdout_fd) {
        read_output(s, &e->stdout_fd, REP_STDOUT);
    } else if (fd == e->stderr_fd) {
        read_output(s, &e->stderr_fd, REP_STDERR);
    } else if (fd == e->pty_fd) {
        pump_input(s);
        read_output(s, &e->pty_fd, REP_STDOUT);
    } else if (fd == e->stdin_fd) {
        pump_input(s);
    }
}

/* While the client does not read, the command's output is not read either. */
static void set_output_interest(struct session *s, bool wanted)
{
    struct exec_state *e = &s->exec;
    if (wanted != s->out_blocked)
        return;
    s->out_blocked = !wanted;
    watch_if(s, e->stdout_fd, wanted ? EPOLLIN : 0);
    watch_if(s, e->stderr_fd, wanted ? EPOLLIN : 0);
    watch_if(s, e->pty_fd, (wanted ? EPOLLIN : 0) | (e->input.len ? EPOLLOUT : 0));
}

static void finish(struct session *s)
{
    struct exec_state *e = &s->exec;
    struct queue q = {0};
    bool signalled = WIFSIGNALED(e->wait_status);
    int value = signalled ? WTERMSIG(e->wait_status) : WEXITSTATUS(e->wait_status);
    if (put_int(&q, signalled, 1) && put_int(&q, (uint64_t)value, 4) && put_int(&q, e->timed_out, 1))
        reply(s, REP_EXIT, queue_at(&q), q.len);
    queue_free(&q);
    e->pid = 0; /* what it left running in the background lives on */
    exec_cancel(s);
}

void exec_tick(struct session *s)
{
    struct exec_state *e = &s->exec;
    if (e->pid <= 0)
        return;
    int64_t now = now_ms();
    set_output_interest(s, s->out.len < OUT_HIGH_WATER);
    if (!e->exited)
        reap(s);
    if (!e->exited && e->deadline_ms && now >= e->deadline_ms && !e->timed_out) {
        e->timed_out = true;
        e->kill_ms = now + KILL_MS;
        kill(-e->pid, SIGTERM);
    }
    if (!e->exited && e->timed_out && !e->killed && now >= e->kill_ms) {
        e->killed = true;
        kill(-e->pid, SIGKILL);
    }
    bool drained = e->stdout_fd < 0 && e->stderr_fd < 0 && e->pty_fd < 0;
    bool quiet = now >= e->grace_ms && s->out.len < OUT_HIGH_WATER && !s->out_blocked;
    if (e->exited && (drained || quiet))
        finish(s);
}

int exec_timeout_ms(struct session *s)
{
    struct exec_state *e = &s->exec;
    int64_t next = -1;
    if (e->pid > 0 && e->exited)
        next = e->grace_ms;
    else if (e->pid > 0 && e->timed_out)
        next = e->killed ? now_ms() + 100 : e->kill_ms;
    else if (e->pid > 0 && e->deadline_ms)
        next = e->deadline_ms;
    if (e->pid > 0 && !e->exited && e->pidfd < 0)
        next = now_ms() + 50; /* no pidfd: poll for its end */
    if (next < 0)
        return -1;
    int64_t left = next - now_ms();
    return left <= 0 ? (e->exited && s->out.len >= OUT_HIGH_WATER ? 50 : 0) : (int)(left > 60000 ? 60000 : left);
}

void exec_cancel(struct session *s)
{
    struct exec_state *e = &s->exec;
    if (e->pid > 0 && !e->exited) {
        kill(-e->pid, SIGKILL);
        kill(e->pid, SIGKILL);
        for (int i = 0; i < 200 && waitpid(e->pid, NULL, WNOHANG) == 0; i++)
            usleep(5000);
    }
    unwatch(s, &e->pidfd);
    unwatch(s, &e->stdin_fd);
    unwatch(s, &e->stdout_fd);
    unwatch(s, &e->stderr_fd);
    unwatch(s, &e->pty_fd);
    queue_free(&e->input);
    s->out_blocked = false;
    exec_init(e);
}
