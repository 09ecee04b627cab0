/* An open-loop or closed-loop load generator for one HTTP/1.1 server on the loopback: one epoll
 * thread, one JSON line at the end.
 *
 * --rate R          open loop: R requests a second, Poisson unless --constant, answers or not
 * --connections C   closed loop: C connections, each sending again as soon as it is answered;
 *                   prints "open C" once all of them have received their first body byte
 *
 * TTFT runs from the send to the first body byte. Transit of an event runs from the stamp that the
 * mock node put into it to the recv that brought it; both read CLOCK_MONOTONIC of one machine. */
#include "net.h"

#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <sys/queue.h>

enum state { CONNECTING, IDLE, HEAD, SIZE, DATA, DATA_END, TRAILER };

struct conn {
    int fd;
    enum state state;
    struct buf head;
    size_t sent_bytes, left_bytes; /* of the request; of the chunk or body */
    bool chunked, begun;           /* begun: the first body byte has come */
    int status, stamp_digits;      /* stamp_digits: how many of a stamp are still to come */
    uint64_t due_ns, sent_ns, stamp_ns;
    long events;
    LIST_ENTRY(conn) next; /* among the idle ones */
};

struct series {
    uint64_t *ns;
    size_t count, cap;
};

static struct {
    int port;
    double rate, duration_s, drain_s;
    long connections, expect, seed;
    size_t prompt_bytes;
    bool constant, stream;
    const char *path, *header;
} options = {.duration_s = 2, .drain_s = 5, .prompt_bytes = 200, .path = "/v1/completions"};

static struct {
    uint64_t sent, completed, bad_status, broken, refused, short_streams;
} counts;

static LIST_HEAD(idle_head, conn) idle = LIST_HEAD_INITIALIZER(idle);
static struct series ttft, transit, latency, lateness;
static struct buf request;
static long open_conns, begun_conns, in_flight;
static int epoll_fd, timer_fd;
static uint64_t end_ns;
static bool all_begun;

enum { WINDOW = 32, CONNECTIONS_MAX = 20000 };

/* --- figures -------------------------------------------------------------------------------- */

static void note(struct series *s, uint64_t ns) {
    if (s->count == s->cap) {
        s->cap = s->cap ? s->cap * 2 : 4096;
        s->ns = must(realloc(s->ns, s->cap * sizeof *s->ns));
    }
    s->ns[s->count++] = ns;
}

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static double quantile_us(const struct series *s, double frac) {
    double at = frac * (double)(s->count - 1);
    size_t low = (size_t)at, high = low + 1 < s->count ? low + 1 : low;
    double weight = at - (double)low;
    return ((1 - weight) * (double)s->ns[low] + weight * (double)s->ns[high]) / 1e3;
}

static void print_series(const char *name, struct series *s) {
    double sum = 0;
    if (!s->count) {
        printf(",\"%s\":null", name);
        return;
    }
    for (size_t i = 0; i < s->count; i++) sum += (double)s->ns[i];
    qsort(s->ns, s->count, sizeof *s->ns, by_value);
    printf(",\"%s\":{\"count\":%zu,\"mean\":%.2f,\"p50\":%.2f,\"p90\":%.2f,\"p99\":%.2f,"
           "\"max\":%.2f}", name, s->count, sum / (double)s->count / 1e3, quantile_us(s, 0.5),
           quantile_us(s, 0.9), quantile_us(s, 0.99), quantile_us(s, 1));
}

/* --- connections ---------------------------------------------------------------------------- */

static void open_conn(uint64_t due_ns);

static void close_conn(struct conn *c) {
    if (c->state == IDLE) LIST_REMOVE(c, next);
    if (c->state >= HEAD) in_flight--;
    if (c->begun) begun_conns--;
    close(c->fd);
    buf_free(&c->head);
    free(c);
    open_conns--;
}

/* Counts a request that will never be answered; a closed loop goes on with a new connection. */
static void fail(struct conn *c, uint64_t *count) {
    (*count)++;
    close_conn(c);
    if (options.connections && count == &counts.broken && now_ns() < end_ns) open_conn(now_ns());
}

