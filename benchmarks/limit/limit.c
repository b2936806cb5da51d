/* The least that a prefork server can do, so that others are measured by what the kernel costs.
 *
 *     limit echo|http block|epoll WORKERS PORT|/path      limit udp block WORKERS PORT
 *
 * It knows the requests that benchmarks/load.py sends, and no others: no timeouts, no errors
 * survived, nobody replaced. "block" accepts and serves one connection at a time in each
 * worker; "epoll" holds many. A worker dies with its parent.
 *
 * Echo: the second byte of a message says that it is the last. HTTP: a head that comes in one
 * piece, "Connection: close", "Content-Length", and always the same answer.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BUFFER = 1 << 17, FDS = 1 << 16, BATCH = 64 };

static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n"
                             "\r\nHello, World!";
static char buffer[BUFFER + 1];
static long missing[FDS]; /* of the body that this connection sends, when epoll holds it */
static int is_http;

static void die(const char *what) {
    perror(what);
    exit(1);
}

/* One reading and its answer. Whether the connection goes on. */
static int serve(int fd, long *rest) {
    ssize_t got = recv(fd, buffer, BUFFER, 0);
    if (got <= 0)
        return got < 0 && errno == EAGAIN;
    if (!is_http)
        return send(fd, buffer, got, MSG_NOSIGNAL) == got && !buffer[1];
    int closes = 0;
    if (*rest) {
        *rest -= got;
    } else {
        buffer[got] = 0;
        char *body = strstr(buffer, "\r\n\r\n");
        if (!body)
            return 0;
        char *length = strstr(buffer, "\r\nContent-Length: ");
        if (length && length < body)
            *rest = atol(length + 18) - (buffer + got - body - 4);
        char *close = strstr(buffer, "\r\nConnection: close");
        closes = close && close < body;
    }
    if (*rest)
        return 1;
    return send(fd, answer, sizeof answer - 1, MSG_NOSIGNAL) > 0 && !closes;
}

static void block(int listener) {
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        long rest = 0;
        while (fd >= 0 && serve(fd, &rest))
            ;
        close(fd);
    }
}

static void hold(int listener) {
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN | EPOLLEXCLUSIVE, .data.fd = listener};
    struct epoll_event ready[BATCH];
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(epoll, ready, BATCH, -1);
        for (int i = 0; i < count; i++) {
            int fd = ready[i].data.fd;
            if (fd != listener) {
                if (!serve(fd, &missing[fd]))
                    close(fd);
                continue;
            }
            fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
            if (fd < 0)
                continue; /* a sibling was faster */
            if (fd >= FDS) {
                close(fd);
                continue;
            }
            missing[fd] = 0;
            event = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
            epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
        }
    }
}

static void datagrams(int listener) {
    for (;;) {
        struct sockaddr_storage peer;
        socklen_t size = sizeof peer;
        ssize_t got = recvfrom(listener, buffer, BUFFER, 0, (struct sockaddr *)&peer, &size);
        if (got >= 0)
            sendto(listener, buffer, got, 0, (struct sockaddr *)&peer, size);
    }
}

static int listen_on(const char *place, int type, int flags) {
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    struct sockaddr_in port = {.sin_family = AF_INET, .sin_port = htons(atoi(place))};
    port.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int is_path = *place == '/', one = 1;
    int fd = socket(is_path ? AF_UNIX : AF_INET, type | flags, 0);
    if (fd < 0)
        die("socket");
    strncpy(path.sun_path, place, sizeof path.sun_path - 1);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (!is_path && type == SOCK_STREAM)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* inherited by connections */
    struct sockaddr *address = is_path ? (struct sockaddr *)&path : (struct sockaddr *)&port;
    if (bind(fd, address, is_path ? sizeof path : sizeof port))
        die("bind");
    if (type == SOCK_STREAM && listen(fd, 4096))
        die("listen");
    return fd;
}

int main(int count, char **given) {
    if (count != 5) {
        fputs("usage: limit echo|http|udp block|epoll WORKERS PORT|/path\n", stderr);
        return 2;
    }
    int is_udp = !strcmp(given[1], "udp"), holds = !strcmp(given[2], "epoll");
    is_http = !strcmp(given[1], "http");
    int listener = listen_on(given[4], is_udp ? SOCK_DGRAM : SOCK_STREAM, holds ? SOCK_NONBLOCK : 0);
    pid_t parent = getpid();
    for (int i = atoi(given[3]); i > 0; i--) {
        if (fork())
            continue;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            return 0;
        is_udp ? datagrams(listener) : holds ? hold(listener) : block(listener);
    }
    while (wait(NULL) > 0)
        ;
    return 0;
}
