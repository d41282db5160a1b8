#define _GNU_SOURCE
#include "capus_fault.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

// include/uapi/linux/userfaultfd.h and fs.h of Linux 6.7.
#define FEATURES_TRACKING \
    (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | 1u << 13 /* WP_UNPOPULATED */ | \
     1u << 15 /* WP_ASYNC */)
#define FEATURE_WP_ASYNC (1u << 15)
struct scan {
    uint64_t size, flags, start, end, walk_end, regions, regions_max, pages_max;
    uint64_t inverted, mask, any_of, returned;
};
#define SCAN_REQUEST _IOWR('f', 16, struct scan)
#define SCAN_PROTECT 1u
#define SCAN_MUST_BE_TRACKED 2u
#define IS_WRITTEN (1u << 1)
#define IS_PRESENT (1u << 3)
#define IS_SWAPPED (1u << 4)
#define IS_ZERO_PAGE (1u << 5)

int capus_fault_open(void) {
    long fd = syscall(SYS_userfaultfd, capus_fault_flags());
    return fd < 0 ? -errno : (int)fd;
}
long capus_fault_number(void) { return SYS_userfaultfd; }
uint64_t capus_fault_flags(void) { return O_CLOEXEC | O_NONBLOCK; }

static int request(int fd, unsigned long number, void *argument) { return ioctl(fd, number, argument) < 0 ? errno : 0; }

int capus_fault_begin(int fd) {
    struct uffdio_api api = {.api = UFFD_API, .features = FEATURES_TRACKING};
    return request(fd, UFFDIO_API, &api);
}
int capus_fault_is_tracking(uint64_t features) { return (features & FEATURE_WP_ASYNC) != 0; }

