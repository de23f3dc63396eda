/* Bytes: a cursor that reads a payload and checks every length, and a queue that grows. */
#ifndef RAMET_BYTES_H
#define RAMET_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Once `bad` is set every read gives zeros: check it once, at the end. */
struct cursor {
    const uint8_t *at;
    size_t left;
    bool bad;
};

uint64_t get_int(struct cursor *c, unsigned bytes);
/* A 16-bit length and bytes without NUL, as a fresh C string; NULL sets bad. The caller frees it. */
char *get_string(struct cursor *c);
const uint8_t *get_bytes(struct cursor *c, size_t count);
/* All of it was read, and nothing was missing. */
bool cursor_done(const struct cursor *c);

/* Bytes are appended at the end and consumed from the front. All zeros is an empty queue. */
struct queue {
    uint8_t *data;
    size_t start, len, cap;
};

/* False without memory; the queue is then what it was. */
bool queue_add(struct queue *q, const void *data, size_t len);
void queue_drop(struct queue *q, size_t len);
void queue_clear(struct queue *q);
void queue_free(struct queue *q);
static inline const uint8_t *queue_at(const struct queue *q) { return q->data ? q->data + q->start : (const uint8_t *)""; }

bool put_int(struct queue *q, uint64_t value, unsigned bytes);
bool put_string(struct queue *q, const char *text);

#endif
