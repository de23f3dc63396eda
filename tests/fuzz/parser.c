/* Fuzz the parser and the encoder (proto.c, bytes.c).
 *
 * However a stream is cut, what follows its last hello is understood alike; nothing grows past its limit; and what is encoded comes
 * back. */
#define _GNU_SOURCE
#include "input.h"
#include "proto.h"

#include <string.h>

#define EVENTS_MAX 4096

struct seen {
    enum event event;
    uint8_t type;
    size_t len;
    uint64_t sum;
};

struct log {
    struct seen events[EVENTS_MAX];
    size_t count; /* since the last hello */
};

static uint64_t sum_of(const uint8_t *data, size_t len)
{
    uint64_t sum = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < len; i++)
        sum = (sum ^ data[i]) * 1099511628211u;
    return sum;
}

static void take_events(struct parser *p, struct log *log)
{
    for (;;) {
        enum event event = parser_next(p);
        CHECK(p->message.len <= MESSAGE_MAX);
        CHECK(p->scanned <= p->in.len);
        if (event == EV_NONE)
            return;
        if (event == EV_HELLO || event == EV_VERSION)
            log->count = 0;
        struct seen seen = {.event = event, .type = event == EV_MESSAGE ? p->type : 0};
        if (event == EV_MESSAGE) {
            CHECK(p->synced && p->type < 0x80 && !(p->type & MORE));
            seen.len = p->message.len;
            seen.sum = sum_of(queue_at(&p->message), p->message.len);
        }
        if (log->count < EVENTS_MAX)
            log->events[log->count++] = seen;
    }
}

static void parse(struct parser *p, const struct input *in, struct log *log)
{
    size_t at = 0;
    for (size_t i = 0; i <= in->cut_count; i++) {
        size_t left = in->len - at, len = i < in->cut_count && in->cuts[i] < left ? in->cuts[i] : left;
        CHECK(parser_feed(p, in->stream + at, len));
        take_events(p, log);
        at += len;
    }
    CHECK(at == in->len);
    CHECK(p->in.len <= HEADER_LEN + PAYLOAD_MAX + MAGIC_LEN);
}

/* Two magics closer than a hello is long: which of them is the hello depends on the cuts, and no client sends that. */
static bool has_tangled_hellos(const struct input *in)
{
    const uint8_t *before = NULL, *at = in->stream, *end = in->stream + in->len;
    while ((at = memmem(at, (size_t)(end - at), ramet_magic, MAGIC_LEN))) {
        if (before && at - before < HELLO_LEN)
            return true;
        before = at++;
    }
    return false;
}

static void check_cuts(const struct input *in)
{
    static struct log cut, whole;
    struct parser one = {0}, other = {0};
    struct input uncut = *in;
    uncut.cut_count = cut.count = whole.count = 0;
    parse(&one, in, &cut);
    parse(&other, &uncut, &whole);
    if (!has_tangled_hellos(in) && one.synced && other.synced) {
        CHECK(cut.count == whole.count);
        for (size_t i = 0; i < cut.count; i++)
            CHECK(memcmp(&cut.events[i], &whole.events[i], sizeof cut.events[i]) == 0);
    }
    parser_free(&one);
    parser_free(&other);
}

/* One message, behind a hello, in the input's pieces. */
static void check_round_trip(const struct input *in)
{
    static struct log log;
    static const uint8_t epoch[EPOCH_LEN] = {1, 2, 3};
    struct queue q = {0};
    struct parser p = {0};
    uint8_t type = in->cut_count % 0x3F + 1;
    log.count = 0;
    CHECK(put_hello(&q, epoch) && put_message(&q, type, in->stream, in->len));
    struct input encoded = *in;
    encoded.stream = queue_at(&q);
    encoded.len = q.len;
    parse(&p, &encoded, &log);
    if (in->len <= MESSAGE_MAX) {
        CHECK(log.count == 2 && log.events[0].event == EV_HELLO && log.events[1].event == EV_MESSAGE);
        CHECK(log.events[1].type == type && log.events[1].len == in->len);
        CHECK(log.events[1].sum == sum_of(in->stream, in->len));
    }
    parser_free(&p);
    queue_free(&q);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = input_of(data, size);
#ifdef PLANTED_CRASH
    CHECK(size < 200); /* so that a test sees a crash being reported */
#endif
    check_cuts(&in);
    check_round_trip(&in);
    return 0;
}
