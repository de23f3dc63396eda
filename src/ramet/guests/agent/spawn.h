/* From a command to a process. */
#ifndef RAMET_SPAWN_H
#define RAMET_SPAWN_H

#include "command.h"

#include <sys/types.h>

/* What the child writes into its report pipe: its pid, and then the step that failed, if one did. The pipe ends when the program
 * runs. */
struct report {
    int32_t pid, error;
    uint32_t step;
};

enum step { STEP_NONE, STEP_FORK, STEP_WORKLOAD, STEP_STDIO, STEP_CWD, STEP_EXEC };

/* Our ends of a child's pipes or of its terminal, all O_NONBLOCK and O_CLOEXEC; -1 where there is none. */
struct ends {
    int report, in, out, err;
};

/* Start a command; the caller learns from the report pipe what came of it. For a detached one the pid is -1: init is its parent,
 * and its first report carries its pid. Returns 0 or an errno; then nothing was started. */
int spawn(const struct command *cmd, struct ends *ends, pid_t *pid);
/* Start a program of the agent's own, without arguments, outside of the workload. Returns its pid, or -1. */
pid_t spawn_hook(const char *path);
/* Collect children that end later: the caller has no more use for this one. */
void reap_later(pid_t pid);
/* Collect those that have ended. */
void reap_left(void);

#endif
