// userfaultfd and PAGEMAP_SCAN (Linux 6.7), which the C library's headers may be too old for, and which Swift could not
// import: request numbers are macros, ioctl is variadic.
#pragma once

#include <stddef.h>
#include <stdint.h>

// A run of pages of one kind, in addresses of the process that was scanned.
struct capus_region {
    uint64_t start;
    uint64_t end;
    uint64_t categories;
};

enum capus_scan_kind {
    CAPUS_SCAN_WRITTEN = 1,    // written since it was last protected
    CAPUS_SCAN_POPULATED = 2,  // present, or swapped out, and not the zero page
    CAPUS_SCAN_PRESENT = 3,    // in the page tables
    CAPUS_SCAN_THERE = 4,      // present, the zero page too, or swapped out: a touch does not find it missing
};

// Tries all that is declared here on a page of its own: 0, or errno of what failed (EINVAL, ENOTTY: an older kernel).
int capus_fault_probe(void);
// What an injected userfaultfd(2) is called with.
long capus_fault_number(void);
uint64_t capus_fault_flags(void);
// UFFDIO_API with what asynchronous write tracking needs: 0, errno; EINVAL when the kernel lacks a feature.
int capus_fault_begin(int fd);
// Tells whether an initialised descriptor of that kind is meant by the `features` of its fdinfo.
int capus_fault_is_tracking(uint64_t features);
// Registers a range for write tracking / protects all its pages / ends both. 0 or errno.
int capus_fault_register(int fd, uint64_t start, uint64_t bytes);
int capus_fault_protect(int fd, uint64_t start, uint64_t bytes);
int capus_fault_unregister(int fd, uint64_t start, uint64_t bytes);

// Scans [*start, end) of the process behind a /proc/PID/pagemap. `protect`: what is found is protected again in the
// same step. Returns the count of regions and where the walk ended in *start, or -errno (EPERM: the range is not under
// write tracking).
int64_t capus_pagemap_scan(int fd, enum capus_scan_kind kind, int protect, uint64_t *start, uint64_t end,
                           struct capus_region *regions, size_t regions_max);

// A userfaultfd of our own, or -errno.
int capus_fault_open(void);
// Missing pages. UFFDIO_API, and registration of a range whose missing pages are to be filled by us. 0 or errno.
int capus_fault_begin_filling(int fd);
int capus_fault_register_missing(int fd, uint64_t start, uint64_t bytes);
// Fills a range, from memory of ours (NULL: with zeros), and wakes who waits for it. Pages that are there are left as
// they are. 0 or errno (ESRCH: the process has gone).
int capus_fault_fill(int fd, uint64_t to, const void *from, uint64_t bytes);
int capus_fault_wake(int fd, uint64_t start, uint64_t bytes);
// Reads page addresses that somebody waits for; how many, 0 for none at the moment, or -errno.
int64_t capus_fault_next(int fd, uint64_t *pages, size_t pages_max);
// Waits until there is something to read: 1, 0 when the time is over, or -errno.
int capus_fault_wait(int fd, int ms);
