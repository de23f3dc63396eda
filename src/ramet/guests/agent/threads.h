/* Streams, and the threads that serve them. */
#ifndef RAMET_THREADS_H
#define RAMET_THREADS_H

#include <stdbool.h>

/* Start a detached thread. */
bool thread_start(void *(*run)(void *), void *argument);
/* Serve a stream in a thread of its own, which closes it at the end. */
void serve_stream(int fd, bool serial);
/* Accept connections and serve each, in threads of their own. False if that could not begin; the listener is then open. */
bool serve_listener(int listener);

#endif
