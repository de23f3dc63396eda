/* The wire protocol and the small helpers that every part of the agent shares. README.md draws it. */
#ifndef RAMET_PROTO_H
#define RAMET_PROTO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PROTOCOL_VERSION 1
#define MAGIC_LEN 8
#define EPOCH_LEN 16
#define HELLO_LEN (MAGIC_LEN + 1 + EPOCH_LEN)
#define HEADER_LEN 5
#define PAYLOAD_MAX 65536u
#define MESSAGE_MAX (1024u * 1024u)
#define STDIN_WINDOW (256u * 1024u)
#define OUT_HIGH_WATER (256u * 1024u)
#define MORE 0x40

extern const uint8_t ramet_magic[MAGIC_LEN];

enum request {
    REQ_PING = 1, REQ_EXEC, REQ_STDIN, REQ_SIGNAL, REQ_RESIZE, REQ_PUT, REQ_DATA, REQ_END, REQ_GET,
    REQ_QUIESCE, REQ_THAW, REQ_IDENTITY, REQ_SHUTDOWN, REQ_MAX = REQ_SHUTDOWN
};

enum reply {
    REP_OK = 0x20, REP_ERROR, REP_STDOUT, REP_STDERR, REP_EXIT, REP_WINDOW, REP_META, REP_DATA, REP_END, REP_STARTED
};

/* A cursor over a request's payload. Once `bad` is set every read gives zeros: check it once, at the end. */
struct cursor {
    const uint8_t *at;
    size_t left;
    bool bad;
};

uint64_t get_int(struct cursor *c, unsigned bytes);
/* A 16-bit length and bytes without NUL, as a fresh C string; NULL sets bad. The caller frees it. */
char *get_string(struct cursor *c);
const uint8_t *get_bytes(struct cursor *c, size_t count);
bool cursor_done(const struct cursor *c);

/* A growing byte queue: bytes are appended at the end and consumed from the front. */
struct queue {
    uint8_t *data;
    size_t start, len, cap;
};

bool queue_add(struct queue *q, const void *data, size_t len);
void queue_drop(struct queue *q, size_t len);
void queue_clear(struct queue *q);
void queue_free(struct queue *q);
static inline const uint8_t *queue_at(const struct queue *q) { return q->data ? q->data + q->start : (const uint8_t *)""; }

/* Append one message as frames; splits it wherever the magic would appear inside one frame. */
bool put_message(struct queue *q, uint8_t type, const void *data, size_t len);
bool put_int(struct queue *q, uint64_t value, unsigned bytes);
bool put_string(struct queue *q, const char *text);

/* What a parser finds in the byte stream. */
enum event { EV_NONE, EV_HELLO, EV_MESSAGE, EV_GARBAGE, EV_NOMEM };

struct parser {
    struct queue in;       /* bytes not yet understood */
    struct queue message;  /* fragments of the message at hand */
    size_t scanned;        /* bytes of `in` already searched for the magic */
    bool synced;           /* a hello has been seen */
    bool in_hello;         /* `in` begins with the magic */
    uint8_t message_type;
    uint8_t epoch[EPOCH_LEN];
};

bool parser_feed(struct parser *p, const void *data, size_t len);
/* The next event; EV_MESSAGE leaves type and payload in message_type and message until the next call. */
enum event parser_next(struct parser *p);
void parser_reset(struct parser *p);
void parser_free(struct parser *p);

#endif
