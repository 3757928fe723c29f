/* The clients: each kind puts one load on a port of this machine and prints one line of JSON.
 *
 *   load PORT new AT_ONCE SECONDS COUNT      each request has a connection of its own, AT_ONCE are under way; ends after
 *                                            SECONDS, or after COUNT connections where that is not 0
 *   load PORT keep AT_ONCE SECONDS           AT_ONCE connections that stay, each asks again as soon as it is answered
 *   load PORT download BYTES                 one answer of so many bytes
 *   load PORT upload BYTES                   one request of so many bytes, until it is answered
 *
 * Printed: done (requests, or bytes), failed (requests without their whole answer), seconds, cpu (seconds that this
 * process took), p50 and p99 (seconds from a question to its answer; of `new`: from before the connect to the end).
 */
#include "common.h"

#include <sys/resource.h>

#define REST " HTTP/1.1\r\nHost: bench\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"
static const char SMALL[] = "GET /small" REST, LAST[] = "GET /last" REST;
enum { MOST_AT_ONCE = 4096, SAMPLES = 1 << 22, TIMEOUT_S = 60 };

struct client {
    int fd;
    int received;
    long long began;
};
static struct client clients[MOST_AT_ONCE];
static unsigned *samples; /* nanoseconds each; beyond SAMPLES the oldest are written over */
static long long done, failed;
static int port, epoll;

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int ascending(const void *one, const void *other) {
    unsigned a = *(const unsigned *)one, b = *(const unsigned *)other;
    return (a > b) - (a < b);
}

static double percentile(long long count, int percent) {
    return count ? samples[count * percent / 100 < count ? count * percent / 100 : count - 1] / 1e9 : 0;
}

static void report(long long began) {
    double seconds = (now() - began) / 1e9;
    struct rusage usage;
    long long count = done < SAMPLES ? done : SAMPLES;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    if (samples)
        qsort(samples, count, sizeof *samples, ascending);
    printf("{\"done\": %lld, \"failed\": %lld, \"seconds\": %.6f, \"cpu\": %.6f", done, failed, seconds, cpu);
    if (samples)
        printf(", \"p50\": %.9f, \"p99\": %.9f", percentile(count, 50), percentile(count, 99));
    printf("}\n");
}

static int dial(void) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = loopback(port);
    struct timeval timeout = {.tv_sec = TIMEOUT_S};
    if (fd < 0)
        die("socket");
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) {
        close(fd);
        return -1;
    }
    set_nodelay(fd);
    return fd;
}

static void ask(struct client *client, const char *request, size_t size) {
    client->received = 0;
    if (send(client->fd, request, size, MSG_NOSIGNAL) != (ssize_t)size)
        client->received = -ANSWER_SIZE; /* what comes will be too little */
}

static void watch(struct client *client) {
    struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = client};
    epoll_ctl(epoll, EPOLL_CTL_ADD, client->fd, &wanted);
}

static void took(struct client *client, long long at) {
    if (client->received != ANSWER_SIZE) {
        failed++;
        return;
    }
    samples[done++ % SAMPLES] = at - client->began < 4000000000LL ? at - client->began : 4000000000u;
}

/* Whether there is a connection again; a refused one is counted, and the next one tried. */
static int begin_new(struct client *client) {
    for (int tries = 0; tries < 10; tries++) {
        client->began = now();
        client->fd = dial();
        if (client->fd >= 0) {
            ask(client, LAST, sizeof LAST - 1);
            watch(client);
            return 1;
        }
        failed++;
    }
    return 0;
}

static int next_events(struct epoll_event *ready) {
    int found = epoll_wait(epoll, ready, EVENTS, TIMEOUT_S * 1000);
    if (!found) {
        errno = ETIMEDOUT;
        die("no answer");
    }
    return found > 0 ? found : 0;
}

