/* What an exec request asks for. */
#ifndef RAMET_COMMAND_H
#define RAMET_COMMAND_H

#include "bytes.h"

#define FLAG_PTY 1u
#define FLAG_DETACH 2u
#define FLAG_FILES 4u /* the program is the agent itself: put or get, see files.c */
#define FLAG_OUTSIDE 8u /* not in the workload: it runs while that is frozen */
#define FLAGS_KNOWN (FLAG_PTY | FLAG_DETACH | FLAG_FILES | FLAG_OUTSIDE)

struct command {
    char **argv, **envp, *cwd, *program;
    uint32_t flags, timeout_ms;
    unsigned rows, cols;
};

/* False if the request is malformed; command_free in any case. */
bool command_parse(struct command *cmd, struct cursor *c);
/* Set `program` as a shell would, from the PATH that the command will have. Returns 0 or an errno. */
int command_find(struct command *cmd);
void command_free(struct command *cmd);

#endif
