/* Requests that may take long run in a thread of their own, so that their session goes on hearing its stream. */
#ifndef RAMET_JOB_H
#define RAMET_JOB_H

#include "bytes.h"

struct session;

struct job {
    void (*run)(struct job *job);  /* in the thread; sets error and text, or adds to the result */
    void (*undo)(struct job *job); /* for a success that nobody heard of; NULL: nothing to undo */
    void (*free_arguments)(struct job *job);
    void *arguments;
    int error;
    char text[256];
    struct queue result;
    int done_fd; /* an eventfd */
    bool done, abandoned;
};

/* Start a job for the session; its end is the session's reply. On failure the session has been told. Owns the arguments. */
void job_start(struct session *s, struct job job);
/* Whether `fd` announces the end of the session's job. */
bool job_owns(const struct session *s, int fd);
/* Reply to the client and forget the job. */
void job_finish(struct session *s);
/* The client no longer waits: undo the job, now or when it ends. */
void job_cancel(struct session *s);

#endif