static void new_connections(int at_once, double seconds, long long count) {
    long long began = now(), ends = began + seconds * 1e9, begun = 0, open = 0;
    struct epoll_event ready[EVENTS];
    char buffer[4096];
    for (; open < at_once && (!count || begun < count); open++, begun++)
        if (!begin_new(&clients[open]))
            die("connect");
    while (open) {
        int found = next_events(ready);
        for (int i = 0; i < found; i++) {
            struct client *client = ready[i].data.ptr;
            ssize_t came = recv(client->fd, buffer, sizeof buffer, MSG_DONTWAIT);
            if (came > 0) {
                client->received += came;
                continue;
            }
            if (came < 0 && errno == EAGAIN)
                continue;
            close(client->fd);
            long long at = now();
            took(client, at);
            open--;
            if (at < ends && (!count || begun < count)) {
                if (!begin_new(client))
                    die("connect");
                open++, begun++;
            }
        }
    }
    report(began);
}

static void keep_alive(int at_once, double seconds) {
    struct epoll_event ready[EVENTS];
    char buffer[4096];
    for (int i = 0; i < at_once; i++) {
        if ((clients[i].fd = dial()) < 0)
            die("connect");
        watch(&clients[i]);
    }
    long long began = now(), ends = began + seconds * 1e9, at = began;
    for (int i = 0; i < at_once; i++) {
        clients[i].began = now();
        ask(&clients[i], SMALL, sizeof SMALL - 1);
    }
    while (at < ends) {
        int found = next_events(ready);
        for (int i = 0; i < found; i++) {
            struct client *client = ready[i].data.ptr;
            ssize_t came = recv(client->fd, buffer, sizeof buffer, MSG_DONTWAIT);
            if (came <= 0) {
                if (came < 0 && errno == EAGAIN)
                    continue;
                errno = came ? errno : ECONNRESET;
                die("a connection that was to stay");
            }
            client->received += came;
            if (client->received < ANSWER_SIZE)
                continue;
            at = now();
            took(client, at);
            client->began = at;
            ask(client, SMALL, sizeof SMALL - 1);
        }
    }
    report(began);
}

static void download(long long size) {
    char request[128], *buffer = malloc(1 << 20);
    int fd = dial();
    ssize_t came;
    if (fd < 0)
        die("connect");
    long long began = now();
    send(fd, request, snprintf(request, sizeof request, "GET /bytes/%lld HTTP/1.1\r\n\r\n", size), MSG_NOSIGNAL);
    while ((came = recv(fd, buffer, 1 << 20, 0)) > 0)
        done += came;
    failed = done != size;
    report(began);
}

static void upload(long long size) {
    static const char zeroes[BLOCK_SIZE];
    char request[128], answer[4096];
    int fd = dial();
    if (fd < 0)
        die("connect");
    long long began = now();
    send(fd, request, snprintf(request, sizeof request, "PUT /bytes/%lld HTTP/1.1\r\n\r\n", size), MSG_NOSIGNAL);
    while (done < size) {
        ssize_t sent = send(fd, zeroes, size - done < BLOCK_SIZE ? size - done : BLOCK_SIZE, MSG_NOSIGNAL);
        if (sent <= 0)
            break;
        done += sent;
    }
    failed = recv(fd, answer, sizeof answer, 0) != ANSWER_SIZE;
    report(began);
}

int main(int count, char **words) {
    epoll = epoll_create1(EPOLL_CLOEXEC);
    port = count > 2 ? atoi(words[1]) : 0;
    const char *kind = count > 2 ? words[2] : "";
    int at_once = count > 4 ? atoi(words[3]) : 0;
    if (at_once > 0 && at_once <= MOST_AT_ONCE) {
        samples = malloc(SAMPLES * sizeof *samples);
        if (!strcmp(kind, "new") && count == 6)
            return new_connections(at_once, atof(words[4]), atoll(words[5])), 0;
        if (!strcmp(kind, "keep") && count == 5)
            return keep_alive(at_once, atof(words[4])), 0;
    } else if (!strcmp(kind, "download") && count == 4) {
        return download(atoll(words[3])), 0;
    } else if (!strcmp(kind, "upload") && count == 4) {
        return upload(atoll(words[3])), 0;
    }
    fprintf(stderr, "load PORT new AT_ONCE SECONDS COUNT | keep AT_ONCE SECONDS | download BYTES | upload BYTES\n");
    return 2;
}
