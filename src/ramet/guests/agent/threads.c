/* One thread per virtio port, one per connection. */
#define _GNU_SOURCE
#include "threads.h"
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTIONS_MAX 64
#define STACK_BYTES (256u * 1024u)

static int connections;

struct stream {
    int fd;
    bool serial;
};

bool thread_start(void *(*run)(void *), void *argument)
{
    pthread_t thread;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0)
        return false;
    bool ok = pthread_attr_setstacksize(&attributes, STACK_BYTES) == 0 &&
              pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED) == 0 &&
              pthread_create(&thread, &attributes, run, argument) == 0;
    pthread_attr_destroy(&attributes);
    return ok;
}

static void left(const struct stream *stream)
{
    if (!stream->serial)
        __atomic_sub_fetch(&connections, 1, __ATOMIC_RELAXED);
}

static void *serve(void *argument)
{
    struct stream stream = *(struct stream *)argument;
    free(argument);
    session_serve(stream.fd, stream.serial);
    left(&stream);
    return NULL;
}

void serve_stream(int fd, bool serial)
{
    struct stream stream = {fd, serial}, *argument = malloc(sizeof *argument);
    bool room = serial || __atomic_add_fetch(&connections, 1, __ATOMIC_RELAXED) <= CONNECTIONS_MAX;
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    if (argument)
        *argument = stream;
    if (!room || !argument || !thread_start(serve, argument)) {
        free(argument);
        close(fd);
        left(&stream);
    }
}

static void *accept_loop(void *argument)
{
    int listener = *(int *)argument;
    free(argument);
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0)
            serve_stream(fd, false);
        else if (errno != EINTR)
            usleep(10000); /* out of descriptors, or a transport that is being reset: it comes back */
    }
    return NULL;
}

bool serve_listener(int listener)
{
    int *argument = malloc(sizeof *argument);
    if (!argument)
        return false;
    *argument = listener;
    if (thread_start(accept_loop, argument))
        return true;
    free(argument);
    return false;
}
