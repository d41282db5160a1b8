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
// The least that a round trip of this TCP connection took, in microseconds; 0: not known.
unsigned capus_round_trip_us(int fd);
int capus_memory_file(void);
// What a path leads to, without opening it.
int capus_look_at(const char *path);
// Private memory, zeros where it is new, at its old or a new address; MAP_FAILED when the kernel has no room.
void *capus_grow(void *old, size_t old_count, size_t new_count);
ssize_t capus_process_vm_readv(pid_t pid, const struct iovec *local, const struct iovec *remote);
ssize_t capus_process_vm_writev(pid_t pid, const struct iovec *local, const struct iovec *remote);
// One local piece to several remote ones.
ssize_t capus_process_vm_scatter(pid_t pid, const struct iovec *local, const struct iovec *remote, size_t count);
off_t capus_seek_data(int fd, off_t from);
off_t capus_seek_hole(int fd, off_t from);
int capus_punch(int fd, off_t from, off_t length);
// What the page cache has from `from` on, without waiting for the disk; -1 when that is nothing, or cannot be told.
ssize_t capus_read_cached(int fd, void *to, size_t count, off_t from);
// This thread only: its disk requests wait for everybody else's.
void capus_idle_on_disk(void);
// This thread only, as Linux has it.
void capus_nice_thread(int nice);
// This thread only: before all that have no rank; processes it starts have none.
void capus_hurry_thread(int rank);
static inline void capus_name_thread(const char *name) { prctl(PR_SET_NAME, (unsigned long)name, 0, 0, 0); }
