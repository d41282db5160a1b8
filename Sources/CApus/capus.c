#define _GNU_SOURCE
#include "capus.h"
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

// From linux/ioprio.h, which older headers lack.
#define CAPUS_IOPRIO_WHO_PROCESS 1
#define CAPUS_IOPRIO_IDLE (3 << 13)

ssize_t capus_process_vm_readv(pid_t pid, const struct iovec *local, const struct iovec *remote) {
    return process_vm_readv(pid, local, 1, remote, 1, 0);
}

ssize_t capus_process_vm_writev(pid_t pid, const struct iovec *local, const struct iovec *remote) {
    return process_vm_writev(pid, local, 1, remote, 1, 0);
}

ssize_t capus_process_vm_scatter(pid_t pid, const struct iovec *local, const struct iovec *remote, size_t count) {
    return process_vm_writev(pid, local, 1, remote, count, 0);
}

unsigned capus_round_trip_us(int fd) {
    struct tcp_info info = {0};
    socklen_t length = sizeof info;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0) return 0;
    // The kernel says ~0 as long as it has measured none.
    return info.tcpi_min_rtt == ~0U ? 0 : info.tcpi_min_rtt;
}

int capus_accept(int fd) { return accept4(fd, NULL, NULL, SOCK_CLOEXEC); }

off_t capus_seek_data(int fd, off_t from) { return lseek(fd, from, SEEK_DATA); }
off_t capus_seek_hole(int fd, off_t from) { return lseek(fd, from, SEEK_HOLE); }

int capus_memory_file(void) { return memfd_create("apus", MFD_CLOEXEC); }
int capus_look_at(const char *path) { return open(path, O_PATH | O_CLOEXEC); }
int capus_punch(int fd, off_t from, off_t length) {
    return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from, length);
}

void *capus_grow(void *old, size_t old_count, size_t new_count) {
    if (old) return mremap(old, old_count, new_count, MREMAP_MAYMOVE);
    return mmap(NULL, new_count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

void capus_nice_thread(int nice) { setpriority(PRIO_PROCESS, 0, nice); }

void capus_hurry_thread(int rank) {
    struct sched_param param = {.sched_priority = rank};
    if (sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &param) != 0) setpriority(PRIO_PROCESS, 0, -10);
}

ssize_t capus_read_cached(int fd, void *to, size_t count, off_t from) {
    struct iovec piece = {to, count};
    return preadv2(fd, &piece, 1, from, RWF_NOWAIT);
}

void capus_idle_on_disk(void) { syscall(SYS_ioprio_set, CAPUS_IOPRIO_WHO_PROCESS, 0, CAPUS_IOPRIO_IDLE); }
