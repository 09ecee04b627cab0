/* A mock vLLM node: one epoll thread that answers fast enough never to be what is measured.
 *
 * POST with "do_remote_decode": true -> the prefill leg: JSON with usage and kv_transfer_params
 * POST with "stream": true           -> SSE, each event its own send with a clock stamp in it
 * POST, anything else                -> a JSON completion
 * GET /health, /v1/models, /version, /spillway/reports, /counts (what was asked of this mock so
 * far), /spacing-us/N (from now on N us between the events of a stream)
 *
 * /spillway/reports is 404, as on a stock engine, unless --report LINE gives the JSON line to send
 * for ever; in it @SEQ becomes a counter and @SEEN the last dispatch, as "router": id. */
#include "net.h"

#include <getopt.h>
#include <inttypes.h>
#include <sys/queue.h>

enum state { READING, PREFILLING, STREAMING, REPORTING };

struct conn {
    int fd;
    enum state state;
    struct buf in, out;
    uint64_t due_ns; /* while it is on `waiting`, which is in every state but READING */
    long chunks_left;
    bool broken;
    TAILQ_ENTRY(conn) next;
};

static TAILQ_HEAD(waiting_head, conn) waiting = TAILQ_HEAD_INITIALIZER(waiting); /* by due_ns */
static int epoll_fd, timer_fd, listen_fd;

static struct {
    int port;
    long chunks;
    size_t chunk_bytes;
    uint64_t spacing_ns, prefill_ns, report_ns;
    const char *report;
} options = {.chunks = 64, .chunk_bytes = 235, .spacing_ns = 10000000, .report_ns = 20000000};

static struct {
    uint64_t prefill, pulled, local, reports, unknown, broken;
} counts;

static char dispatch_seen[128]; /* "router": id, ready to be put into a report */
static uint64_t report_seq;

/* --- sending -------------------------------------------------------------------------------- */

static void put(struct conn *c, const void *bytes, size_t count) {
    size_t sent = 0;
    if (!c->out.len && !c->broken) {
        ssize_t n = send(c->fd, bytes, count, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN) c->broken = true;
        sent = n > 0 ? (size_t)n : 0;
    }
    if (sent == count || c->broken) return;
    if (!c->out.len) watch(epoll_fd, EPOLL_CTL_MOD, c->fd, EPOLLIN | EPOLLOUT, c);
    buf_append(&c->out, (const char *)bytes + sent, count - sent);
}

static void flush(struct conn *c) {
    if (!c->out.len) return;
    ssize_t n = send(c->fd, c->out.data, c->out.len, MSG_NOSIGNAL);
    if (n < 0) {
        c->broken = errno != EAGAIN;
        return;
    }
    buf_drop_front(&c->out, (size_t)n);
    if (!c->out.len) watch(epoll_fd, EPOLL_CTL_MOD, c->fd, EPOLLIN, c);
}

static void answer(struct conn *c, const char *status, const char *body) {
    static struct buf page;
    size_t body_len = strlen(body);
    page.len = 0;
    buf_reserve(&page, body_len + 256);
    page.len = (size_t)sprintf(page.data,
                               "HTTP/1.1 %s\r\nserver: mock\r\ncontent-type: application/json\r\n"
                               "content-length: %zu\r\n\r\n", status, body_len);
    buf_append(&page, body, body_len);
    put(c, page.data, page.len);
}

static void put_chunk(struct conn *c, const char *text, size_t len) {
    static struct buf chunk;
    chunk.len = 0;
    buf_reserve(&chunk, len + 32);
    chunk.len = (size_t)sprintf(chunk.data, "%zx\r\n", len);
    buf_append(&chunk, text, len);
    buf_append(&chunk, "\r\n", 2);
    put(c, chunk.data, chunk.len);
}

/* --- waiting -------------------------------------------------------------------------------- */

/* Nearly every entry belongs at the tail, because most delays are equal. */
static void wait_until(struct conn *c, uint64_t due_ns) {
    struct conn *before = TAILQ_LAST(&waiting, waiting_head);
    c->due_ns = due_ns;
    while (before && before->due_ns > due_ns) before = TAILQ_PREV(before, waiting_head, next);
    if (before)
        TAILQ_INSERT_AFTER(&waiting, before, c, next);
    else
        TAILQ_INSERT_HEAD(&waiting, c, next);
}

