// Debian's redis-server as a load: started here, spoken to over a UNIX socket.
//
//   request   *3 \r\n $3 \r\n SET \r\n $16 \r\n <key, 16 hex digits> \r\n $<n> \r\n <n bytes> \r\n      answer   +OK \r\n
//             *2 \r\n $3 \r\n GET \r\n $16 \r\n <key, 16 hex digits> \r\n                              $<n> \r\n <n bytes> \r\n
//                                                                                                   or $-1 \r\n
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "prover.h"

static const char program[] = "/bin/redis-server", address[] = "/redis.sock";
enum { START_TRIES = 3000, TRY_MS = 10, LINE_MAX_BYTES = 64 };

static int server = -1;
static char out[1 << 18], in[1 << 18];
static size_t out_length, in_start, in_end;

// No snapshots, no log, no network: a cache in memory.
static void become_server(void) {
    int null = open("/dev/null", O_RDWR);
    if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0) _exit(1);
    execl(program, program, "--port", "0", "--unixsocket", address, "--save", "", "--appendonly", "no", NULL);
    _exit(1);
}

void redis_start(void) {
    if (access(program, X_OK) != 0) die("redis-server (this needs initrd-redis)");
    pid_t child = fork();
    if (child < 0) die("fork");
    if (child == 0) become_server();
    struct sockaddr_un place = {.sun_family = AF_UNIX};
    memcpy(place.sun_path, address, sizeof address);
    server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (server < 0) die("socket");
    for (int tries = 0; connect(server, (struct sockaddr *)&place, sizeof place) != 0; tries++) {
        if (tries == START_TRIES) die("redis-server does not listen");
        nanosleep(&(struct timespec){.tv_nsec = TRY_MS * 1000000}, NULL);
    }
}

// ---- Requests -----------------------------------------------------------------------------------------------------

static void put(const void *bytes, size_t count) {
    if (count > sizeof out - out_length) redis_send();
    memcpy(out + out_length, bytes, count);
    out_length += count;
}

void redis_set(uint64_t key, const void *value, size_t bytes) {
    char head[96];
    int length = snprintf(head, sizeof head, "*3\r\n$3\r\nSET\r\n$16\r\n%016llx\r\n$%zu\r\n", (unsigned long long)key,
                          bytes);
    put(head, (size_t)length);
    put(value, bytes);
    put("\r\n", 2);
}

void redis_get(uint64_t key) {
    char request[64];
    int length = snprintf(request, sizeof request, "*2\r\n$3\r\nGET\r\n$16\r\n%016llx\r\n", (unsigned long long)key);
    put(request, (size_t)length);
}

void redis_send(void) {
    for (size_t sent = 0; sent < out_length;) {
        ssize_t n = write(server, out + sent, out_length - sent);
        if (n < 0 && errno != EINTR) die("writing to redis-server");
        if (n > 0) sent += (size_t)n;
    }
    out_length = 0;
}

// ---- Answers ------------------------------------------------------------------------------------------------------

static void get(void *bytes, size_t count) {
    for (size_t done = 0; done < count;) {
        if (in_start == in_end) {
            ssize_t n = read(server, in, sizeof in);
            if (n < 0 && errno == EINTR) continue;
            if (n == 0) errno = EPIPE;
            if (n <= 0) die("reading from redis-server");
            in_start = 0, in_end = (size_t)n;
        }
        size_t part = count - done < in_end - in_start ? count - done : in_end - in_start;
        memcpy((char *)bytes + done, in + in_start, part);
        in_start += part, done += part;
    }
}

static void get_line(char *line) {
    for (size_t length = 0; length < LINE_MAX_BYTES; length++) {
        get(line + length, 1);
        if (line[length] != '\n') continue;
        line[length > 0 && line[length - 1] == '\r' ? length - 1 : length] = 0;
        return;
    }
    say("BAD prover: redis-server's answer has no end\n");
    exit(1);
}

static void refuse(const char *line) {
    say("BAD prover: redis-server says %s\n", line);
    exit(1);
}

void redis_stored(void) {
    char line[LINE_MAX_BYTES];
    get_line(line);
    if (strcmp(line, "+OK")) refuse(line);
}

bool redis_value(void *value, size_t bytes) {
    char line[LINE_MAX_BYTES], end[2];
    get_line(line);
    if (!strcmp(line, "$-1")) return false;
    if (line[0] != '$' || strtoull(line + 1, NULL, 10) != bytes) refuse(line);
    get(value, bytes);
    get(end, sizeof end);
    return true;
}
