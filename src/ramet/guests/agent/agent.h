/* A session: one client on one stream. A thread owns it, so nothing here needs a lock. */
#ifndef RAMET_AGENT_H
#define RAMET_AGENT_H

#include "proto.h"

#include <sys/epoll.h>
#include <time.h>

struct exec_state {
    pid_t pid;
    int pidfd, stdin_fd, stdout_fd, stderr_fd, pty_fd;
    struct queue input;
    bool stdin_eof, exited, timed_out, killed;
    int wait_status;
    int64_t deadline_ms, grace_ms, kill_ms;
};

struct file_state {
    int fd;
    bool sending, receiving;
    char *final_path, *temp_path;
    uint32_t mode;
};

struct session {
    int fd, epoll_fd;
    bool serial;       /* a virtio port: it outlives its clients */
    bool closed;
    bool out_blocked;
    int64_t hangup_ms; /* when to look again whether a port's host side is closed; 0: it is not in question */
    int hangup_looks;
    struct parser parser;
    struct queue out;
    struct exec_state exec;
    struct file_state file;
};

int64_t now_ms(void);
void session_serve(int fd, bool serial);
bool reply(struct session *s, uint8_t type, const void *data, size_t len);
bool reply_error(struct session *s, int number, const char *text);
bool watch(struct session *s, int fd, uint32_t events);
void unwatch(struct session *s, int *fd);

void exec_init(struct exec_state *e);
void exec_start(struct session *s, struct cursor *c);
void exec_input(struct session *s, const uint8_t *data, size_t len);
void exec_signal(struct session *s, int number);
void exec_resize(struct session *s, unsigned rows, unsigned cols);
void exec_event(struct session *s, int fd);
int exec_timeout_ms(struct session *s);
void exec_tick(struct session *s);
void exec_cancel(struct session *s);

void file_init(struct file_state *f);
void file_put(struct session *s, struct cursor *c);
void file_data(struct session *s, const uint8_t *data, size_t len);
void file_end(struct session *s);
void file_get(struct session *s, struct cursor *c);
void file_pump(struct session *s);
void file_cancel(struct session *s);

void system_init(const char *test_root);
void do_ping(struct session *s);
void do_quiesce(struct session *s, struct cursor *c);
void do_thaw(struct session *s);
void do_identity(struct session *s, struct cursor *c);
void do_shutdown(struct session *s, struct cursor *c);
void join_workload(void);
bool write_file(const char *path, const char *text);

#endif
