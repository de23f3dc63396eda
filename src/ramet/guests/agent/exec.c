/* A command: started, limited in time, ended. Nothing here waits: the session's loop calls. */
#define _GNU_SOURCE
#include "exec.h"
#include "session.h"
#include "spawn.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define KILL_MS 1000 /* from SIGTERM to SIGKILL, past the time limit */
#ifndef LINGER_MS
#define LINGER_MS 2000 /* what holds the pipes after the command's exit is listened to for no longer than this */
#endif

void exec_init(struct exec *e)
{
    memset(e, 0, sizeof *e);
    e->pid = -1;
    e->report_fd = e->pid_fd = e->in_fd = -1;
    e->out[0] = (struct output){.fd = -1, .type = REP_STDOUT};
    e->out[1] = (struct output){.fd = -1, .type = REP_STDERR};
}

static void forget(struct session *s)
{
    struct exec *e = &s->exec;
    unwatch(s, &e->report_fd);
    unwatch(s, &e->pid_fd);
    unwatch(s, &e->in_fd);
    unwatch(s, &e->out[0].fd);
    unwatch(s, &e->out[1].fd);
    queue_free(&e->input);
    command_free(&e->command);
    exec_init(e);
}

static void fail_start(struct session *s, uint32_t step, int number)
{
    char text[512];
    const struct command *cmd = &s->exec.command;
    snprintf(text, sizeof text, "%.300s: %s", step == STEP_CWD ? cmd->cwd : cmd->argv[0], strerror(number));
    reply_error(s, number, text);
    if (s->exec.pid > 0 && !(s->exec.flags & FLAG_DETACH))
        reap_later(s->exec.pid);
    forget(s);
}

void exec_start(struct session *s, struct cursor *c)
{
    struct exec *e = &s->exec;
    struct ends ends;
    if (!command_parse(&e->command, c)) {
        reply_error(s, EINVAL, "malformed exec request");
        forget(s);
        return;
    }
    int error = command_find(&e->command);
    if (!error)
        error = spawn(&e->command, &ends, &e->pid);
    if (error) {
        fail_start(s, STEP_FORK, error);
        return;
    }
    e->phase = EXEC_STARTING;
    e->flags = e->command.flags;
    e->report_fd = ends.report;
    e->in_fd = ends.in;
    e->out[0].fd = ends.out;
    e->out[1].fd = ends.err;
    if (e->pid > 0)
        e->pid_fd = pidfd_open(e->pid, 0);
    if (!watch(s, e->report_fd, EPOLLIN) || (e->pid > 0 && e->pid_fd < 0)) {
        error = errno;
        exec_cancel(s);
        reply_error(s, error, strerror(error));
    }
}

static void reply_started(struct session *s)
{
    struct queue q = {0};
    if (put_int(&q, (uint64_t)s->exec.pid, 4))
        reply(s, REP_STARTED, &q);
    else
        s->lost = true;
    queue_free(&q);
}

static void begin_running(struct session *s)
{
    struct exec *e = &s->exec;
    uint32_t limit_ms = e->command.timeout_ms;
    unwatch(s, &e->report_fd);
    command_free(&e->command);
    e->phase = EXEC_RUNNING;
    e->deadline_ms = limit_ms ? now_ms() + limit_ms : 0;
    bool watched = watch(s, e->pid_fd, EPOLLIN) && watch(s, e->out[0].fd, EPOLLIN);
    if (watched && e->out[1].fd >= 0)
        watched = watch(s, e->out[1].fd, EPOLLIN);
    if (!watched)
        s->lost = true;
    reply_started(s);
}

/* What the child says of itself: its pid, then its failure, then nothing more once the program runs (or if it was killed). */
static void read_report(struct session *s)
{
    struct exec *e = &s->exec;
    struct report report = {0};
    ssize_t got = read(e->report_fd, &report, sizeof report);
    if (got < 0)
        return;
    if (got == (ssize_t)sizeof report && report.step == STEP_NONE) {
        e->pid = report.pid;
        return;
    }
    if (got > 0 || e->pid < 0) {
        fail_start(s, got > 0 ? report.step : STEP_FORK, got > 0 ? report.error : EAGAIN);
    } else if (e->flags & FLAG_DETACH) {
        reply_started(s);
        forget(s);
    } else {
        begin_running(s);
    }
}

