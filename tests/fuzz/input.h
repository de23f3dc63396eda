/* A fuzzer's input: bytes that are drawn as decisions, and the rest as the stream. */
#ifndef RAMET_FUZZ_INPUT_H
#define RAMET_FUZZ_INPUT_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define CUTS_MAX 16
#define FLAG_SERIAL 0x20 /* the stream outlives its clients */
#define FLAG_SLOW 0x40   /* the client does not read for long */

struct input {
    const uint8_t *stream;
    size_t len;
    size_t cuts[CUTS_MAX]; /* lengths of the stream's first pieces */
    size_t cut_count;
    unsigned flags;
};

/* The first byte holds flags and says how many cuts follow, of two bytes each. */
static inline struct input input_of(const uint8_t *data, size_t size)
{
    struct input in = {data, size, {0}, 0, 0};
    if (size == 0)
        return in;
    size_t wanted = (data[0] & 0x1F) % (CUTS_MAX + 1);
    in.flags = data[0] & (FLAG_SERIAL | FLAG_SLOW);
    in.stream++;
    in.len--;
    while (in.cut_count < wanted && in.len >= 2) {
        in.cuts[in.cut_count++] = (size_t)in.stream[0] | (size_t)in.stream[1] << 8;
        in.stream += 2;
        in.len -= 2;
    }
    return in;
}

/* Our own assert: it stays in every build. */
#define CHECK(fact)      \
    do {                 \
        if (!(fact))     \
            abort();     \
    } while (0)

#endif
