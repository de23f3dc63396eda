/* The parser and the encoder as a library for tests that compare them with wire.py. */
#include "proto.h"

#include <stdlib.h>

struct parser *shim_parser(void);
void shim_parser_free(struct parser *p);
int shim_next(struct parser *p, uint8_t *type, const uint8_t **data, size_t *len);
struct queue *shim_encode(uint8_t type, const uint8_t *payload, size_t len, const uint8_t **data, size_t *out_len);
void shim_queue_free(struct queue *q);

struct parser *shim_parser(void)
{
    return calloc(1, sizeof(struct parser));
}

void shim_parser_free(struct parser *p)
{
    parser_free(p);
    free(p);
}

int shim_next(struct parser *p, uint8_t *type, const uint8_t **data, size_t *len)
{
    enum event event = parser_next(p);
    *type = p->type;
    *data = queue_at(&p->message);
    *len = p->message.len;
    return (int)event;
}

struct queue *shim_encode(uint8_t type, const uint8_t *payload, size_t len, const uint8_t **data, size_t *out_len)
{
    struct queue *q = calloc(1, sizeof *q);
    if (!q || !put_message(q, type, payload, len))
        abort();
    *data = queue_at(q);
    *out_len = q->len;
    return q;
}

void shim_queue_free(struct queue *q)
{
    queue_free(q);
    free(q);
}