/* --- answers -------------------------------------------------------------------------------- */

static void answer_prefill(struct conn *c) {
    static struct buf body;
    if (!body.len) { /* the same every time: made once */
        const char *start =
            "{\"id\":\"cmpl-mock-prefill\",\"object\":\"text_completion\",\"created\":1790000000,"
            "\"model\":\"mock\",\"choices\":[{\"index\":0,\"text\":\" a\",\"logprobs\":null,"
            "\"finish_reason\":\"length\",\"stop_reason\":null}],\"usage\":{\"prompt_tokens\":50,"
            "\"total_tokens\":51,\"completion_tokens\":1},\"kv_transfer_params\":{"
            "\"do_remote_prefill\":true,\"do_remote_decode\":false,\"remote_block_ids\":[[";
        const char *end =
            "]],\"remote_engine_id\":\"7d5f3ad2-1a41-4c5e-9d0b-0f4a8cf0a001\","
            "\"remote_request_id\":\"cmpl-mock-prefill-0-9a1b2c3d\",\"remote_host\":\"127.0.0.1\","
            "\"remote_port\":5600,\"tp_size\":1,\"dcp_size\":1,\"pp_size\":1,"
            "\"remote_num_tokens\":1024,\"remote_blocks_expiry_time\":1790000030.25,"
            "\"transfer_mode\":\"pull\",\"remote_prefill_cached_tokens\":0}}";
        buf_append(&body, start, strlen(start));
        for (int block = 0; block < 64; block++) { /* 1,024 tokens in blocks of 16 */
            char id[16];
            buf_append(&body, id, (size_t)sprintf(id, block ? ",%d" : "%d", 5000 + block));
        }
        buf_append(&body, end, strlen(end) + 1);
    }
    answer(c, "200 OK", body.data);
}

static void answer_completion(struct conn *c) {
    answer(c, "200 OK",
           "{\"id\":\"cmpl-mock\",\"object\":\"text_completion\",\"created\":1790000000,"
           "\"model\":\"mock\",\"choices\":[{\"index\":0,\"text\":\" a quick brown fox jumps "
           "over a dog\",\"logprobs\":null,\"finish_reason\":\"length\",\"stop_reason\":null}],"
           "\"usage\":{\"prompt_tokens\":50,\"total_tokens\":60,\"completion_tokens\":10}}");
}

static void start_stream(struct conn *c, const char *type) {
    char head[160];
    put(c, head, (size_t)sprintf(head, "HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: %s\r\n"
                                       "transfer-encoding: chunked\r\n\r\n", type));
}

static void put_event(struct conn *c) {
    static struct buf event;
    static const char start[] =
        "data: {\"id\":\"cmpl-mock\",\"object\":\"text_completion\",\"created\":1790000000,"
        "\"model\":\"mock\",\"choices\":[{\"index\":0,\"text\":\" fox\",\"logprobs\":null,"
        "\"finish_reason\":null}],\"stamp\":\"";
    static const char end[] = "\"}\n\n";
    const size_t stamp_at = sizeof start, end_len = sizeof end - 1;
    if (!event.len) { /* only the stamp differs from event to event */
        size_t len = options.chunk_bytes, least = stamp_at + STAMP_DIGITS + end_len;
        if (len < least) die("--chunk-bytes %zu: an event takes at least %zu", len, least);
        buf_reserve(&event, len + 1);
        memset(event.data, ' ', len);
        memcpy(event.data, start, sizeof start - 1);
        event.data[stamp_at - 1] = STAMP_MARK;
        memcpy(event.data + len - end_len, end, end_len);
        event.len = len;
    }
    char digits[STAMP_DIGITS + 1];
    sprintf(digits, "%0*" PRIu64, STAMP_DIGITS, now_ns());
    memcpy(event.data + stamp_at, digits, STAMP_DIGITS);
    put_chunk(c, event.data, event.len);
}

static void put_report(struct conn *c) {
    char line[4096], *to = line;
    report_seq++;
    for (const char *from = options.report; *from && to < line + sizeof line - 256;) {
        if (!strncmp(from, "@SEQ", 4)) {
            to += sprintf(to, "%" PRIu64, report_seq);
            from += 4;
        } else if (!strncmp(from, "@SEEN", 5)) {
            to += sprintf(to, "%s", dispatch_seen);
            from += 5;
        } else {
            *to++ = *from++;
        }
    }
    *to++ = '\n';
    counts.reports++;
    put_chunk(c, line, (size_t)(to - line));
}

