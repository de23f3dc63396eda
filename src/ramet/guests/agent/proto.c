/* Frames in, frames out. No system call in here, so that all of it can be fuzzed. */
#define _GNU_SOURCE
#include "proto.h"

#include <string.h>

/* Every byte is 0x80 or more; a header begins below 0x80 and ends with 0x00, so no part of a header is part of the magic. */
const uint8_t ramet_magic[MAGIC_LEN] = {0xF5, 0xD2, 0xC1, 0xCD, 0xC5, 0xD4, 0xFA, 0xAF};

/* How many of the last bytes a magic could begin with. */
static size_t magic_begun(const uint8_t *data, size_t len)
{
    for (size_t n = len < MAGIC_LEN ? len : MAGIC_LEN - 1; n; n--)
        if (memcmp(data + len - n, ramet_magic, n) == 0)
            return n;
    return 0;
}

bool put_hello(struct queue *q, const uint8_t epoch[EPOCH_LEN])
{
    uint8_t hello[HELLO_LEN];
    memcpy(hello, ramet_magic, MAGIC_LEN);
    hello[MAGIC_LEN] = PROTOCOL_VERSION;
    memcpy(hello + MAGIC_LEN + 1, epoch, EPOCH_LEN);
    return queue_add(q, hello, HELLO_LEN);
}

static bool put_frame(struct queue *q, uint8_t type, const uint8_t *data, size_t len)
{
    uint8_t header[HEADER_LEN] = {type, (uint8_t)len, (uint8_t)(len >> 8), (uint8_t)(len >> 16), 0};
    return queue_add(q, header, HEADER_LEN) && queue_add(q, data, len);
}

bool put_message(struct queue *q, uint8_t type, const void *data, size_t len)
{
    const uint8_t *at = data;
    size_t before = q->len;
    for (;;) {
        size_t piece = len > PAYLOAD_MAX ? PAYLOAD_MAX : len;
        const uint8_t *found = piece ? memmem(at, piece, ramet_magic, MAGIC_LEN) : NULL;
        if (found)
            piece = (size_t)(found - at) + MAGIC_LEN / 2;
        bool last = piece == len && (len == 0 || magic_begun(at, piece) == 0);
        if (!put_frame(q, last ? type : (uint8_t)(type | MORE), at, piece)) {
            q->len = before;
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
    p->synced = p->in_hello = p->complete = false;
    p->type = 0;
}

void parser_free(struct parser *p)
{
    queue_free(&p->in);
    queue_free(&p->message);
}

static void drop(struct parser *p, size_t len)
{
    queue_drop(&p->in, len);
    p->scanned = p->scanned > len ? p->scanned - len : 0;
}

/* Look for the last magic in what arrived since the last look; a hello cuts off everything before it. */
static void find_hello(struct parser *p)
{
    size_t from = p->in_hello && p->scanned < MAGIC_LEN ? MAGIC_LEN : p->scanned;
    while (p->in.len >= from + MAGIC_LEN) {
        const uint8_t *base = queue_at(&p->in);
        const uint8_t *found = memmem(base + from, p->in.len - from, ramet_magic, MAGIC_LEN);
        if (!found)
            break;
        queue_drop(&p->in, (size_t)(found - base));
        queue_clear(&p->message);
        p->in_hello = true;
        from = MAGIC_LEN;
    }
    size_t sure = p->in.len >= MAGIC_LEN ? p->in.len - (MAGIC_LEN - 1) : 0;
    p->scanned = sure > from ? sure : from < p->in.len ? from : p->in.len;
}

static enum event take_hello(struct parser *p)
{
    if (p->in.len < HELLO_LEN)
        return EV_NONE;
    const uint8_t *at = queue_at(&p->in);
    p->synced = at[MAGIC_LEN] == PROTOCOL_VERSION;
    memcpy(p->epoch, at + MAGIC_LEN + 1, EPOCH_LEN);
    drop(p, HELLO_LEN);
    p->in_hello = false;
    p->type = 0;
    return p->synced ? EV_HELLO : EV_VERSION;
}

static enum event lose(struct parser *p)
{
    p->synced = false;
    p->type = 0;
    queue_clear(&p->message);
    return EV_GARBAGE;
}

/* Put frames together. The last bytes may be the beginning of a hello that cuts off what came before: until the next byte
 * decides it they are not touched, not even to complete the half frame of a client that was killed. */
static enum event take_frames(struct parser *p)
{
    for (;;) {
        const uint8_t *at = queue_at(&p->in);
        size_t have = p->in.len - magic_begun(at, p->in.len);
        if (have < HEADER_LEN)
            return EV_NONE;
        uint8_t type = at[0];
        size_t len = (size_t)at[1] | (size_t)at[2] << 8 | (size_t)at[3] << 16;
        bool continues = p->type & MORE;
        if (type >= 0x80 || at[4] != 0 || len > PAYLOAD_MAX || p->message.len + len > MESSAGE_MAX ||
            (continues && (type & ~MORE) != (p->type & ~MORE)))
            return lose(p);
        if (have < HEADER_LEN + len)
            return EV_NONE;
        if (!queue_add(&p->message, at + HEADER_LEN, len))
            return lose(p);
        drop(p, HEADER_LEN + len);
        p->type = type;
        if (!(type & MORE)) {
            p->complete = true;
            return EV_MESSAGE;
        }
    }
}

enum event parser_next(struct parser *p)
{
    if (p->complete) {
        queue_clear(&p->message);
        p->complete = false;
    }
    find_hello(p);
    if (p->in_hello)
        return take_hello(p);
    if (p->synced)
        return take_frames(p);
    if (p->in.len > MAGIC_LEN - 1)
        drop(p, p->in.len - (MAGIC_LEN - 1));
    return EV_NONE;
}
