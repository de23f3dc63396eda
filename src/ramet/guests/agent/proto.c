/* Frames in, frames out: pure functions over byte queues, with no system call in them, so that they can be fuzzed. */
#define _GNU_SOURCE
#include "proto.h"

#include <stdlib.h>
#include <string.h>

/* Every byte is 0x80 or more; a header begins below 0x80 and ends with 0x00, so no header can be part of it. */
const uint8_t ramet_magic[MAGIC_LEN] = {0xF5, 0xD2, 0xC1, 0xCD, 0xC5, 0xD4, 0xFA, 0xAF};

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
    if (!at || memchr(at, 0, len)) {
        c->bad = true;
        return NULL;
    }
    char *text = malloc(len + 1);
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
    size_t len = strlen(text);
    if (len > 65535)
        len = 65535;
    return put_int(q, len, 2) && queue_add(q, text, len);
}

static bool put_frame(struct queue *q, uint8_t type, const uint8_t *data, size_t len)
{
    uint8_t header[HEADER_LEN] = {type, (uint8_t)len, (uint8_t)(len >> 8), (uint8_t)(len >> 16), 0};
    return queue_add(q, header, HEADER_LEN) && queue_add(q, data, len);
}

bool put_message(struct queue *q, uint8_t type, const void *data, size_t len)
{
    const uint8_t *at = data;
    size_t rollback = q->len;
    for (;;) {
        size_t piece = len > PAYLOAD_MAX ? PAYLOAD_MAX : len;
        const uint8_t *found = piece ? memmem(at, piece, ramet_magic, MAGIC_LEN) : NULL;
        if (found)
            piece = (size_t)(found - at) + MAGIC_LEN / 2;
        bool last = piece == len;
        if (!put_frame(q, last ? type : (uint8_t)(type | MORE), at, piece)) {
            q->len = rollback;
            return false;
        }
        if (last)
            return true;
        at += piece;
        len -= piece;
    }
}

bool parser_feed(struct parser *p, const void *data, size_t len)
{
    return queue_add(&p->in, data, len);
}

void parser_reset(struct parser *p)
{
    queue_clear(&p->in);
    queue_clear(&p->message);
    p->scanned = 0;
    p->synced = p->in_hello = false;
}

void parser_free(struct parser *p)
{
    queue_free(&p->in);
    queue_free(&p->message);
}

/* Look for the last magic in what arrived since the last look; a hello cuts off everything before it. */
static void find_hello(struct parser *p)
{
    size_t from = p->scanned;
    while (p->in.len >= MAGIC_LEN && from + MAGIC_LEN <= p->in.len) {
        const uint8_t *base = queue_at(&p->in);
        const uint8_t *found = memmem(base + from, p->in.len - from, ramet_magic, MAGIC_LEN);
        if (!found)
            break;
        queue_drop(&p->in, (size_t)(found - base));
        queue_clear(&p->message);
        p->in_hello = true;
        from = MAGIC_LEN;
    }
    p->scanned = p->in.len >= MAGIC_LEN - 1 ? p->in.len - (MAGIC_LEN - 1) : 0;
    if (p->in_hello && p->scanned < MAGIC_LEN)
        p->scanned = MAGIC_LEN;
}

enum event parser_next(struct parser *p)
{
    if (p->message_type && !(p->message_type & MORE))
        queue_clear(&p->message);
    find_hello(p);
    if (p->in_hello) {
        if (p->in.len < HELLO_LEN)
            return EV_NONE;
        const uint8_t *at = queue_at(&p->in);
        bool known = at[MAGIC_LEN] == PROTOCOL_VERSION;
        memcpy(p->epoch, at + MAGIC_LEN + 1, EPOCH_LEN);
        queue_drop(&p->in, HELLO_LEN);
        p->scanned = p->scanned > HELLO_LEN ? p->scanned - HELLO_LEN : 0;
        p->in_hello = false;
        p->message_type = 0;
        p->synced = known;
        return known ? EV_HELLO : EV_GARBAGE;
    }
    if (!p->synced) {
        if (p->in.len > MAGIC_LEN - 1)
            queue_drop(&p->in, p->in.len - (MAGIC_LEN - 1));
        p->scanned = 0;
        return EV_NONE;
    }
    for (;;) {
        if (p->in.len < HEADER_LEN)
            return EV_NONE;
        const uint8_t *at = queue_at(&p->in);
        uint8_t type = at[0];
        size_t len = (size_t)at[1] | (size_t)at[2] << 8 | (size_t)at[3] << 16;
        bool continues = p->message_type & MORE;
        if (type >= 0x80 || at[4] != 0 || len > PAYLOAD_MAX || p->message.len + len > MESSAGE_MAX ||
            (continues && (type & ~MORE) != (p->message_type & ~MORE))) {
            p->synced = false;
            queue_clear(&p->message);
            return EV_GARBAGE;
        }
        if (p->in.len < HEADER_LEN + len)
            return EV_NONE;
        if (!queue_add(&p->message, at + HEADER_LEN, len))
            return EV_NOMEM;
        size_t used = HEADER_LEN + len;
        queue_drop(&p->in, used);
        p->scanned = p->scanned > used ? p->scanned - used : 0;
        p->message_type = type;
        if (!(type & MORE))
            return EV_MESSAGE;
    }
}
