// Processes and local sockets: what Swift cannot call by itself (struct ucred, fork, pidfd).
#pragma once

// No system headers here beyond these two: with _GNU_SOURCE they would define other structures than Swift's own
// modules of the C library do.
#include <stddef.h>
#include <stdint.h>

struct capus_peer {
    int32_t pid;
    uint32_t uid;
    uint32_t gid;
};

// Connects to a UNIX stream socket without ever waiting (a full backlog is EAGAIN) and reads who listens there.
// Returns the descriptor (non-blocking, close-on-exec) or -errno.
int capus_unix_connect(const char *path, size_t length, struct capus_peer *peer);

// The C library's text for an errno value; NULL when it has none.
const char *capus_errno_text(int code);

// Starts `path` in a session of its own, with stdin from /dev/null, stdout and stderr appended to `log` (mode 0600),
// working directory `directory` (NULL: as the caller), default signal dispositions, an empty signal mask, and no other
// descriptor than fds[i] as 3 + i. Returns 0 or errno: of the file actions, or of exec itself.
int capus_spawn(const char *path, char *const argv[], const char *directory, const char *log, const int *fds,
                size_t fds_count, int32_t *pid);

// pidfd_open(2): a descriptor (close-on-exec) that means this very process for ever, or -errno.
int capus_pidfd_open(int32_t pid);
// pidfd_send_signal(2): 0 or errno. Signal 0 asks whether the process lives.
int capus_pidfd_signal(int pidfd, int signal);

// Takes the exit status of a child that has ended. Returns 1 and fills the result, 0 when it has not ended yet,
// -1 when it is not our child (somebody else gets its status).
int capus_pidfd_reap(int pidfd, int32_t *signalled, int32_t *status);

// An epoll instance (descriptor or -errno), its members (0 or errno), and the wait for the next readable one
// (0 and its key, or errno).
int capus_epoll_create(void);
int capus_epoll_add(int epoll, int fd, uint64_t key);
void capus_epoll_remove(int epoll, int fd);
int capus_epoll_next(int epoll, uint64_t *key);

struct capus_file {
    uint64_t device_major;
    uint64_t device_minor;
    uint64_t inode;
    uint64_t size;
};
// stat(2), links followed: 0 or errno.
int capus_stat(const char *path, struct capus_file *file);
// Bytes an unprivileged writer may still put on the file system of `path`: 0 or errno.
int capus_room(const char *path, uint64_t *bytes);
// 1 when the file is on tmpfs, 0 when not, or -errno.
int capus_is_tmpfs(const char *path);
// Opens (creating, 0600) and locks a file for this process alone: a descriptor, or -errno (EWOULDBLOCK: another has it).
int capus_lock_file(const char *path);
void capus_unlock_file(int fd);

// Columns of the terminal behind a descriptor; 0 when it is none.
int capus_terminal_columns(int fd);
