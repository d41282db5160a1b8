// A disk that is read past the page cache, all the time: several requests are always under way, each writing by DMA into
// memory that no CPU has touched. Every buffer is compared with what the disk holds when it has been read, and again
// before it is read anew, however long that is: a write to memory that a migration missed shows then.
//
//   buffer   0 | 1 | ... | BUFFERS-1     REQUEST bytes each; a reader has its own, and knows which block is in which
//   disk     word i is word_of(i), for its whole length
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "prover.h"

enum { READERS = 8, BUFFERS = 8, REQUEST = 512 << 10, REQUEST_WORDS = REQUEST / 8, PAGE_WORDS = 512, NAP_NS = 1000000 };

static int disk = -1;
static uint64_t requests_on_disk;
static uint64_t checked_pages, wrong_pages;

// The finalizer of SplitMix64: the laboratory writes the disk with the same.
static inline uint64_t word_of(uint64_t index) {
    uint64_t x = index + 1;
    x ^= x >> 30, x *= 0xbf58476d1ce4e5b9ull;
    x ^= x >> 27, x *= 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

// One word of each 64 bytes: a request's data comes in pieces of at least that length.
static void check(const uint64_t *buffer, uint64_t block, const char *when) {
    uint64_t first = block * REQUEST_WORDS;
    for (uint64_t page = 0; page < REQUEST_WORDS / PAGE_WORDS; page++) {
        for (uint64_t i = page * PAGE_WORDS; i < (page + 1) * PAGE_WORDS; i += 8) {
            if (buffer[i] == word_of(first + i)) continue;
            if (__atomic_fetch_add(&wrong_pages, 1, __ATOMIC_RELAXED) < 16) {
                say("BAD direct %s block=%llu page=%llu want=%llx got=%llx\n", when, (unsigned long long)block,
                    (unsigned long long)page, (unsigned long long)word_of(first + i), (unsigned long long)buffer[i]);
            }
            break;
        }
    }
    __atomic_fetch_add(&checked_pages, REQUEST_WORDS / PAGE_WORDS, __ATOMIC_RELAXED);
}

static void *reader(void *number) {
    uint64_t random = word_of((uintptr_t)number), block_in[BUFFERS];
    uint64_t *buffers = mmap(NULL, (size_t)BUFFERS * REQUEST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffers == MAP_FAILED) die("memory for the disk's readers");
    for (uint64_t turn = 0;; turn++) {
        random = word_of(random);
        // All once, then any.
        uint64_t index = turn < BUFFERS ? turn : random % BUFFERS, *buffer = buffers + index * REQUEST_WORDS;
        if (turn >= BUFFERS) check(buffer, block_in[index], "before");
        uint64_t block = (random >> 32) % requests_on_disk;
        if (pread(disk, buffer, REQUEST, (off_t)(block * REQUEST)) != REQUEST) die("reading the disk past the page cache");
        block_in[index] = block;
        check(buffer, block, "after");
        nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
    }
    return NULL;
}

void direct_start(const char *path) {
    uint64_t size = 0;
    disk = open(path, O_RDONLY | O_DIRECT);
    if (disk < 0 || ioctl(disk, BLKGETSIZE64, &size) < 0) die(path);
    requests_on_disk = size / REQUEST;
    for (uintptr_t i = 1; i <= READERS; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, reader, (void *)i)) die("reader");
    }
}

uint64_t direct_take_checked(void) { return __atomic_exchange_n(&checked_pages, 0, __ATOMIC_RELAXED); }
uint64_t direct_take_wrong(void) { return __atomic_exchange_n(&wrong_pages, 0, __ATOMIC_RELAXED); }