int capus_fault_register(int fd, uint64_t start, uint64_t bytes) {
    struct uffdio_register range = {.range = {start, bytes}, .mode = UFFDIO_REGISTER_MODE_WP};
    return request(fd, UFFDIO_REGISTER, &range);
}
int capus_fault_protect(int fd, uint64_t start, uint64_t bytes) {
    struct uffdio_writeprotect range = {.range = {start, bytes}, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
    int error;
    // EAGAIN: the process is changing its mappings this very moment.
    for (int turn = 0; turn < 1000; turn++)
        if ((error = request(fd, UFFDIO_WRITEPROTECT, &range)) != EAGAIN) break;
    return error;
}
int capus_fault_unregister(int fd, uint64_t start, uint64_t bytes) {
    struct uffdio_range range = {start, bytes};
    return request(fd, UFFDIO_UNREGISTER, &range);
}

int capus_fault_begin_filling(int fd) {
    struct uffdio_api api = {.api = UFFD_API};
    return request(fd, UFFDIO_API, &api);
}
int capus_fault_register_missing(int fd, uint64_t start, uint64_t bytes) {
    // Where writes could be watched, which they are not, the kernel never enters neighbours of a touched page too.
    struct uffdio_register range = {
        .range = {start, bytes}, .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP};
    return request(fd, UFFDIO_REGISTER, &range);
}
int capus_fault_wake(int fd, uint64_t start, uint64_t bytes) {
    struct uffdio_range range = {start, bytes};
    return request(fd, UFFDIO_WAKE, &range);
}

// One call: 0 or errno, and how many bytes were filled all the same.
static int fill(int fd, uint64_t to, const char *from, uint64_t bytes, int64_t *filled) {
    if (from) {
        struct uffdio_copy copy = {.dst = to, .src = (uintptr_t)from, .len = bytes};
        int error = request(fd, UFFDIO_COPY, &copy);
        *filled = copy.copy;
        return error;
    }
    struct uffdio_zeropage zero = {.range = {to, bytes}};
    int error = request(fd, UFFDIO_ZEROPAGE, &zero);
    *filled = zero.zeropage;
    return error;
}

int capus_fault_fill(int fd, uint64_t to, const void *from, uint64_t bytes) {
    const uint64_t page = 4096;
    int turns = 0;
    for (uint64_t at = 0; at < bytes;) {
        int64_t filled = 0;
        int error = fill(fd, to + at, from ? (const char *)from + at : NULL, bytes - at, &filled);
        if (!error) return 0;
        if (filled > 0) {
            at += (uint64_t)filled;
        } else if (error == EEXIST) {
            // Who waits for it may have been asleep since before it came.
            capus_fault_wake(fd, to + at, page);
            at += page;
        } else if (error != EAGAIN || ++turns == 10000) {
            // EAGAIN: the process is changing its mappings this very moment.
            return error;
        }
    }
    return 0;
}

int64_t capus_fault_next(int fd, uint64_t *pages, size_t pages_max) {
    struct uffd_msg messages[32];
    if (pages_max > sizeof messages / sizeof *messages) pages_max = sizeof messages / sizeof *messages;
    ssize_t bytes = read(fd, messages, pages_max * sizeof *messages);
    if (bytes < 0) return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    size_t count = 0;
    for (size_t i = 0; i < (size_t)bytes / sizeof *messages; i++)
        if (messages[i].event == UFFD_EVENT_PAGEFAULT) pages[count++] = messages[i].arg.pagefault.address & ~4095ull;
    return (int64_t)count;
}
int capus_fault_wait(int fd, int ms) {
    struct pollfd wanted = {.fd = fd, .events = POLLIN};
    int found = poll(&wanted, 1, ms);
    if (found < 0) return errno == EINTR ? 0 : -errno;
    // POLLERR: its process has gone.
    return found == 0 ? 0 : wanted.revents & POLLIN ? 1 : -ESRCH;
}

int64_t capus_pagemap_scan(int fd, enum capus_scan_kind kind, int protect, uint64_t *start, uint64_t end,
                           struct capus_region *regions, size_t regions_max) {
    struct scan scan = {
        .size = sizeof scan, .start = *start, .end = end, .regions = (uintptr_t)regions, .regions_max = regions_max};
    if (kind == CAPUS_SCAN_WRITTEN) {
        scan.flags = SCAN_MUST_BE_TRACKED | (protect ? SCAN_PROTECT : 0);
        scan.mask = scan.returned = IS_WRITTEN;
    } else if (kind == CAPUS_SCAN_PRESENT) {
        scan.mask = scan.returned = IS_PRESENT;
    } else {
        scan.any_of = IS_PRESENT | IS_SWAPPED;
        if (kind == CAPUS_SCAN_POPULATED) scan.mask = scan.inverted = IS_ZERO_PAGE;
        scan.returned = IS_PRESENT;
    }
    int found = ioctl(fd, SCAN_REQUEST, &scan);
    if (found < 0) return -errno;
    // The kernel's walk_end is where a buffer of its own, of 512 regions, was full for the last time, although the walk
    // went on from there (do_pagemap_scan in fs/proc/task_mmu.c, 6.7 to 6.18 at least). What counts is whether there was
    // room left, and the last region.
    uint64_t last = found > 0 ? regions[found - 1].end : 0;
    *start = (size_t)found < regions_max ? end : scan.walk_end > last ? scan.walk_end : last;
    return found;
}

int capus_fault_probe(void) {
    const uint64_t bytes = 4096;
    int fd = capus_fault_open();
    if (fd < 0) return -fd;
    int error = capus_fault_begin(fd), pagemap = -1;
    char *page = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) error = ENOMEM;
    uint64_t start = (uintptr_t)page, end = start + bytes;
    if (!error) error = capus_fault_register(fd, start, bytes);
    if (!error) error = capus_fault_protect(fd, start, bytes);
    if (!error && (pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)) < 0) error = errno;
    if (!error) {
        struct capus_region region;
        *(volatile char *)page = 1;
        int64_t found = capus_pagemap_scan(pagemap, CAPUS_SCAN_WRITTEN, 1, &start, end, &region, 1);
        error = found < 0 ? (int)-found : found == 1 ? 0 : EINVAL;
    }
    if (page != MAP_FAILED) munmap(page, bytes);
    if (pagemap >= 0) close(pagemap);
    close(fd);
    return error;
}
