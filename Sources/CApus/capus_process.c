#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "capus_process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <linux/magic.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

// Descriptors a child can be given.
#define CAPUS_SPAWN_FDS_MAX 16
#ifndef P_PIDFD
#define P_PIDFD 3
#endif

int capus_unix_connect(const char *path, size_t length, struct capus_peer *peer) {
    struct sockaddr_un address;
    memset(&address, 0, sizeof(address));
    address.sun_family = AF_UNIX;
    if (length == 0 || length >= sizeof(address.sun_path)) return -ENAMETOOLONG;
    memcpy(address.sun_path, path, length);

    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -errno;
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    struct ucred credentials;
    socklen_t size = sizeof(credentials);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) < 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    peer->pid = credentials.pid;
    peer->uid = credentials.uid;
    peer->gid = credentials.gid;
    return fd;
}

const char *capus_errno_text(int code) { return strerrordesc_np(code); }

int capus_spawn(const char *path, char *const argv[], const char *directory, const char *log, const int *fds,
                size_t fds_count, int32_t *pid) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t all, none;
    int lifted[CAPUS_SPAWN_FDS_MAX];
    size_t lifted_count = 0;
    int error = 0;
    pid_t child = -1;

    if (fds_count > CAPUS_SPAWN_FDS_MAX) return EMFILE;
    if ((error = posix_spawn_file_actions_init(&actions)) != 0) return error;
    if ((error = posix_spawnattr_init(&attributes)) != 0) {
        posix_spawn_file_actions_destroy(&actions);
        return error;
    }
    // Above every target first: a source may be the number another one is to get.
    for (size_t i = 0; i < fds_count; i++) {
        int high = fcntl(fds[i], F_DUPFD_CLOEXEC, 3 + CAPUS_SPAWN_FDS_MAX);
        if (high < 0) {
            error = errno;
            goto out;
        }
        lifted[lifted_count++] = high;
    }
    sigfillset(&all);
    sigemptyset(&none);
    if ((error = posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGDEF |
                                                           POSIX_SPAWN_SETSIGMASK)) != 0 ||
        (error = posix_spawnattr_setsigdefault(&attributes, &all)) != 0 ||
        (error = posix_spawnattr_setsigmask(&attributes, &none)) != 0 ||
        (error = posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)) != 0 ||
        (error = posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_APPEND, 0600)) != 0 ||
        (error = posix_spawn_file_actions_adddup2(&actions, 1, 2)) != 0)
        goto out;
    if (directory && (error = posix_spawn_file_actions_addchdir_np(&actions, directory)) != 0) goto out;
    for (size_t i = 0; i < lifted_count; i++)
        if ((error = posix_spawn_file_actions_adddup2(&actions, lifted[i], 3 + (int)i)) != 0) goto out;
    if ((error = posix_spawn_file_actions_addclosefrom_np(&actions, 3 + (int)lifted_count)) != 0) goto out;
    error = posix_spawn(&child, path, &actions, &attributes, argv, environ);
    if (error == 0) *pid = child;
out:
    for (size_t i = 0; i < lifted_count; i++) close(lifted[i]);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return error;
}

int capus_pidfd_open(int32_t pid) {
    long fd = syscall(SYS_pidfd_open, pid, 0);
    return fd < 0 ? -errno : (int)fd;
}

int capus_pidfd_signal(int pidfd, int signal) {
    return syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0) < 0 ? errno : 0;
}

int capus_pidfd_reap(int pidfd, int32_t *signalled, int32_t *status) {
    siginfo_t info;
    memset(&info, 0, sizeof(info));
    while (waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED | WNOHANG) < 0)
        if (errno != EINTR) return -1;
    if (info.si_pid == 0) return 0;
    *signalled = info.si_code != CLD_EXITED;
    *status = info.si_status;
    return 1;
}

int capus_epoll_create(void) {
    int fd = epoll_create1(EPOLL_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int capus_epoll_add(int epoll, int fd, uint64_t key) {
    struct epoll_event event = {.events = EPOLLIN, .data = {.u64 = key}};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? errno : 0;
}

void capus_epoll_remove(int epoll, int fd) { epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL); }

int capus_epoll_next(int epoll, uint64_t *key) {
    struct epoll_event event;
    int count;
    while ((count = epoll_wait(epoll, &event, 1, -1)) < 1)
        if (count < 0 && errno != EINTR) return errno;
    *key = event.data.u64;
    return 0;
}

int capus_stat(const char *path, struct capus_file *file) {
    struct stat status;
    if (stat(path, &status) < 0) return errno;
    file->device_major = major(status.st_dev);
    file->device_minor = minor(status.st_dev);
    file->inode = status.st_ino;
    file->size = (uint64_t)status.st_size;
    return 0;
}

int capus_room(const char *path, uint64_t *bytes) {
    struct statvfs status;
    if (statvfs(path, &status) < 0) return errno;
    *bytes = (uint64_t)status.f_bavail * status.f_frsize;
    return 0;
}

int capus_is_tmpfs(const char *path) {
    struct statfs status;
    if (statfs(path, &status) < 0) return -errno;
    return status.f_type == TMPFS_MAGIC;
}

int capus_lock_file(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return -errno;
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

void capus_unlock_file(int fd) {
    // Not by close alone: a child that is being started holds a copy of the descriptor until its exec.
    flock(fd, LOCK_UN);
    close(fd);
}

int capus_terminal_columns(int fd) {
    struct winsize size;
    if (!isatty(fd)) return 0;
    // A terminal that does not tell its size (a serial line) has the classic one.
    if (ioctl(fd, TIOCGWINSZ, &size) < 0 || size.ws_col == 0) return 80;
    return size.ws_col;
}
