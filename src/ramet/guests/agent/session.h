/* A session: one client on one stream. A thread owns it, so nothing in it needs a lock. */
#ifndef RAMET_SESSION_H
#define RAMET_SESSION_H

#include "exec.h"
#include "proto.h"

#include <sys/epoll.h>
#include <time.h>

struct job;

#define CHUNK 65536
#define OUT_HIGH_WATER (256u * 1024u) /* a command's output is not read while this much waits to be sent */
#define OUT_MAX (2u * 1024u * 1024u)  /* a client that lets more wait has gone astray */

struct session {
    int fd, epoll_fd;
    bool serial;     /* a virtio port: it outlives its clients */
    bool closed;     /* the loop ends */
    bool lost;       /* a reply could not be queued: the client is to be forgotten */
    bool readable;   /* the stream, watched edge-triggered, may hold more */
    int64_t gone_ms; /* when to look again whether a port's host side is closed; 0: it is not in question */
    int gone_looks;  /* that are left until it is believed */
    struct parser parser;
    struct queue out;
    struct exec exec;
    struct job *job; /* a request at work in a thread of its own, or NULL */
    uint8_t chunk[CHUNK];
};

/* Serve one stream, until it ends or, for a virtio port, for ever. Closes `fd`. */
void session_serve(int fd, bool serial);

void reply(struct session *s, uint8_t type, const struct queue *payload);
void reply_bytes(struct session *s, uint8_t type, const void *data, size_t len);
void reply_error(struct session *s, int number, const char *text);
/* Set what is to be heard of a descriptor. 0 takes it out: an empty interest would still report hangups, over and over. */
bool watch(struct session *s, int fd, uint32_t events);
/* Take it out and close it. */
void unwatch(struct session *s, int *fd);

int64_t now_ms(void);

#endif