/* Returns false when the connection is gone. */
static bool send_request(struct conn *c) {
    size_t left = request.len - c->sent_bytes;
    ssize_t n = send(c->fd, request.data + c->sent_bytes, left, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) {
        fail(c, &counts.broken);
        return false;
    }
    if (n > 0) c->sent_bytes += (size_t)n;
    bool more = c->sent_bytes < request.len;
    watch(epoll_fd, EPOLL_CTL_MOD, c->fd, more ? EPOLLIN | EPOLLOUT : EPOLLIN, c);
    return true;
}

static bool start_request(struct conn *c, uint64_t due_ns) {
    c->state = HEAD;
    c->head.len = 0;
    c->sent_bytes = 0;
    c->begun = false;
    c->stamp_digits = 0;
    c->events = 0;
    c->due_ns = due_ns;
    c->sent_ns = now_ns();
    counts.sent++;
    in_flight++;
    note(&lateness, c->sent_ns > due_ns ? c->sent_ns - due_ns : 0);
    return send_request(c);
}

static void open_conn(uint64_t due_ns) {
    struct sockaddr_in address = loopback(options.port);
    struct conn *c = must(calloc(1, sizeof *c));
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket: %s", strerror(errno));
    no_delay(c->fd);
    c->due_ns = due_ns;
    open_conns++;
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) {
        fail(c, &counts.refused);
        return;
    }
    watch(epoll_fd, EPOLL_CTL_ADD, c->fd, EPOLLOUT, c);
}

/* The answer is complete. Returns false when the connection is gone. */
static bool finish(struct conn *c, uint64_t at_ns) {
    bool whole = !options.expect || c->events == options.expect;
    in_flight--;
    if (c->begun) begun_conns--;
    c->begun = false;
    if (c->status != 200)
        counts.bad_status++;
    else if (!whole)
        counts.short_streams++;
    else {
        counts.completed++;
        note(&latency, at_ns - c->sent_ns);
    }
    if (options.connections && at_ns < end_ns) return start_request(c, at_ns);
    c->state = IDLE;
    LIST_INSERT_HEAD(&idle, c, next);
    return true;
}

/* --- the answer ----------------------------------------------------------------------------- */

static void read_body(struct conn *c, const char *data, size_t len, uint64_t at_ns) {
    if (!c->begun && len) {
        c->begun = true;
        if (c->status == 200) note(&ttft, at_ns - c->sent_ns);
        if (++begun_conns == options.connections && !all_begun) {
            all_begun = true;
            printf("open %ld\n", begun_conns);
            fflush(stdout);
        } else if (open_conns < options.connections && at_ns < end_ns)
            open_conn(at_ns);
    }
    for (const char *end = data + len; data < end;) {
        if (!c->stamp_digits) {
            data = memchr(data, STAMP_MARK, (size_t)(end - data));
            if (!data) return;
            data++;
            c->stamp_digits = STAMP_DIGITS;
            c->stamp_ns = 0;
        }
        for (; data < end && c->stamp_digits; data++, c->stamp_digits--)
            c->stamp_ns = c->stamp_ns * 10 + (uint64_t)(*data - '0');
        if (!c->stamp_digits) {
            c->events++;
            note(&transit, at_ns - c->stamp_ns);
        }
    }
}

/* Returns how many bytes belonged to the head, or 0 for an answer that cannot be read. */
static size_t read_head(struct conn *c, const char *data, size_t len) {
    size_t before = c->head.len;
    buf_append(&c->head, data, len);
    size_t head = head_length(c->head.data, c->head.len);
    if (!head) return c->head.len > HEAD_BYTES_MAX ? 0 : len;
    const char *length = header(c->head.data, head, "content-length");
    const char *coding = header(c->head.data, head, "transfer-encoding");
    c->chunked = coding && !strncasecmp(coding, "chunked", 7);
    if (sscanf(c->head.data, "HTTP/1.1 %d", &c->status) != 1 || (!length && !c->chunked)) return 0;
    c->state = c->chunked ? SIZE : DATA;
    c->left_bytes = c->chunked ? 0 : strtoull(length, NULL, 10);
    return head - before;
}