static void answer_counts(struct conn *c) {
    char body[256];
    sprintf(body,
            "{\"prefill\":%" PRIu64 ",\"pulled\":%" PRIu64 ",\"local\":%" PRIu64
            ",\"reports\":%" PRIu64 ",\"unknown\":%" PRIu64 ",\"broken\":%" PRIu64 "}",
            counts.prefill, counts.pulled, counts.local, counts.reports, counts.unknown,
            counts.broken);
    answer(c, "200 OK", body);
}

/* --- requests ------------------------------------------------------------------------------- */

/* Whether `"key": true` stands in the body. A quoted key cannot occur inside a JSON string. */
static bool says_true(const char *body, size_t len, const char *key) {
    const char *end = body + len;
    for (size_t key_len = strlen(key); (body = memmem(body, (size_t)(end - body), key, key_len));) {
        for (body += key_len; body < end && (*body == ' ' || *body == ':'); body++) {}
        if (body < end && *body == 't') return true;
    }
    return false;
}

static void handle_post(struct conn *c, const char *body, size_t len) {
    if (says_true(body, len, "\"do_remote_decode\"")) {
        counts.prefill++;
        if (!options.prefill_ns) return answer_prefill(c);
        c->state = PREFILLING;
        return wait_until(c, now_ns() + options.prefill_ns);
    }
    if (says_true(body, len, "\"do_remote_prefill\""))
        counts.pulled++;
    else
        counts.local++;
    if (!says_true(body, len, "\"stream\"")) return answer_completion(c);
    start_stream(c, "text/event-stream; charset=utf-8");
    c->state = STREAMING;
    c->chunks_left = options.chunks;
    wait_until(c, now_ns()); /* the first event leaves in this turn of the loop, on its own */
}

static void handle_get(struct conn *c, const char *path) {
    if (!strncmp(path, "/health ", 8)) return answer(c, "200 OK", "");
    if (!strncmp(path, "/counts ", 8)) return answer_counts(c);
    if (!strncmp(path, "/v1/models ", 11))
        return answer(c, "200 OK",
                      "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\","
                      "\"created\":1790000000,\"owned_by\":\"mock\",\"max_model_len\":131072}]}");
    if (!strncmp(path, "/spacing-us/", 12)) {
        options.spacing_ns = strtoull(path + 12, NULL, 10) * 1000;
        return answer(c, "200 OK", "{}");
    }
    if (!strncmp(path, "/version ", 9)) return answer(c, "200 OK", "{\"version\":\"0.32.0\"}");
    if (options.report && !strncmp(path, "/spillway/reports", 17)) {
        start_stream(c, "application/x-ndjson");
        c->state = REPORTING;
        return wait_until(c, now_ns());
    }
    counts.unknown++;
    answer(c, "404 Not Found", "{\"detail\":\"Not Found\"}");
}

static void note_dispatch(const char *head, size_t head_len) {
    const char *value = header(head, head_len, "x-spillway-dispatch");
    char router[64];
    uint64_t id;
    if (value && sscanf(value, "%63[^:\r\n]:%" SCNu64, router, &id) == 2)
        sprintf(dispatch_seen, "\"%s\":%" PRIu64, router, id);
}

/* Answers every complete request in the buffer; stops at one that takes time. */
static void handle_input(struct conn *c) {
    while (c->state == READING && !c->broken) {
        size_t head = c->in.len ? head_length(c->in.data, c->in.len) : 0;
        if (!head) {
            c->broken = c->in.len > HEAD_BYTES_MAX;
            return;
        }
        const char *data = c->in.data, *length = header(data, head, "content-length");
        size_t body = length ? strtoull(length, NULL, 10) : 0;
        if (c->in.len < head + body) return;
        note_dispatch(data, head);
        if (!strncmp(data, "POST ", 5) && length)
            handle_post(c, data + head, body);
        else if (!strncmp(data, "POST ", 5)) {
            counts.unknown++;
            answer(c, "411 Length Required", "{\"detail\":\"the mock reads no chunked bodies\"}");
            c->broken = true;
        } else if (!strncmp(data, "GET ", 4))
            handle_get(c, data + 4);
        else {
            counts.unknown++;
            answer(c, "405 Method Not Allowed", "{\"detail\":\"Method Not Allowed\"}");
            c->broken |= !strncmp(data, "PRI ", 4); /* HTTP/2: its frames cannot be skipped */
        }
        buf_drop_front(&c->in, head + body);
    }
}

