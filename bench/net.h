/* What the programs of this folder share: growable buffers, sockets, a timer on epoll,
 * and just enough HTTP/1.1. Header-only, so that each program is one `cc` call. */
#ifndef SPILLWAY_BENCH_NET_H
#define SPILLWAY_BENCH_NET_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define STAMP_MARK '@' /* stands before a stamp and nowhere else in a mock's body */
#define STAMP_DIGITS 19
#define HEAD_BYTES_MAX 16384
#define SECOND_NS 1000000000ull

static inline uint64_t now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * SECOND_NS + (uint64_t)ts.tv_nsec;
}

__attribute__((format(printf, 1, 2), noreturn)) static inline void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(2);
}

static inline void *must(void *memory) {
    if (!memory) die("out of memory");
    return memory;
}

/* --- flags ---------------------------------------------------------------------------------- */

/* Returns the number given for a flag; dies on anything else, naming the flag. */
static inline double flag_number(const char *name, const char *text) {
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= 0)) die("--%s %s: a number >= 0 is wanted", name, text);
    return value;
}

/* --- buffers -------------------------------------------------------------------------------- */

struct buf {
    char *data;
    size_t len, cap;
};

static inline void buf_reserve(struct buf *b, size_t more) {
    if (b->len + more <= b->cap) return;
    b->cap = (b->len + more) * 2;
    b->data = must(realloc(b->data, b->cap));
}

static inline void buf_append(struct buf *b, const void *bytes, size_t count) {
    if (!count) return;
    buf_reserve(b, count);
    memcpy(b->data + b->len, bytes, count);
    b->len += count;
}

static inline void buf_drop_front(struct buf *b, size_t count) {
    b->len -= count;
    if (b->len) memmove(b->data, b->data + count, b->len);
}

static inline void buf_free(struct buf *b) {
    free(b->data);
    *b = (struct buf){0};
}

/* --- HTTP ----------------------------------------------------------------------------------- */

/* Returns the length of a complete head, its blank line included, or 0 if there is none yet. */
static inline size_t head_length(const char *data, size_t len) {
    const char *end = memmem(data, len, "\r\n\r\n", 4);
    return end ? (size_t)(end - data) + 4 : 0;
}

/* Returns the value of a header (name in lower case) up to its line end, or NULL. */
static inline const char *header(const char *head, size_t len, const char *name) {
    size_t name_len = strlen(name);
    const char *line = head, *end = head + len;
    while ((line = memchr(line, '\n', (size_t)(end - line))) != NULL) {
        line++;
        if ((size_t)(end - line) > name_len && line[name_len] == ':' &&
            !strncasecmp(line, name, name_len)) {
            for (line += name_len + 1; *line == ' '; line++) {}
            return line;
        }
    }
    return NULL;
}

/* --- sockets -------------------------------------------------------------------------------- */

static inline struct sockaddr_in loopback(int port) {
    return (struct sockaddr_in){.sin_family = AF_INET,
                                .sin_port = htons((uint16_t)port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static inline void no_delay(int fd) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
}

/* Listens on a port of the loopback, 0 for any free one, and prints "listening PORT". */
static inline int listen_on(int port) {
    struct sockaddr_in address = loopback(port);
    socklen_t len = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(fd, (struct sockaddr *)&address, len) || listen(fd, 4096))
        die("port %d: %s", port, strerror(errno));
    getsockname(fd, (struct sockaddr *)&address, &len);
    printf("listening %d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

/* What every program of this folder does first: no orphans, and all the files it may open. */
static inline void begin_program(void) {
    struct rlimit limit;
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static inline void watch(int epoll, int op, int fd, uint32_t events, void *tag) {
    struct epoll_event event = {.events = events, .data.ptr = tag};
    if (epoll_ctl(epoll, op, fd, &event)) die("epoll_ctl: %s", strerror(errno));
}

/* A one-shot timer at an absolute CLOCK_MONOTONIC time; 0 disarms it. epoll_wait alone rounds to a
 * millisecond, which would bunch the events of many streams. */
static inline void arm(int timer, uint64_t due_ns) {
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)(due_ns / SECOND_NS),
                                           .tv_nsec = (long)(due_ns % SECOND_NS)}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

static inline void timer_clear(int timer) {
    uint64_t fired;
    if (read(timer, &fired, sizeof fired) < 0 && errno != EAGAIN)
        die("timerfd: %s", strerror(errno));
}

#endif
