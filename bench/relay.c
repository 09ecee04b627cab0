/* The floor: a bare TCP relay that looks at nothing. One recv and one send for what each wake-up
 * brings, in C. What it costs is what the kernel charges anybody for passing a chunk on. */
#include "net.h"

struct conn {
    int fd;
    bool closed;
    struct conn *peer;
};

static int epoll_fd, listen_fd;

static struct conn *new_conn(int fd) {
    struct conn *c = must(calloc(1, sizeof *c));
    c->fd = fd;
    no_delay(fd);
    return c;
}

static void accept_one(int upstream_port) {
    struct sockaddr_in address = loopback(upstream_port);
    int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    int upstream = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(upstream, (struct sockaddr *)&address, sizeof address))
        die("upstream port %d: %s", upstream_port, strerror(errno));
    struct conn *near = new_conn(fd), *far = new_conn(upstream);
    near->peer = far;
    far->peer = near;
    watch(epoll_fd, EPOLL_CTL_ADD, fd, EPOLLIN, near);
    watch(epoll_fd, EPOLL_CTL_ADD, upstream, EPOLLIN, far);
}

/* A side that closes closes the other; both are freed once both have been seen to end. */
static void relay(struct conn *c) {
    static char data[262144];
    ssize_t n = recv(c->fd, data, sizeof data, MSG_DONTWAIT);
    if (n > 0) {
        for (ssize_t at = 0, sent; at < n; at += sent) {
            sent = send(c->peer->fd, data + at, (size_t)(n - at), MSG_NOSIGNAL);
            if (sent < 0 && errno == EAGAIN) sent = 0; /* a slow reader is waited for */
            if (sent < 0) break;
        }
        return;
    }
    if (n < 0 && errno == EAGAIN) return;
    watch(epoll_fd, EPOLL_CTL_DEL, c->fd, 0, NULL);
    c->closed = true;
    shutdown(c->peer->fd, SHUT_RDWR);
    if (!c->peer->closed) return;
    close(c->fd);
    close(c->peer->fd);
    free(c->peer);
    free(c);
}

int main(int argc, char **argv) {
    if (argc != 2) die("usage: relay UPSTREAM_PORT");
    int upstream_port = (int)flag_number("upstream", argv[1]);
    begin_program();
    listen_fd = listen_on(0);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    watch(epoll_fd, EPOLL_CTL_ADD, listen_fd, EPOLLIN, NULL);
    for (;;) {
        struct epoll_event events[256];
        int ready = epoll_wait(epoll_fd, events, 256, -1);
        for (int i = 0; i < ready; i++)
            if (events[i].data.ptr)
                relay(events[i].data.ptr);
            else
                accept_one(upstream_port);
    }
}
