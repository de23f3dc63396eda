/* What concerns the whole guest: who it is, whether it stands still, its end. */
#ifndef RAMET_GUEST_H
#define RAMET_GUEST_H

#include "bytes.h"

struct session;

/* Before anything else, once. All paths below are under `root`: "" in a guest, a directory of their own in tests. */
void guest_init(const char *root);
#define PATH_ROOM 512
/* The path of a file of the guest, in PATH_ROOM bytes. */
void guest_path(char *out, const char *path);
/* Write a text into a file that exists, in one write. Returns 0 or an errno. */
int write_text(const char *path, const char *text);

/* The out-of-memory killer takes the workload and never the agent. */
void protect_from_oom(void);
/* In a child of the agent, before exec; async-signal-safe. */
void unprotect_from_oom(void);

void do_ping(struct session *s, struct cursor *c);
void do_identity(struct session *s, struct cursor *c);
void do_shutdown(struct session *s, struct cursor *c);

void freeze_init(void);
void do_quiesce(struct session *s, struct cursor *c);
void do_thaw(struct session *s, struct cursor *c);
/* Let the data file system go on, and leave the workload frozen. Returns 0 or an errno. */
int thaw_file_system(void);
/* Put the calling process into the workload; async-signal-safe. Returns 0 or an errno. */
int workload_join(void);

#endif
