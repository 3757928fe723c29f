/* The server behind every target: small answers from one epoll loop, bulk from a thread for each connection.
 *
 * backend PORT: serves until a signal comes. Requests as in bench/backend.py:
 *
 *   GET /small             a short answer, and the connection stays
 *   GET /last              the same answer, and the connection is closed
 *   GET /bytes/N           N bytes, nothing before them, and the connection is closed
 *   PUT /bytes/N           then N bytes from the client: a short answer, and it is closed
 *
 * A request is expected to come in one piece; the clients of the benches send it so.
 */
#define _GNU_SOURCE
#include "common.h"

#include <fcntl.h>
#include <pthread.h>

struct bulk {
    int fd;
    char request[4096];
};

static int send_all(int fd, const char *bytes, size_t size) {
    while (size) {
        ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL);
        if (sent <= 0)
            return 0;
        bytes += sent;
        size -= sent;
    }
    return 1;
}

static void *carry_out(void *given) {
    struct bulk *job = given;
    static const char zeroes[BLOCK_SIZE];
    char *end = strstr(job->request, "\r\n\r\n");
    long long left = atoll(job->request + strlen("GET /bytes/"));
    if (end && !strncmp(job->request, "GET", 3)) {
        recv(job->fd, job->request, end + 4 - job->request, 0);
        while (left > 0) {
            size_t size = left < BLOCK_SIZE ? left : BLOCK_SIZE;
            if (!send_all(job->fd, zeroes, size))
                break;
            left -= size;
        }
    } else if (end) {
        char *buffer = malloc(1 << 20);
        recv(job->fd, job->request, end + 4 - job->request, 0);
        while (left > 0) {
            ssize_t came = recv(job->fd, buffer, 1 << 20, 0);
            if (came <= 0)
                break;
            left -= came;
        }
        free(buffer);
        if (left == 0)
            send_all(job->fd, ANSWER, ANSWER_SIZE);
    }
    close(job->fd);
    free(job);
    return NULL;
}

static void hand_over(int fd, const char *request) {
    struct bulk *job = malloc(sizeof *job);
    pthread_t thread;
    job->fd = fd;
    strcpy(job->request, request);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    if (pthread_create(&thread, NULL, carry_out, job))
        die("thread");
    pthread_detach(thread);
}

/* Answer what came on the connection, and close it or hand it over where that is its end here. */
static void answer(int epoll, int fd) {
    char request[4096];
    ssize_t size = recv(fd, request, sizeof request - 1, MSG_PEEK);
    if (size < 0 && errno == EAGAIN)
        return;
    if (size <= 0) {
        close(fd);
        return;
    }
    request[size] = 0;
    if (!strncmp(request, "GET /small", 10)) {
        recv(fd, request, size, 0);
        send(fd, ANSWER, ANSWER_SIZE, MSG_NOSIGNAL);
        return;
    }
    if (!strncmp(request + 3, " /bytes/", 8)) {
        epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL);
        hand_over(fd, request);
        return;
    }
    if (!strncmp(request, "GET /last", 9)) {
        recv(fd, request, size, 0);
        send(fd, ANSWER, ANSWER_SIZE, MSG_NOSIGNAL);
    }
    close(fd);
}

static void accept_some(int epoll, int listener) {
    for (int i = 0; i < 64; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        set_nodelay(fd);
        struct epoll_event wanted = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &wanted);
    }
}

int main(int count, char **words) {
    int port = count == 2 ? atoi(words[1]) : 0, one = 1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), epoll = epoll_create1(EPOLL_CLOEXEC);
    struct sockaddr_in address = loopback(port);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (!port || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096))
        die("cannot listen");
    struct epoll_event wanted = {.events = EPOLLIN, .data.fd = listener}, ready[EVENTS];
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &wanted);
    for (;;) {
        int found = epoll_wait(epoll, ready, EVENTS, -1);
        for (int i = 0; i < found; i++) {
            if (ready[i].data.fd == listener)
                accept_some(epoll, listener);
            else
                answer(epoll, ready[i].data.fd);
        }
    }
}
