/* The wire protocol; README.md draws it, wire.py is its other half. */
#ifndef RAMET_PROTO_H
#define RAMET_PROTO_H

#include "bytes.h"

#define PROTOCOL_VERSION 1
#define MAGIC_LEN 8
#define EPOCH_LEN 16
#define HELLO_LEN (MAGIC_LEN + 1 + EPOCH_LEN)
#define HEADER_LEN 5
#define PAYLOAD_MAX 65536u            /* of one frame */
#define MESSAGE_MAX (1024u * 1024u)   /* of all frames of a message */
#define STDIN_WINDOW (256u * 1024u)
#define MORE 0x40

extern const uint8_t ramet_magic[MAGIC_LEN];

enum request {
    REQ_PING = 1, REQ_EXEC, REQ_STDIN, REQ_SIGNAL, REQ_RESIZE, REQ_QUIESCE, REQ_THAW, REQ_IDENTITY, REQ_SHUTDOWN
};

enum reply { REP_OK = 0x20, REP_ERROR, REP_STARTED, REP_STDOUT, REP_STDERR, REP_WINDOW, REP_EXIT };

/* Append what opens a session, in both directions. */
bool put_hello(struct queue *q, const uint8_t epoch[EPOCH_LEN]);
/* Append one message as frames, none of which holds the magic, or ends where a hello could begin. False without memory; the
 * queue is then what it was. */
bool put_message(struct queue *q, uint8_t type, const void *data, size_t len);

/* What a parser finds in a stream. EV_VERSION is a hello of another version, EV_GARBAGE what no client sends (or no memory
 * to hold it): after both, everything is dropped up to the next hello. */
enum event { EV_NONE, EV_HELLO, EV_VERSION, EV_MESSAGE, EV_GARBAGE };

struct parser {
    struct queue in;      /* bytes not yet understood */
    struct queue message; /* the payload so far of the message at hand */
    size_t scanned;       /* bytes of `in` that were searched for the magic */
    bool synced;          /* a hello has been seen */
    bool in_hello;        /* `in` begins with the magic */
    bool complete;        /* `message` was handed out */
    uint8_t type;         /* of the message at hand */
    uint8_t epoch[EPOCH_LEN];
};

/* False without memory. */
bool parser_feed(struct parser *p, const void *data, size_t len);
/* The next event; EV_MESSAGE leaves type and payload in `type` and `message` until the next call. */
enum event parser_next(struct parser *p);
/* Forget the client: drop everything up to the next hello. */
void parser_reset(struct parser *p);
void parser_free(struct parser *p);

#endif
