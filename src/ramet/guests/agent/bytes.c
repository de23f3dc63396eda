/* Cursor and queue: pure functions over memory. Integers are little-endian. */
#include "bytes.h"

#include <stdlib.h>
#include <string.h>

#define STRING_MAX 65535u

uint64_t get_int(struct cursor *c, unsigned bytes)
{
    const uint8_t *at = get_bytes(c, bytes);
    uint64_t value = 0;
    for (unsigned i = 0; at && i < bytes; i++)
        value |= (uint64_t)at[i] << (8 * i);
    return value;
}

const uint8_t *get_bytes(struct cursor *c, size_t count)
{
    if (c->bad || count > c->left) {
        c->bad = true;
        return NULL;
    }
    const uint8_t *at = c->at;
    c->at += count;
    c->left -= count;
    return at;
}

char *get_string(struct cursor *c)
{
    size_t len = (size_t)get_int(c, 2);
    const uint8_t *at = get_bytes(c, len);
    char *text = at && !memchr(at, 0, len) ? malloc(len + 1) : NULL;
    if (!text) {
        c->bad = true;
        return NULL;
    }
    memcpy(text, at, len);
    text[len] = 0;
    return text;
}

bool cursor_done(const struct cursor *c)
{
    return !c->bad && c->left == 0;
}

bool queue_add(struct queue *q, const void *data, size_t len)
{
    if (len == 0)
        return true;
    if (q->start + q->len + len > q->cap) {
        if (q->len)
            memmove(q->data, q->data + q->start, q->len);
        q->start = 0;
    }
    if (q->len + len > q->cap) {
        size_t cap = q->cap ? q->cap : 4096;
        while (cap < q->len + len)
            cap *= 2;
        uint8_t *grown = realloc(q->data, cap);
        if (!grown)
            return false;
        q->data = grown;
        q->cap = cap;
    }
    memcpy(q->data + q->start + q->len, data, len);
    q->len += len;
    return true;
}

void queue_drop(struct queue *q, size_t len)
{
    q->start += len;
    q->len -= len;
    if (q->len == 0)
        q->start = 0;
}

void queue_clear(struct queue *q)
{
    q->start = q->len = 0;
}

void queue_free(struct queue *q)
{
    free(q->data);
    memset(q, 0, sizeof *q);
}

bool put_int(struct queue *q, uint64_t value, unsigned bytes)
{
    uint8_t raw[8];
    for (unsigned i = 0; i < bytes; i++)
        raw[i] = (uint8_t)(value >> (8 * i));
    return queue_add(q, raw, bytes);
}

bool put_string(struct queue *q, const char *text)
{
    size_t len = strnlen(text, STRING_MAX);
    return put_int(q, len, 2) && queue_add(q, text, len);
}