/* Reads one piece of the answer and returns its length; 0 means that it makes no sense. */
static size_t read_piece(struct conn *c, const char *data, size_t len, uint64_t at_ns) {
    if (c->state == HEAD) return read_head(c, data, len);
    if (c->state == DATA) {
        size_t take = len < c->left_bytes ? len : c->left_bytes;
        read_body(c, data, take, at_ns);
        c->left_bytes -= take;
        if (!c->left_bytes) c->state = DATA_END;
        return take;
    }
    /* The rest is framing: digits, CR and LF, one byte at a time. */
    if (c->state == SIZE && *data != '\r' && *data != '\n') {
        const char *digits = "0123456789abcdef", *digit = strchr(digits, *data | 0x20);
        if (!digit) return 0;
        c->left_bytes = c->left_bytes * 16 + (size_t)(digit - digits);
    } else if (*data == '\n') {
        if (c->state == SIZE)
            c->state = c->left_bytes ? DATA : TRAILER;
        else if (c->state == DATA_END)
            c->state = SIZE;
        else
            return SIZE_MAX; /* the blank line after the last chunk */
    }
    return 1;
}

static void read_answer(struct conn *c, const char *data, size_t len, uint64_t at_ns) {
    while (len) {
        size_t used = c->state >= HEAD ? read_piece(c, data, len, at_ns) : 0;
        bool complete = used == SIZE_MAX || (c->state >= DATA && !c->chunked && !c->left_bytes);
        if (!used) {
            fail(c, &counts.broken);
            return;
        }
        if (used == SIZE_MAX) used = 1;
        data += used;
        len -= used;
        if (complete && !finish(c, at_ns)) return;
    }
}

/* --- the loop ------------------------------------------------------------------------------- */

static void serve_conn(struct conn *c, uint32_t events) {
    static char data[262144];
    if (c->state == CONNECTING) {
        if (events & (EPOLLERR | EPOLLHUP))
            fail(c, &counts.refused);
        else
            start_request(c, c->due_ns);
        return;
    }
    if (events & EPOLLOUT && c->sent_bytes < request.len && !send_request(c)) return;
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    ssize_t n = recv(c->fd, data, sizeof data, 0);
    if (n > 0)
        read_answer(c, data, (size_t)n, now_ns());
    else if (n == 0 || errno != EAGAIN) {
        if (c->state == IDLE)
            close_conn(c); /* the server may close an idle connection */
        else
            fail(c, &counts.broken);
    }
}

static uint64_t after(uint64_t due_ns) {
    double gap_s = options.constant ? 1 / options.rate : -log(1 - drand48()) / options.rate;
    return due_ns + (uint64_t)(gap_s * 1e9);
}

static void arrive(uint64_t due_ns) {
    struct conn *c = LIST_FIRST(&idle);
    if (c) {
        LIST_REMOVE(c, next);
        start_request(c, due_ns);
    } else if (open_conns < CONNECTIONS_MAX)
        open_conn(due_ns);
    else
        counts.refused++;
}

static void run(void) {
    uint64_t start_ns = now_ns(), drained_ns, due_ns = start_ns;
    end_ns = start_ns + (uint64_t)(options.duration_s * 1e9);
    drained_ns = end_ns + (uint64_t)(options.drain_s * 1e9);
    for (long i = 0; i < WINDOW && i < options.connections; i++) open_conn(start_ns);
    for (;;) {
        struct epoll_event events[256];
        uint64_t at_ns = now_ns();
        bool sending = at_ns < end_ns, open_loop = options.rate > 0;
        if (sending)
            for (; open_loop && due_ns <= at_ns; due_ns = after(due_ns)) arrive(due_ns);
        else if (!in_flight || at_ns >= drained_ns)
            return;
        arm(timer_fd, !sending ? drained_ns : open_loop && due_ns < end_ns ? due_ns : end_ns);
        int ready = epoll_wait(epoll_fd, events, 256, -1);
        for (int i = 0; i < ready; i++)
            if (events[i].data.ptr == &timer_fd)
                timer_clear(timer_fd);
            else
                serve_conn(events[i].data.ptr, events[i].events);
    }
}