/* --- the loop ------------------------------------------------------------------------------- */

static void close_conn(struct conn *c) {
    if (c->state != READING) {
        counts.broken++; /* somebody left in the middle of an answer */
        TAILQ_REMOVE(&waiting, c, next);
    }
    close(c->fd);
    buf_free(&c->in);
    buf_free(&c->out);
    free(c);
}

static void accept_all(void) {
    for (int fd; (fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        struct conn *c = must(calloc(1, sizeof *c));
        c->fd = fd;
        no_delay(fd);
        watch(epoll_fd, EPOLL_CTL_ADD, fd, EPOLLIN, c);
    }
}

static void serve_conn(struct conn *c, uint32_t events) {
    if (events & EPOLLOUT) flush(c);
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        buf_reserve(&c->in, 65536);
        ssize_t n = recv(c->fd, c->in.data + c->in.len, c->in.cap - c->in.len, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN)) c->broken = true;
        if (n > 0) c->in.len += (size_t)n;
        handle_input(c);
    }
    if (c->broken) close_conn(c);
}

/* One entry's turn. Events are due at fixed times: a late one does not push back the next. */
static void take_turn(struct conn *c) {
    TAILQ_REMOVE(&waiting, c, next);
    if (c->state == REPORTING) {
        put_report(c);
        wait_until(c, c->due_ns + options.report_ns);
    } else if (c->state == STREAMING && c->chunks_left > 0) {
        put_event(c);
        c->chunks_left--;
        wait_until(c, c->due_ns + options.spacing_ns);
    } else {
        if (c->state == STREAMING)
            put(c, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n", 24);
        else
            answer_prefill(c);
        c->state = READING;
        handle_input(c);
    }
    if (c->broken) close_conn(c);
}

static void read_flags(int argc, char **argv) {
    static const struct option flags[] = {
        {"port", 1, 0, 'p'},       {"chunks", 1, 0, 'n'},     {"chunk-bytes", 1, 0, 'b'},
        {"spacing-us", 1, 0, 's'}, {"prefill-us", 1, 0, 'f'}, {"report", 1, 0, 'r'},
        {"report-ms", 1, 0, 'm'},  {0, 0, 0, 0}};
    for (int at, flag; (flag = getopt_long(argc, argv, "", flags, &at)) != -1;) {
        if (flag == '?') die("flags: --port --chunks --chunk-bytes --spacing-us --prefill-us "
                             "--report --report-ms");
        double value = flag == 'r' ? 0 : flag_number(flags[at].name, optarg);
        if (flag == 'p') options.port = (int)value;
        if (flag == 'n') options.chunks = (long)value;
        if (flag == 'b') options.chunk_bytes = (size_t)value;
        if (flag == 's') options.spacing_ns = (uint64_t)(value * 1e3);
        if (flag == 'f') options.prefill_ns = (uint64_t)(value * 1e3);
        if (flag == 'r') options.report = optarg;
        if (flag == 'm') options.report_ns = (uint64_t)(value * 1e6);
    }
    if (!options.report_ns) die("--report-ms 0: must be more than 0");
}

int main(int argc, char **argv) {
    read_flags(argc, argv);
    begin_program();
    listen_fd = listen_on(options.port);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    watch(epoll_fd, EPOLL_CTL_ADD, listen_fd, EPOLLIN, &listen_fd);
    watch(epoll_fd, EPOLL_CTL_ADD, timer_fd, EPOLLIN, &timer_fd);
    for (;;) {
        struct epoll_event events[256];
        struct conn *first;
        for (int turns = 256; (first = TAILQ_FIRST(&waiting)) && first->due_ns <= now_ns();) {
            if (!turns--) break; /* overloaded: read what has come in as well */
            take_turn(first);
        }
        arm(timer_fd, first ? first->due_ns : 0);
        int ready = epoll_wait(epoll_fd, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            void *tag = events[i].data.ptr;
            if (tag == &listen_fd)
                accept_all();
            else if (tag == &timer_fd)
                timer_clear(timer_fd);
            else
                serve_conn(tag, events[i].events);
        }
    }
}
