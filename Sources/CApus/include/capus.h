#pragma once
// Kernel interfaces that Swift cannot import: macros, variadic calls and flag constants. No logic.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static inline int capus_open(const char *path, int flags, unsigned mode) { return open(path, flags, mode); }
static inline int capus_fcntl(int fd, int command, int value) { return fcntl(fd, command, value); }
// Behind _GNU_SOURCE, which the Swift overlay is built without.
int capus_accept(int fd);
int capus_memory_file(void);
ssize_t capus_process_vm_readv(pid_t pid, const struct iovec *local, const struct iovec *remote);
ssize_t capus_process_vm_writev(pid_t pid, const struct iovec *local, const struct iovec *remote);
off_t capus_seek_data(int fd, off_t from);
off_t capus_seek_hole(int fd, off_t from);
int capus_punch(int fd, off_t from, off_t length);
static inline void capus_name_thread(const char *name) { prctl(PR_SET_NAME, (unsigned long)name, 0, 0, 0); }