/* Look whether it exited, and leave it a zombie. All that it wrote itself is in its pipes by then. */
static void note_exit(struct session *s)
{
    struct exec *e = &s->exec;
    siginfo_t info = {0};
    if (waitid(P_PID, (id_t)e->pid, &info, WEXITED | WNOWAIT | WNOHANG) < 0 || info.si_pid == 0)
        return;
    e->phase = EXEC_ENDED;
    e->signalled = info.si_code != CLD_EXITED;
    e->value = info.si_status;
    e->quiet_ms = now_ms() + QUIET_MS;
    e->linger_ms = now_ms() + LINGER_MS;
    unwatch(s, &e->pid_fd);
    unwatch(s, &e->in_fd);
    for (int i = 0; i < 2; i++) {
        int pending = 0;
        if (e->out[i].fd >= 0 && ioctl(e->out[i].fd, FIONREAD, &pending) == 0)
            e->out[i].owed = (size_t)pending;
    }
}

void exec_event(struct session *s, int fd)
{
    struct exec *e = &s->exec;
    if (fd < 0)
        return;
    if (fd == e->report_fd)
        read_report(s);
    else if (fd == e->pid_fd)
        note_exit(s);
    else if (fd == e->out[0].fd)
        exec_read_output(s, &e->out[0]);
    else if (fd == e->out[1].fd)
        exec_read_output(s, &e->out[1]);
    else if (fd == e->in_fd)
        exec_pump_input(s);
}

static void keep_time_limit(struct exec *e)
{
    int64_t now = now_ms();
    if (e->phase == EXEC_RUNNING && e->deadline_ms && now >= e->deadline_ms) {
        e->deadline_ms = 0;
        e->timed_out = true;
        e->kill_ms = now + KILL_MS;
        kill(-e->pid, SIGTERM);
    } else if (e->kill_ms && now >= e->kill_ms) {
        e->kill_ms = 0;
        kill(-e->pid, SIGKILL);
    }
}

/* Whether all that is owed was read, and what else holds the pipes has been listened to for long enough. */
static bool is_finished(struct session *s)
{
    struct exec *e = &s->exec;
    int64_t now = now_ms();
    if (e->out[0].fd < 0 && e->out[1].fd < 0)
        return true;
    if (e->held || e->kill_ms || (now < e->quiet_ms && now < e->linger_ms))
        return false;
    for (int i = 0; i < 2; i++)
        if (e->out[i].owed)
            exec_read_output(s, &e->out[i]);
    return e->out[0].owed == 0 && e->out[1].owed == 0;
}

static void finish(struct session *s)
{
    struct exec *e = &s->exec;
    struct queue q = {0};
    if (e->timed_out)
        kill(-e->pid, SIGKILL); /* the limit was for all that it started in its group; else that lives on */
    waitpid(e->pid, NULL, 0);
    if (put_int(&q, e->signalled, 1) && put_int(&q, (uint64_t)e->value, 4) && put_int(&q, e->timed_out, 1))
        reply(s, REP_EXIT, &q);
    else
        s->lost = true;
    queue_free(&q);
    forget(s);
}

void exec_tick(struct session *s)
{
    struct exec *e = &s->exec;
    if (e->phase != EXEC_RUNNING && e->phase != EXEC_ENDED)
        return;
    exec_hold_output(s, s->out.len >= OUT_HIGH_WATER);
    keep_time_limit(e);
    if (e->phase == EXEC_ENDED && is_finished(s))
        finish(s);
}

int64_t exec_wakes_ms(const struct session *s)
{
    const struct exec *e = &s->exec;
    if (e->phase == EXEC_RUNNING && e->deadline_ms)
        return e->deadline_ms;
    if (e->kill_ms)
        return e->kill_ms;
    if (e->phase == EXEC_ENDED && !e->held)
        return e->quiet_ms < e->linger_ms ? e->quiet_ms : e->linger_ms;
    return -1;
}

void exec_cancel(struct session *s)
{
    struct exec *e = &s->exec;
    bool ours = !(e->flags & FLAG_DETACH); /* a detached one that has not begun sees that nobody listens, and ends */
    if (ours && (e->phase == EXEC_STARTING || e->phase == EXEC_RUNNING)) {
        int number = e->flags & FLAG_FILES ? SIGTERM : SIGKILL; /* our own put takes back what it has written */
        kill(-e->pid, number);
        kill(e->pid, number);
    }
    if (ours && e->phase != EXEC_NONE)
        reap_later(e->pid);
    forget(s);
}
