/* A job is freed by whichever comes last, its thread or its session. */
#include "job.h"
#include "session.h"
#include "threads.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards done and abandoned of every job */

static void job_free(struct job *job)
{
    if (job->free_arguments)
        job->free_arguments(job);
    queue_free(&job->result);
    close(job->done_fd);
    free(job);
}

static void undo_and_free(struct job *job)
{
    if (!job->error && job->undo)
        job->undo(job);
    job_free(job);
}

static void *run(void *argument)
{
    struct job *job = argument;
    job->run(job);
    pthread_mutex_lock(&lock);
    bool abandoned = job->abandoned;
    job->done = true;
    if (!abandoned)
        eventfd_write(job->done_fd, 1);
    pthread_mutex_unlock(&lock);
    if (abandoned)
        undo_and_free(job);
    return NULL;
}

void job_start(struct session *s, struct job template)
{
    struct job *job = malloc(sizeof *job);
    int error = ENOMEM;
    if (job) {
        *job = template;
        job->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (job->done_fd >= 0 && watch(s, job->done_fd, EPOLLIN)) {
            s->job = job;
            if (thread_start(run, job))
                return;
            s->job = NULL;
            error = EAGAIN;
        } else {
            error = errno;
        }
        job_free(job);
    } else if (template.free_arguments) {
        template.free_arguments(&template);
    }
    reply_error(s, error, strerror(error));
}

bool job_owns(const struct session *s, int fd)
{
    return s->job && s->job->done_fd == fd;
}

void job_finish(struct session *s)
{
    struct job *job = s->job;
    pthread_mutex_lock(&lock);
    bool done = job->done;
    pthread_mutex_unlock(&lock);
    if (!done)
        return;
    s->job = NULL;
    if (job->error)
        reply_error(s, job->error, job->text);
    else
        reply(s, REP_OK, &job->result);
    job_free(job);
}

void job_cancel(struct session *s)
{
    struct job *job = s->job;
    if (!job)
        return;
    s->job = NULL;
    watch(s, job->done_fd, 0);
    pthread_mutex_lock(&lock);
    job->abandoned = true;
    bool done = job->done;
    pthread_mutex_unlock(&lock);
    if (done)
        undo_and_free(job);
}