static void build_request(void) {
    struct buf body = {0};
    char text[512];
    buf_append(&body, text, (size_t)sprintf(text, "{\"model\":\"mock\",\"max_tokens\":%ld,"
                                            "\"temperature\":0.0,\"stream\":%s,\"prompt\":\"",
                                            options.expect ? options.expect : 64,
                                            options.stream ? "true" : "false"));
    for (size_t i = 0; i < options.prompt_bytes; i++) buf_append(&body, &"lorem ipsum "[i % 12], 1);
    buf_append(&body, "\"}", 2);
    buf_append(&request, text, (size_t)snprintf(text, sizeof text,
                                                "POST %s HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n"
                                                "content-type: application/json\r\n%s%s"
                                                "content-length: %zu\r\n\r\n", options.path,
                                                options.port, options.header ? options.header : "",
                                                options.header ? "\r\n" : "", body.len));
    buf_append(&request, body.data, body.len);
    buf_free(&body);
}

static void read_flags(int argc, char **argv) {
    static const struct option flags[] = {
        {"port", 1, 0, 'p'},        {"rate", 1, 0, 'r'},     {"duration-s", 1, 0, 'd'},
        {"drain-s", 1, 0, 'w'},     {"seed", 1, 0, 'e'},     {"connections", 1, 0, 'c'},
        {"prompt-bytes", 1, 0, 'b'}, {"path", 1, 0, 'P'},    {"header", 1, 0, 'H'},
        {"constant", 0, 0, 'C'},    {"stream", 0, 0, 's'},   {"expect-events", 1, 0, 'n'},
        {0, 0, 0, 0}};
    for (int at, flag; (flag = getopt_long(argc, argv, "", flags, &at)) != -1;) {
        if (flag == '?') die("flags: --port --rate --connections --duration-s --drain-s --seed "
                             "--constant --stream --expect-events --prompt-bytes --path --header");
        bool number = flags[at].has_arg && flag != 'P' && flag != 'H';
        double value = number ? flag_number(flags[at].name, optarg) : 0;
        if (flag == 'p') options.port = (int)value;
        if (flag == 'r') options.rate = value;
        if (flag == 'd') options.duration_s = value;
        if (flag == 'w') options.drain_s = value;
        if (flag == 'e') options.seed = (long)value;
        if (flag == 'c') options.connections = (long)value;
        if (flag == 'b') options.prompt_bytes = (size_t)value;
        if (flag == 'n') options.expect = (long)value;
        if (flag == 'P') options.path = optarg;
        if (flag == 'H') options.header = optarg;
        if (flag == 'C') options.constant = true;
        if (flag == 's') options.stream = true;
    }
    if (!options.port) die("--port is missing");
    if ((options.rate > 0) == (options.connections > 0)) die("give --rate or --connections");
}

int main(int argc, char **argv) {
    read_flags(argc, argv);
    begin_program();
    srand48(options.seed);
    build_request();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    watch(epoll_fd, EPOLL_CTL_ADD, timer_fd, EPOLLIN, &timer_fd);
    uint64_t start_ns = now_ns();
    run();
    double elapsed_s = (double)(now_ns() - start_ns) / 1e9;
    printf("{\"sent\":%" PRIu64 ",\"completed\":%" PRIu64 ",\"bad_status\":%" PRIu64
           ",\"broken\":%" PRIu64 ",\"refused\":%" PRIu64 ",\"short_streams\":%" PRIu64
           ",\"unfinished\":%ld,\"elapsed_s\":%.4f", counts.sent, counts.completed,
           counts.bad_status, counts.broken, counts.refused, counts.short_streams, in_flight,
           elapsed_s);
    print_series("ttft_us", &ttft);
    print_series("transit_us", &transit);
    print_series("latency_us", &latency);
    print_series("lateness_us", &lateness);
    puts("}");
    return 0;
}
